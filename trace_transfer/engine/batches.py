"""The plan of a training: which examples each step learns from, and on which others it is evaluated meanwhile.

A global batch is what one optimizer step learns from; a micro-batch is what one rank computes at once.

Evaluating changes no bit of the training: dropout is off and draws nothing, and each step begins with a seed of its
own. A checkpoint has all evaluations, so that a training that goes on decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from trace_transfer.data.examples import Example, TaskData
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.errors import TrainingError
from trace_transfer.files import sha256_text

if TYPE_CHECKING:
    from trace_transfer.engine.distributed import Ranks
    from trace_transfer.engine.engine import Engine

Item = TypeVar("Item")


@dataclass(frozen=True)
class GlobalBatch:
    """The examples of one optimizer step, in micro-batches of like length, the longest first: how they are cut has no
    influence on the loss, only on how much padding is computed."""

    micro_batches: tuple[tuple[Example, ...], ...]

    @classmethod
    def of(cls, examples: Sequence[Example], micro_batch_size: int) -> GlobalBatch:
        by_length = sorted(examples, key=lambda example: -len(example.input_ids))
        return cls(tuple(map(tuple, _cut(by_length, micro_batch_size))))

    @property
    def examples(self) -> Iterator[Example]:
        return (example for micro_batch in self.micro_batches for example in micro_batch)

    @cached_property
    def num_tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)

    @cached_property
    def num_supervised(self) -> int:
        return sum(example.num_supervised for example in self.examples)

    def share(self, rank: int, num_ranks: int) -> list[tuple[int | None, tuple[Example, ...]]]:
        """The micro-batches of one rank, each with its number in the batch. Every rank gets as many, as collective
        operations need it: some the shortest example once more, as number None."""
        numbered = islice(enumerate(self.micro_batches), rank, None, num_ranks)
        mine: list[tuple[int | None, tuple[Example, ...]]] = list(numbered)
        num_rounds = -(-len(self.micro_batches) // num_ranks)
        if len(mine) < num_rounds:
            mine.append((None, self.micro_batches[-1][-1:]))
        return mine


@dataclass(frozen=True)
class Plan:
    """All steps of a training: each epoch is a permutation of its own, cut into batches; the last may be smaller."""

    data: TaskData
    settings: TrainSettings

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.data.examples) // self.settings.batch_size)

    @property
    def num_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    def batches(self, start: int = 0) -> Iterator[GlobalBatch]:
        examples, settings = self.data.examples, self.settings
        for epoch in range(start // self.steps_per_epoch, settings.epochs):
            order = np.random.default_rng([settings.seed, epoch]).permutation(len(examples))
            for number, chosen in enumerate(_cut(order.tolist(), settings.batch_size)):
                if epoch * self.steps_per_epoch + number >= start:
                    yield GlobalBatch.of([examples[index] for index in chosen], settings.micro_batch_size)


def _cut(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@dataclass(frozen=True)
class Evaluation:
    """After a step, of each task the mean cross-entropy of its supervised tokens in nats, and how many those are."""

    step: int
    losses: Mapping[str, float]
    supervised: Mapping[str, int]

    @property
    def loss(self) -> float:
        """The mean over the supervised tokens of all tasks: what decides."""
        return sum(loss * self.supervised[task] for task, loss in self.losses.items()) / sum(self.supervised.values())


def best(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    return min(evaluations, key=lambda one: one.loss, default=None)


@dataclass(frozen=True)
class HeldOut:
    """Examples that are not trained on, if any: evaluated after `every` so many steps (None: after each epoch) and the
    last one. A training ends after `patience` evaluations without a lower loss."""

    tasks: tuple[TaskData, ...]
    every: int | None = None
    patience: int | None = None
    keep_best: bool = False

    @cached_property
    def sha256(self) -> str | None:
        """None where there are no examples."""
        return sha256_text("\n".join(f"{data.task} {data.sha256}" for data in self.tasks)) if self.tasks else None

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        return {"sha256": self.sha256, "every": self.every, "patience": self.patience, "keep_best": self.keep_best}

    def is_due(self, step: int, plan: Plan) -> bool:
        return bool(self.tasks) and (step == plan.num_steps or step % (self.every or plan.steps_per_epoch) == 0)

    def is_over(self, evaluations: Sequence[Evaluation]) -> bool:
        lowest = best(evaluations)
        return bool(self.patience and lowest and len(evaluations) - evaluations.index(lowest) > self.patience)

    def kept(self, evaluations: Sequence[Evaluation]) -> int | None:
        lowest = best(evaluations) if self.keep_best else None
        return lowest.step if lowest else None


def evaluate(engine: Engine, ranks: Ranks, tasks: Sequence[TaskData], micro_batch_size: int, step: int) -> Evaluation:
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
            raise TrainingError(f"step {step}: the loss on the held-out examples of '{data.task}' is NaN or infinite")
    return Evaluation(step, losses, supervised)
