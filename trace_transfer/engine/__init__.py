"""Fine-tuning on DeepSpeed: one loop (`loop.train`) for the warm start, the masked stage and the baselines."""
