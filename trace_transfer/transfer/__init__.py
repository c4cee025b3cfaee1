"""`map`: probe set → activations → similarity → layer match → core set of the target."""
