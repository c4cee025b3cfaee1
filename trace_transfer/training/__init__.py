"""Masked fine-tuning of a stream of tasks: its plan, methods, controls and stages."""
