"""How models represent the texts of several tasks in their last layer (the paper's figure 3)."""
