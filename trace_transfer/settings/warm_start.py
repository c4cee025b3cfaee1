"""How tasks are warm-started: their data, the one epoch of training, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trace_transfer.settings.checks import choice_problems, count_problems, recorded, refuse
from trace_transfer.settings.training import TrainSettings
from trace_transfer.settings.types import type_problems

CHOICES: dict[str, tuple[str, ...]] = {
    "too_long": ("cut", "leave-out"),
    "delta_dtype": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class WarmStartSettings:
    """Everything about warm starts but the model, the tasks and the output directory.

    Attributes:
        train: the training itself.
        max_length: tokens; the paper's is 1,024 (A.4).
        too_long: examples longer than that are `cut` there, or left out.
        replicates: 2 warm-starts each task on two halves of its data, to tell signal from noise.
        delta_dtype: deltas are kept in `float32`, or in `bfloat16`: half the size, a relative error of 0.4 %.
        keep_models: keep the warm-started models, too.
    """

    train: TrainSettings = field(default_factory=TrainSettings)
    max_length: int = 1024
    too_long: str = "cut"
    replicates: int = 1
    delta_dtype: str = "float32"
    keep_models: bool = False

    def __post_init__(self) -> None:
        problems = type_problems(self) + choice_problems(self, CHOICES) + count_problems(self, {"max_length": 2})
        if self.replicates not in (1, 2):
            problems.append(f"replicates: {self.replicates} is none of 1, 2")
        refuse(problems)

    def recorded(self) -> dict[str, Any]:
        """As they are saved beside each warm start: what decides its deltas."""
        values = recorded(self)
        for name in ("train", "delta_dtype", "keep_models"):
            del values[name]
        return {**values, **self.train.recorded()}
