"""Evaluation while a model trains: the loss on examples that it does not learn from, and what that loss decides.

Evaluating changes no bit of the training: dropout is off and draws nothing, and each step begins with a seed of its
own. A checkpoint has all evaluations, so that a training that goes on decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from trace_transfer.data.examples import TaskData
from trace_transfer.engine.batches import GlobalBatch, Plan
from trace_transfer.errors import TrainingError
from trace_transfer.files import sha256_text

if TYPE_CHECKING:
    from trace_transfer.engine.distributed import Ranks
    from trace_transfer.engine.engine import Engine


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


def evaluate(engine: Engine, ranks: Ranks, tasks: Sequence[TaskData], micro_batch_size: int, step: int) -> Evaluation:
    """Evaluate; all ranks take part, and get the same."""
    losses, supervised = {}, {}
    for data in tasks:
        batch = GlobalBatch.of(data.examples, micro_batch_size)
        sums = torch.zeros(len(batch.micro_batches), dtype=torch.float64)
        with engine.evaluating():
            for micro, examples in batch.share(ranks.rank, ranks.size):
                loss = engine.loss(examples).item()
                if micro is not None:
                    sums[micro] = loss
        supervised[data.task] = batch.num_supervised
        losses[data.task] = float(ranks.total(sums).sum()) / batch.num_supervised
        if not math.isfinite(losses[data.task]):
            raise TrainingError(
                f"step {step}: the loss on the held-out examples of task '{data.task}' is NaN or infinite; look at "
                "them, or try a smaller learning rate"
            )
    return Evaluation(step, losses, supervised)
