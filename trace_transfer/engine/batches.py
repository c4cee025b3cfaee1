"""The plan of a training: which examples each step reads, at which learning rate. It is the same on every rank.

A global batch is what one optimizer step learns from; a micro-batch is what one rank computes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np

from trace_transfer.data.examples import Example, TaskData
from trace_transfer.engine.settings import TrainSettings

Item = TypeVar("Item")


@dataclass(frozen=True)
class GlobalBatch:
    """The examples of one optimizer step, in micro-batches of like length, the longest first.

    How the examples are cut into micro-batches has no influence on the loss, only on how much padding is computed.
    """

    micro_batches: tuple[tuple[Example, ...], ...]

    @classmethod
    def of(cls, examples: Sequence[Example], micro_batch_size: int) -> GlobalBatch:
        """Examples of like length together, the longest first; ties in their order."""
        by_length = sorted(examples, key=lambda example: -len(example.input_ids))
        return cls(tuple(map(tuple, _cut(by_length, micro_batch_size))))

    @property
    def examples(self) -> Iterator[Example]:
        return (example for micro_batch in self.micro_batches for example in micro_batch)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens read, padding not counted."""
        return sum(len(example.input_ids) for example in self.examples)

    @cached_property
    def num_supervised(self) -> int:
        return sum(example.num_supervised for example in self.examples)

    def share(self, rank: int, num_ranks: int) -> list[tuple[int | None, tuple[Example, ...]]]:
        """The micro-batches of one rank, each with its number in the batch.

        Every rank gets as many (a collective operation needs them all): where they do not divide, the shortest example
        once more, with the number None, to be given no weight.
        """
        numbered = islice(enumerate(self.micro_batches), rank, None, num_ranks)
        mine: list[tuple[int | None, tuple[Example, ...]]] = list(numbered)
        num_rounds = -(-len(self.micro_batches) // num_ranks)
        if len(mine) < num_rounds:
            mine.append((None, self.micro_batches[-1][-1:]))
        return mine


@dataclass(frozen=True)
class Plan:
    """All steps of a training.

    Each epoch is a permutation of its own, cut into batches of `batch_size` examples; the last batch may be
    smaller. Every example is read once per epoch.
    """

    examples: Sequence[Example]
    epochs: int
    batch_size: int
    micro_batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def batches(self, start: int = 0) -> Iterator[GlobalBatch]:
        """The global batches from a step on."""
        for epoch in range(start // self.steps_per_epoch, self.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))
            for number, chosen in enumerate(_cut(order.tolist(), self.batch_size)):
                if epoch * self.steps_per_epoch + number >= start:
                    yield GlobalBatch.of([self.examples[index] for index in chosen], self.micro_batch_size)


def _cut(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Pieces of a size; the last one may be smaller."""
    return (items[start : start + size] for start in range(0, len(items), size))


def plan(data: TaskData, settings: TrainSettings) -> Plan:
    """Lay out a training on examples that each have a token to learn from."""
    return Plan(data.examples, settings.epochs, settings.batch_size, settings.micro_batch_size, settings.seed)
