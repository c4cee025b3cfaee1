"""Evaluation while a model trains: the loss on examples that it does not learn from, and what that loss decides.

Evaluating changes no bit of the training: dropout is off and draws nothing, and each step begins with a seed of its
own. `eval.csv` beside `loss.csv` has a line for each evaluation and task; a checkpoint has it, too, so that a training
that goes on decides the same.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trace_transfer.data.examples import TaskData
from trace_transfer.engine.batches import GlobalBatch, Plan
from trace_transfer.errors import TrainingError
from trace_transfer.files import sha256_text
from trace_transfer.text_formats import read_text

if TYPE_CHECKING:
    from trace_transfer.engine.distributed import Ranks
    from trace_transfer.engine.engine import Engine

FILE, HEADER = "eval.csv", ("step", "task", "loss", "supervised")


@dataclass(frozen=True)
class Evaluation:
    """The loss on held-out examples after a step.

    Attributes:
        losses: task → mean cross-entropy of its supervised tokens, in nats.
        supervised: task → how many those are.
    """

    step: int
    losses: Mapping[str, float]
    supervised: Mapping[str, int]

    @property
    def loss(self) -> float:
        """The mean over the supervised tokens of all tasks: what decides."""
        total = sum(loss * self.supervised[task] for task, loss in self.losses.items())
        return total / sum(self.supervised.values())


def best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """That of the lowest loss, the first of several."""
    return min(evaluations, key=lambda one: one.loss, default=None)


@dataclass(frozen=True)
class HeldOut:
    """Examples that are not trained on, and what is decided by the loss on them.

    Attributes:
        every: steps between evaluations, and one after the last step; None for one after each epoch.
        patience: evaluations without a lower loss after which a training ends; None: it never ends early.
        keep_best: whether the weights of the lowest loss are kept, in place of the last.
    """

    tasks: tuple[TaskData, ...]
    every: int | None = None
    patience: int | None = None
    keep_best: bool = False

    @cached_property
    def sha256(self) -> str:
        return sha256_text("\n".join(f"{data.task} {data.sha256}" for data in self.tasks))

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        return {"sha256": self.sha256, "every": self.every, "patience": self.patience, "keep_best": self.keep_best}

    def batches(self, plan: Plan) -> dict[str, GlobalBatch]:
        """Each task's examples in micro-batches of the size of the training's."""
        return {data.task: GlobalBatch.of(data.examples, plan.micro_batch_size) for data in self.tasks}

    def is_due(self, step: int, plan: Plan) -> bool:
        """Whether an evaluation follows a step, counted from 1."""
        return step == plan.num_steps or step % (self.every or plan.steps_per_epoch) == 0

    def is_over(self, evaluations: Sequence[Evaluation]) -> bool:
        """Whether a training ends here, as the loss has not become lower for too long."""
        lowest = best(evaluations)
        return bool(self.patience and lowest and len(evaluations) - evaluations.index(lowest) > self.patience)

    def kept(self, evaluations: Sequence[Evaluation]) -> int | None:
        """The step whose weights are kept; None for the last."""
        lowest = best(evaluations) if self.keep_best else None
        return lowest.step if lowest else None


def evaluate(engine: Engine, ranks: Ranks, batches: Mapping[str, GlobalBatch], step: int) -> Evaluation:
    """Evaluate; all ranks take part, and get the same.

    Args:
        batches: of each task.

    Raises:
        TrainingError: a loss is NaN or infinite.
    """
    losses = {}
    for task, batch in batches.items():
        sums = torch.zeros(len(batch.micro_batches), dtype=torch.float64)
        with engine.evaluating():
            for micro, examples in batch.share(ranks.rank, ranks.size):
                loss = engine.loss(examples).item()
                if micro is not None:
                    sums[micro] = loss
        losses[task] = float(ranks.total(sums).sum()) / batch.num_supervised
        if not math.isfinite(losses[task]):
            raise TrainingError(
                f"step {step}: the loss on the held-out examples of task '{task}' is NaN or infinite; look at them, or "
                "try a smaller learning rate"
            )
    return Evaluation(step, losses, {task: batch.num_supervised for task, batch in batches.items()})


def to_csv(evaluations: Sequence[Evaluation]) -> str:
    """Numbers are written so that reading gives the same ones back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for one in evaluations:
        writer.writerows((one.step, task, loss, one.supervised[task]) for task, loss in one.losses.items())
    return text.getvalue()


def read_csv(file: Path) -> tuple[Evaluation, ...]:
    """What `to_csv` wrote; none where there is no such file.

    Raises:
        TrainingError: it is something else.
    """
    if not file.is_file():
        return ()
    header, *rows = list(csv.reader(io.StringIO(read_text(file, TrainingError)))) or [[]]
    try:
        if tuple(header) != HEADER:
            raise ValueError(f"expected the columns {', '.join(HEADER)}")
        lines = [(int(step), task, float(loss), int(supervised)) for step, task, loss, supervised in rows]
    except ValueError as error:
        raise TrainingError(f"{file}: damaged ({error})") from error
    found = []
    for step, several in groupby(lines, key=lambda line: line[0]):
        of_step = list(several)
        found.append(Evaluation(step, {line[1]: line[2] for line in of_step}, {line[1]: line[3] for line in of_step}))
    return tuple(found)
