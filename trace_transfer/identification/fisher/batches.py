"""Examples as micro-batches of a causal language model, and their loss.

Shapes: k groups of n examples each, b = k n examples, t tokens of the longest, s positions that are supervised in any
of them, v vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trace_transfer.data.examples import IGNORED, Example, collate, losses
from trace_transfer.errors import NumericalError, listing

Group = tuple[Example, ...]


@dataclass(frozen=True)
class MicroBatch:
    """Groups of equally many examples, one after another, padded to one length, on the model's device. `positions_s`:
    where any example is supervised; only there logits are needed."""

    ids: tuple[str, ...]
    num_groups: int
    input_ids_bt: Tensor
    targets_bs: Tensor
    positions_s: Tensor


def group_examples(examples: Sequence[Example], batch_of: int) -> list[Group]:
    """Groups of consecutive examples; the last may be smaller."""
    return [tuple(examples[start : start + batch_of]) for start in range(0, len(examples), batch_of)]


def micro_batches(groups: Sequence[Group], tokens_at_once: int) -> list[list[Group]]:
    """Groups of one size and like length together, longest first: what does not fit in memory fails at once. None has
    more tokens, padding included, unless one group alone has."""
    batches: list[list[Group]] = []
    for group in sorted(groups, key=lambda group: (len(group), _longest(group)), reverse=True):
        last = batches[-1] if batches else []
        fits = last and len(last[0]) == len(group)
        if fits and (len(last) + 1) * len(group) * _longest(last[0]) <= tokens_at_once:
            last.append(group)
        else:
            batches.append([group])
    return batches


def _longest(group: Group) -> int:
    return max(len(example.input_ids) for example in group)


def prepare(groups: Sequence[Group], device: torch.device) -> MicroBatch:
    """Pad groups of equally many examples and put them on a device."""
    batch = collate([example for group in groups for example in group])
    positions_s = (batch.targets_bt != IGNORED).any(dim=0).nonzero().flatten()
    return MicroBatch(
        batch.ids, len(groups), batch.input_ids_bt.to(device), batch.targets_bt[:, positions_s].to(device),
        positions_s.to(device),
    )  # fmt: skip


def run_model(model: nn.Module, batch: MicroBatch, **arguments: Any) -> Any:
    """The model's forward pass, with a mask that hides nothing.

    Padding is on the right, so that no token of a text sees it in a causal model. Were it masked, a padded position
    might see nothing at all (behind a sliding window), and then is NaN with eager attention in float64; and attention
    has a faster way without a mask.
    """
    everything_bt = torch.ones_like(batch.input_ids_bt)
    return model(input_ids=batch.input_ids_bt, attention_mask=everything_bt, use_cache=False, **arguments)


def loss_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    """The sum over groups of each group's mean loss over its supervised tokens."""
    keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits_bsv = run_model(model, batch, **({"logits_to_keep": batch.positions_s} if keep else {})).logits
    if logits_bsv.shape[1] != len(batch.positions_s):
        logits_bsv = logits_bsv[:, batch.positions_s]
    summed_k = losses(logits_bsv, batch.targets_bs).view(batch.num_groups, -1).sum(dim=1)
    losses_k = summed_k / (batch.targets_bs != IGNORED).view(batch.num_groups, -1).sum(dim=1)
    if not torch.isfinite(losses_k).all():
        bad = (~torch.isfinite(losses_k)).nonzero().flatten().tolist()
        size = len(batch.ids) // batch.num_groups
        raise NumericalError(
            f"Fisher information: the loss is NaN or Inf for {len(bad)} of {batch.num_groups} examples or batches:\n"
            + listing([", ".join(batch.ids[index * size : (index + 1) * size]) for index in bad])
            + "\ntry float32, or look at the model's weights"
        )
    return losses_k.sum()
