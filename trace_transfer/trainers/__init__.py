"""A core set in anybody's training loop: plain torch, accelerate, transformers' Trainer, TRL, Axolotl."""
