"""Fine-tuning: one loop on DeepSpeed for the warm start, the masked stage and the baselines.

`loop.train` is the way in. Below it: `stepping` (step after step), `batches` (what is read when), `schedule` (the
learning rate), `engine` (DeepSpeed, with `meeting`, `quiet`, and `partitioned` for models that no rank can hold),
`slices` (rows and columns that are trained alone), `state` (checkpoints to go on from), `proof` (that the frozen
weights in use stayed so), `history` and `tracking`.

What it starts from: `loading`, `patched` (base and patches), `adapters` (LoRA). What is known before: `estimates`.
"""
