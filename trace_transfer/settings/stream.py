"""How a stream of tasks is fine-tuned: the method, its training, and what baselines and controls need."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from trace_transfer.settings.checks import (
    choice_problems,
    count_problems,
    made,
    recorded,
    refuse,
    share_problem,
    unknown_problems,
)
from trace_transfer.settings.training import TrainSettings
from trace_transfer.settings.types import type_problems

METHODS = {
    "trace": "only the core set of each task (the method)",
    "full": "everything, task after task",
    "joint": "everything, all tasks mixed",
    "lora": "adapters on all layers, task after task",
    "dmt": "everything: all tasks but one mixed, then that one with a few examples of the others",
    "random": "a random set of the core set's size (control)",
    "shuffled": "the core set with its layers shuffled (control)",
    "first": "all of the first layers, as many as the core set's size (control)",
    "last": "all of the last layers, as many as the core set's size (control)",
}
CONTROLS = ("random", "shuffled", "first", "last")
NEED_CORE = ("trace", *CONTROLS)
CHOICES: dict[str, tuple[str, ...]] = {
    "method": tuple(METHODS),
    "too_long": ("cut", "leave-out"),
    "save_dtype": ("stored", "float32"),
    "adapter": ("carry", "merge"),
    "control_unit": ("tensors", "elements"),
}


def paper_training(**given: Any) -> TrainSettings:
    """Training as in the paper's A.4; the learning rate is that of the authors' code."""
    return TrainSettings(**{"epochs": 3, "batch_size": 256, "zero": 3, **given})


@dataclass(frozen=True)
class StreamSettings:
    """Everything about a stream of tasks but the model, the tasks and the output directory.

    Attributes:
        train: of each task.
        max_length: tokens; the paper's is 1,024 (A.4).
        too_long: examples longer than that are `cut` there, or left out.
        order: names of the tasks in the order in which they are trained; empty for that of the file.
        save_dtype: trained values are saved in the type in which the base is `stored`, or in `float32`.
        lora_rank, lora_alpha: of the adapters (A.4: 8 and 16).
        adapter: `carry` one through all tasks, or `merge` it after each and begin a new one.
        special: the task that DMT trains last; None for the last of the stream.
        replay_share: share of the other tasks' examples that DMT replays beside it (Dong et al., 2024: 1/256).
        control_unit: a random set has the core set's number of `tensors`, or of `elements`.
    """

    method: str = "trace"
    train: TrainSettings = field(default_factory=paper_training)
    max_length: int = 1024
    too_long: str = "cut"
    order: tuple[str, ...] = ()
    save_dtype: str = "stored"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    adapter: str = "carry"
    special: str | None = None
    replay_share: float = 1 / 256
    control_unit: str = "tensors"

    def __post_init__(self) -> None:
        problems = type_problems(self) + choice_problems(self, CHOICES)
        problems += count_problems(self, {"max_length": 2, "lora_rank": 1})
        problems += share_problem("replay_share", self.replay_share)
        if not self.lora_alpha > 0:
            problems.append(f"lora_alpha: {self.lora_alpha} is not above 0")
        contradicting = self.special is not None and self.method != "dmt"
        refuse(problems, [f"special: {self.special!r} is for method dmt only"] * contradicting)

    @classmethod
    def of(cls, **given: Any) -> StreamSettings:
        """From single names, as on the command line.

        Raises:
            UserError: unknown names, or values that cannot be used; all at once.
        """
        of_train, problems = {f.name for f in fields(TrainSettings)}, unknown_problems(given, cls.names())
        train = made(problems, paper_training, {name: given[name] for name in given if name in of_train})
        found = made(problems, cls, {name: given[name] for name in given if name in cls.names() - of_train})
        refuse(problems)
        return replace(found, train=train)

    @classmethod
    def names(cls) -> frozenset[str]:
        """All that `of` takes."""
        return frozenset(f.name for kind in (cls, TrainSettings) for f in fields(kind)) - {"train"}

    @property
    def needs_core(self) -> bool:
        """Whether each task needs a core file."""
        return self.method in NEED_CORE

    def recorded(self) -> dict[str, Any]:
        """As they are saved beside the results: what decides them."""
        values = recorded(self)
        del values["train"]
        return {**values, **self.train.recorded()}
