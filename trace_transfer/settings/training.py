"""How a model is fine-tuned: warm start, masked stage and baselines share these settings and one loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trace_transfer.settings.checks import choice_problems, count_problems, recorded, refuse
from trace_transfer.settings.types import type_problems

PRECISIONS = ("auto", "float32", "bfloat16")
CHOICES: dict[str, tuple[str, ...]] = {
    "precision": PRECISIONS,
    "offload": ("none", "optimizer", "parameters"),
}
TRACKERS = ("tensorboard", "wandb", "comet")


@dataclass(frozen=True)
class TrainSettings:
    """One stage of fine-tuning.

    Attributes:
        epochs: passes over the data; the warm start's is 1 (paper, section 3.2).
        learning_rate: of AdamW at its peak, after the warm-up and before the cosine.
        batch_size: examples per optimizer step, over all ranks.
        micro_batch_size: examples per forward pass and rank.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: AdamW's.
        max_grad_norm: gradients are clipped to this norm; None for no clipping.
        precision: `float32`, or `bfloat16` with float32 master weights; `auto` is float32 without a GPU.
        zero: DeepSpeed's ZeRO stage, 0 to 3.
        offload: keep the `optimizer` (ZeRO 1 to 3), or also the `parameters` (ZeRO 3), in the memory of the CPU.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        seed: order of the examples.
        checkpoint_minutes: a checkpoint at least that often, to go on from after an interruption; 0 after every step.
        keep_checkpoints: how many of them are kept.
        track: where loss and learning rate are sent, beside `loss.csv`: some of `TRACKERS`.
        deepspeed: further DeepSpeed configuration, as its JSON has it; see `settings.deepspeed_json`.
    """

    epochs: int = 1
    learning_rate: float = 2e-5
    batch_size: int = 32
    micro_batch_size: int = 4
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float | None = 1.0
    precision: str = "auto"
    zero: int = 0
    offload: str = "none"
    gradient_checkpointing: bool = False
    seed: int = 0
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 1
    track: tuple[str, ...] = ()
    deepspeed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = type_problems(self) + choice_problems(self, CHOICES)
        problems += count_problems(
            self, {"epochs": 1, "batch_size": 1, "micro_batch_size": 1, "seed": 0, "keep_checkpoints": 1}
        )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            problems.append(f"learning_rate: {self.learning_rate} is not above 0")
        if not 0 <= self.warmup < 1:
            problems.append(f"warmup: {self.warmup} is not in [0, 1)")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            problems.append(f"weight_decay: {self.weight_decay} is not 0 or more")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            problems.append(f"max_grad_norm: {self.max_grad_norm} is not above 0")
        if self.zero not in (0, 1, 2, 3):
            problems.append(f"zero: {self.zero} is none of 0, 1, 2, 3")
        if unknown := [name for name in self.track if name not in TRACKERS]:
            problems.append(f"track: {', '.join(unknown)} is none of {', '.join(TRACKERS)}")
        if not self.checkpoint_minutes >= 0:
            problems.append(f"checkpoint_minutes: {self.checkpoint_minutes} is not 0 or more")
        needed, contradictions = {"none": 0, "optimizer": 1, "parameters": 3}.get(self.offload, 0), []
        if self.zero < needed:
            contradictions.append(f"offload: {self.offload!r} needs zero {needed} or more, and zero is {self.zero}")
        refuse(problems, contradictions)

    def recorded(self) -> dict[str, Any]:
        """As they are saved beside each result; how often checkpoints are written changes no result."""
        values = recorded(self)
        for name in ("checkpoint_minutes", "keep_checkpoints", "track"):
            del values[name]
        return {**values, "deepspeed": dict(self.deepspeed)}
