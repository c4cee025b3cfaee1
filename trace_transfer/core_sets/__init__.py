"""Core files, masks, selection, and the lists of other trainers."""
