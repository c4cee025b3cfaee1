"""A core set in the words of other trainers, proved with their own way of matching, and their lists read back."""
