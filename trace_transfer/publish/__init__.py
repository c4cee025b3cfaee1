"""What goes to the hub: models with their cards, and core files."""
