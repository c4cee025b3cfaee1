"""Supervised examples as a model reads them, and batches of them: what training and Fisher information share.

Shapes: b examples of a batch, t tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100  # the label of a token that is not supervised, as in torch and transformers


@dataclass(frozen=True)
class Example:
    """One supervised example. Token t is predicted from those before it: the label of the first is never used."""

    id: str  # of task and record, `math:17`, or `math:17/2` where a record is read as several examples
    input_ids: tuple[int, ...]  # special ones included
    labels: tuple[int, ...]  # the tokens themselves where they belong to the answer, `IGNORED` elsewhere
    # (First, end) of the tokens of the last answer's own text, without what the template puts around it, if known.
    content: tuple[int, int] | None = None

    @cached_property
    def num_supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class TaskData:
    """A task's examples, ready to be trained on."""

    task: str
    examples: tuple[Example, ...]
    num_records: int  # in the data, before `max_examples` and anything left out
    num_cut: int  # examples longer than the maximal length
    num_left_out: int  # as well
    template: str
    sha256: str  # of all token ids and labels
    notes: tuple[str, ...] = ()  # what was left out or is otherwise than it looks, with counts
    shown: tuple[tuple[str, bool], ...] = ()  # the first example as text: pieces, and whether each is learned


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right; `targets_bt[b, t]` is what position t must predict, the token at t + 1."""

    ids: tuple[str, ...]
    input_ids_bt: Tensor
    attention_mask_bt: Tensor
    targets_bt: Tensor


@dataclass(frozen=True)
class PackedBatch:
    """Examples one after the other in one row; positions begin anew at each."""

    input_ids_1t: Tensor
    position_ids_1t: Tensor
    targets_1t: Tensor


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples on the right, where no supervised position sees it, and shift their labels."""
    return Batch(
        tuple(example.id for example in examples),
        padded([example.input_ids for example in examples]),
        padded([(1,) * len(example.input_ids) for example in examples]),
        padded([(*example.labels[1:], IGNORED) for example in examples], IGNORED),
    )


def padded(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    """Rows as int64 [rows, longest], padded on the right: on the left, eager attention would give NaN everywhere."""
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=value)


def packed(examples: Sequence[Example]) -> PackedBatch:
    """Put examples into one row, their labels shifted within each."""
    rows = [
        (token, position, target)
        for example in examples
        for position, (token, target) in enumerate(zip(example.input_ids, (*example.labels[1:], IGNORED), strict=True))
    ]
    return PackedBatch(*torch.tensor(rows).T[:, None])


def losses(logits_btv: Tensor, targets_bt: Tensor) -> Tensor:
    """Cross-entropy of each position in float32, [b, t]; 0 where nothing is supervised."""
    flat = torch.nn.functional.cross_entropy(
        logits_btv.float().flatten(0, 1), targets_bt.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets_bt.shape)
