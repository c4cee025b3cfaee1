"""Fisher information of every parameter, exact, from batched backward passes that store no parameter gradient."""
