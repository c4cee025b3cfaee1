"""Fine-tuning: one loop on DeepSpeed for the warm start, the masked stage and the baselines.

`loop.train` is the way in. Below it: `batches` (what is read when), `schedule` (the learning rate), `engine` (the only
module that knows DeepSpeed), `state` (checkpoints to go on from), `history` (what each step did), `loading`.
"""
