"""Fine-tuning on DeepSpeed: one loop for the warm start, the masked stage and the baselines.

`loop.train` is the way in. It uses `batches` (what is read in each step, and evaluated on), `engine` (DeepSpeed;
`slices` for rows and columns that are trained alone), `checkpointing` (loss.csv and checkpoints), `tracking`, and
`distributed` (the processes that train together).

A training starts from weights (`loading`) or from weights with adapters (`adapters`). `estimates` tells its memory and
its arithmetic before.
"""
