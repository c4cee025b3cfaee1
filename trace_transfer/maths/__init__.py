"""Pure functions on tensors: similarity, assignment, stability. They know nothing of models, files or families."""
