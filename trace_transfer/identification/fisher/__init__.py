"""Fisher information of every tensor, exact, from batched backward passes that store no gradient of a tensor."""
