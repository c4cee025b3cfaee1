"""What a stage changed: patches, the states of a model that they make, and the proof that nothing else moved."""
