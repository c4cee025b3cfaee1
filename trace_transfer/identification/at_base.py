"""Score inputs of methods that need no warm start: gradients and Fisher information at the base, reduced as they come.

Reads a base model's weights, a layer at a time, and each task's examples. Gives `ScoreInputs` over tensors or rows.

Shapes: P entries, U units of a tensor, N sets (tasks times replicates, perhaps generic text), E parameters of a unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trace_transfer.core_sets.selection import entries_of
from trace_transfer.data.examples import Example, TaskData
from trace_transfer.data.probe import load_probe
from trace_transfer.families.anatomy import Split
from trace_transfer.families.model_handle import OpenModel, load_tokenizer
from trace_transfer.identification.deltas import gram_of
from trace_transfer.identification.fisher.information import draw
from trace_transfer.identification.gradients import BaseGradients, Moments
from trace_transfer.identification.scores import METHODS
from trace_transfer.identification.scoring import ScoreInputs
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.identification.warm_starting import parts_of
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.models.running import resolve_device
from trace_transfer.progress import Reporter

Array = NDArray[np.float64]
AT_ONCE = 1 << 22  # elements whose inner products are taken in float64 at once


@dataclass(frozen=True)
class BaseSets:
    """The sets of examples whose gradients are taken.

    Attributes:
        groups: for each task its sets, one for each replicate.
        text: whether the last set is generic text.
    """

    tasks: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    examples: tuple[tuple[Example, ...], ...]
    text: bool


def sets_of(base: OpenModel, tasks: Sequence[TaskData], settings: IdentifySettings) -> BaseSets:
    """Draw each task's examples, and texts of the probe set where they stand for other tasks."""
    start, score = settings.warm_start, settings.score
    seed, count = start.train.seed, score.gradient_examples
    examples: list[tuple[Example, ...]] = []
    groups = []
    for task in tasks:
        parts = [draw(part, count, seed) for _, part in parts_of(task, start.replicates, seed)]
        groups.append(tuple(range(len(examples), len(examples) + len(parts))))
        examples += parts
    reads = "against" not in METHODS[score.method].ignores
    text = reads and (score.against == "text" or (score.against == "auto" and len(tasks) == 1))
    if text:
        examples.append(_texts(base, count, start.max_length, seed))
    return BaseSets(tuple(task.task for task in tasks), tuple(groups), tuple(examples), text)


def _texts(base: OpenModel, count: int, max_length: int, seed: int) -> tuple[Example, ...]:
    """Texts of the shipped probe set, every token learned."""
    tokenizer, examples = load_tokenizer(base.source), []
    for number, text in enumerate(load_probe().texts):
        ids = tuple(tokenizer(text)["input_ids"][:max_length])
        if len(ids) > 1:
            examples.append(Example(f"probe set:{number}", ids, ids))
    whole = TaskData("text", tuple(examples), len(examples), 0, 0, "", "")
    return draw(whole, count, seed)


def base_gradients(base: OpenModel, sets: BaseSets, settings: IdentifySettings, reporter: Reporter) -> BaseGradients:
    """The model, run forward on all sets."""
    weights, device = open_checkpoint(base.source), resolve_device(settings.compute.device)
    with reporter.task("running the base forward", base.anatomy.num_layers) as advance:
        return BaseGradients(base, weights, sets.examples, device, advance)


def inputs_at_base(
    base: OpenModel, gradients: BaseGradients, sets: BaseSets, splits: Mapping[str, Split] | None, reporter: Reporter
) -> ScoreInputs:
    """Inner products of gradients and Fisher information, entry by entry."""
    reduced = {}
    with reporter.task("gradients at the base", base.anatomy.num_layers) as advance:
        gradients.advance = advance
        for moments in gradients.tensors():
            reduced[moments.name] = _reduced(moments, (splits or {}).get(moments.name))
    shapes = base.anatomy.inventory.shapes
    entries = [
        entry
        for name, shape in shapes.items()
        for entry in entries_of(base.anatomy, name, shape, (splits or {}).get(name))
    ]
    gram_PNN, norms_P, fisher_PN = (np.concatenate(parts) for parts in zip(*(reduced[n] for n in shapes), strict=True))
    num = sum(map(len, sets.groups))
    return ScoreInputs(
        tasks=sets.tasks, deltas_of_K=sets.groups, entries=tuple(entries), gram_PNN=gram_PNN[:, :num, :num],
        base_norms_P=norms_P, fisher_PN=fisher_PN[:, :num], text_P=fisher_PN[:, num] if sets.text else None,
    )  # fmt: skip


def _reduced(moments: Moments, split: Split | None) -> tuple[Array, Array, Array]:
    """Inner products of the mean gradients [U, N, N], norms of the values [U], Fisher information [U, N]."""
    mean_NUE, square_NUE, value_UE = (
        _by_unit(one, split, one.dim() - moments.value.dim()).cpu()
        for one in (moments.mean, moments.square, moments.value)
    )
    if split is None:
        gram_UNN = gram_of(mean_NUE[:, 0])[None]
    else:
        at_once = max(1, AT_ONCE // mean_NUE[:, 0].numel())
        parts = (part.double().transpose(0, 1) for part in mean_NUE.split(at_once, dim=1))
        gram_UNN = torch.cat([part @ part.mT for part in parts])
    norms_U = torch.linalg.vector_norm(value_UE, dim=-1, dtype=torch.float64)
    fisher_UN = square_NUE.sum(dim=-1, dtype=torch.float64).T
    return gram_UNN.numpy(), norms_U.numpy(), fisher_UN.numpy()


def _by_unit(values: Tensor, split: Split | None, before: int) -> Tensor:
    """The elements of each unit of a tensor side by side, [..., U, E], behind so many other dimensions."""
    if split is None:
        return values.flatten(before).unsqueeze(before)
    first = values.movedim(before + split.dim, before)
    units = first.shape[before] // split.size
    return first.reshape(*first.shape[:before], units, -1)
