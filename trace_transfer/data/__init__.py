"""Task data, supervised examples and the probe set."""
