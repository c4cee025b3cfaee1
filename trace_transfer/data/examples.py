"""Supervised examples as a model reads them, and batches of them: what training and Fisher information share.

Shapes: b examples of a batch, t tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

IGNORED = -100  # the label of a token that is not supervised, as in torch and transformers


@dataclass(frozen=True)
class Example:
    """One supervised example.

    `id` is that of task and record (counted from 0 in its file), `math:17`, or `math:17/2` where a record is read as
    several examples. `labels` are the tokens themselves where they belong to the answer, `IGNORED` elsewhere. Token t
    is predicted from those before it, so that the label of the first token is never used.
    """

    id: str
    input_ids: tuple[int, ...]  # special ones included
    labels: tuple[int, ...]
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
    """Examples padded on the right: left padding gives NaN with eager attention.

    `labels` are shifted already: `targets_bt[b, t]` is what position t must predict, the token at t + 1.
    """

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


def collate(examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """Pad examples on the right, where no supervised position sees it, and shift their labels."""
    longest = max(len(example.input_ids) for example in examples)
    shape = (len(examples), longest)
    ids_bt = torch.full(shape, pad_id, dtype=torch.int64)
    mask_bt = torch.zeros(shape, dtype=torch.int64)
    targets_bt = torch.full(shape, IGNORED, dtype=torch.int64)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids_bt[row, :length] = torch.tensor(example.input_ids)
        mask_bt[row, :length] = 1
        targets_bt[row, : length - 1] = torch.tensor(example.labels[1:])
    return Batch(tuple(example.id for example in examples), ids_bt, mask_bt, targets_bt)


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
