"""Score inputs of methods that need no warm start: gradients and Fisher information at the base, reduced as they come.

Reads a base model's weights, a layer at a time, and each task's examples. Gives `ScoreInputs` over tensors or rows, and
the best single parameters of all: while tensors come, those above the lowest that can still be chosen are kept.

Shapes: P entries, U units of a tensor, N sets (tasks times replicates, perhaps generic text), E parameters of a unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trace_transfer.core_sets.masks import Chosen, Mask
from trace_transfer.core_sets.selection import ROUNDING, entries_of
from trace_transfer.data.examples import Example, TaskData
from trace_transfer.data.probe import load_probe
from trace_transfer.engine.slices import index_of, taken, with_part
from trace_transfer.families.anatomy import Split
from trace_transfer.families.model_handle import OpenModel, load_tokenizer
from trace_transfer.identification.deltas import gram_of
from trace_transfer.identification.fisher import draw
from trace_transfer.identification.gradients import BaseGradients, Moments
from trace_transfer.identification.scores import METHODS, ScoreSettings, mean_noise
from trace_transfer.identification.scoring import Array, Known, ScoreInputs, takes_part
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.identification.warm_starting import parts_of
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.models.running import resolve_device
from trace_transfer.progress import Reporter

AT_ONCE = 1 << 22  # elements whose inner products are taken in float64 at once


def at_base(
    base: OpenModel, tasks: Sequence[TaskData], settings: IdentifySettings, splits: Mapping[str, Split],
    reporter: Reporter,
) -> ScoreInputs:  # fmt: skip
    """Inner products of gradients and Fisher information; where they are chosen, the single parameters of each task."""
    score, num_layers = settings.score, base.anatomy.num_layers
    sets, groups = _sets(base, tasks, settings)
    num = sum(map(len, groups))
    if len(sets) > num:
        reporter.note(f"{score.method}: against generic text, the shipped probe set")
    with reporter.task("running the base forward", num_layers) as advance:
        device = resolve_device(settings.compute.device)
        gradients = BaseGradients(base, open_checkpoint(base.source), sets, device, advance)
    with reporter.task("gradients at the base", num_layers) as gradients.advance:
        reduced = {one.name: _reduced(one, splits.get(one.name)) for one in gradients.tensors()}
    shapes = base.anatomy.inventory.shapes
    gram_PNN, norms_P, fisher_PN = (np.concatenate(parts) for parts in zip(*(reduced[n] for n in shapes), strict=True))
    inputs = ScoreInputs(
        model=base.identity, tasks=tuple(task.task for task in tasks),
        made_with={"seed": settings.warm_start.train.seed}, deltas_of_K=tuple(groups),
        entries=tuple(chain(*(entries_of(base.anatomy, n, shape, splits.get(n)) for n, shape in shapes.items()))),
        gram_PNN=gram_PNN[:, :num, :num], base_norms_P=norms_P, fisher_PN=fisher_PN[:, :num],
        text_P=fisher_PN[:, num] if len(sets) > num else None,
    )  # fmt: skip
    if score.unit != "parameters":
        return inputs
    within = Known.of(score, inputs.tasks, base.identity).masks
    with reporter.task("choosing parameters", num_layers) as gradients.advance:
        return replace(inputs, chosen=_best_parameters(gradients, inputs, score, within))


def _sets(
    base: OpenModel, tasks: Sequence[TaskData], settings: IdentifySettings
) -> tuple[list[tuple[Example, ...]], list[tuple[int, ...]]]:
    """Draw each task's examples, then texts where they stand for other tasks; and which sets are each task's."""
    start, score = settings.warm_start, settings.score
    seed, count = start.train.seed, score.gradient_examples
    sets: list[tuple[Example, ...]] = []
    groups = []
    for task in tasks:
        parts = [draw(part.examples, count, seed) for _, part in parts_of(task, start.replicates, seed)]
        groups.append(tuple(range(len(sets), len(sets) + len(parts))))
        sets += parts
    alone = score.against == "auto" and len(tasks) == 1
    if "against" not in METHODS[score.method].ignores and (score.against == "text" or alone):
        tokenizer = load_tokenizer(base.source)
        texts = [tuple(tokenizer(one)["input_ids"][: start.max_length]) for one in load_probe().texts]
        whole = [Example(f"probe set:{number}", ids, ids) for number, ids in enumerate(texts) if len(ids) > 1]
        sets.append(draw(whole, count, seed))  # every token of them is learned
    return sets, groups


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


def _best_parameters(
    gradients: BaseGradients, inputs: ScoreInputs, settings: ScoreSettings, within: Mapping[str, Mask]
) -> list[dict[str, Chosen]]:
    """The best single parameters of each task within its mask; one without any gradient has no score."""
    method = METHODS[settings.method].of_parameters
    assert method is not None  # refused before
    order = {entry.name: number for number, entry in enumerate(inputs.entries)}
    part_P = takes_part(inputs.entries, settings)
    count = int(settings.ratio * sum(entry.num_elements for entry in inputs.entries) + ROUNDING)
    best = [BestPlaces(max(1, count)) for _ in inputs.tasks]
    statistics = inputs.statistics().of_entries(part_P)
    means = [0.0] * len(inputs.tasks)
    if inputs.text_P is not None or len(inputs.tasks) > 1:
        means = [mean_noise(statistics.others_P(task), statistics.numel_P) for task in range(len(inputs.tasks))]
    for moments in gradients.tensors():
        if not part_P[order[moments.name]]:
            continue
        own_K = [moments.square[list(group)].mean(dim=0) for group in inputs.deltas_of_K]
        for task, group in enumerate(inputs.deltas_of_K):
            signal = moments.mean[list(group)].mean(dim=0).square()
            rest = [moments.square[-1]] if inputs.text_P is not None else [*own_K[:task], *own_K[task + 1 :]]
            others = torch.stack(rest or [torch.zeros_like(signal)]).mean(dim=0)
            scores = method(signal, own_K[task], others, means[task])
            if within:
                scores = scores * _cells(within[inputs.tasks[task]], moments)
            best[task].add(order[moments.name], scores.flatten().cpu())
    names = [entry.name for entry in inputs.entries]
    return [{names[number]: Chosen(places) for number, places in one.result().items()} for one in best]


def _cells(mask: Mask, moments: Moments) -> Tensor:
    zeros, part = torch.zeros_like(moments.value), mask.parts.get(moments.name)
    if part is None:
        return zeros + float(mask.trains(moments.name))
    return with_part(zeros, part, index_of(part, zeros.device), torch.ones_like(taken(zeros, part)))


class BestPlaces:
    """The places of the highest values of some vectors that come one after another; equal ones in the vectors' order.

    Values that are not above 0 are none. No more than twice as many as are wanted are kept, but for equal ones."""

    def __init__(self, count: int) -> None:
        self.count, self.least = count, 0.0
        self._kept: list[tuple[int, Tensor, Tensor]] = []  # vector, values, places

    def add(self, number: int, values: Tensor) -> None:
        places = (values >= self.least if self.least > 0 else values > 0).nonzero().flatten()
        self._kept.append((number, values[places], places.to(torch.int32 if len(values) < 1 << 31 else torch.int64)))
        if sum(len(values) for _, values, _ in self._kept) > 2 * self.count:
            self._raise()

    def _raise(self) -> None:
        every = torch.cat([values for _, values, _ in self._kept])
        if len(every) > self.count:
            self.least = float(every.kthvalue(len(every) - self.count + 1).values)
            kept = [(number, values >= self.least, values, places) for number, values, places in self._kept]
            self._kept = [(number, values[high], places[high]) for number, high, values, places in kept]

    def result(self) -> dict[int, NDArray[np.int64]]:
        self._raise()
        room, found = self.count - sum(int((values > self.least).sum()) for _, values, _ in self._kept), {}
        for number, values, places in sorted(self._kept, key=lambda one: one[0]):
            chosen = values > self.least
            equal = (values == self.least).nonzero().flatten()[:room]
            room -= len(equal)
            chosen[equal] = True
            if chosen.any():
                found[number] = places[chosen].to(torch.int64).numpy()
        return found


def _by_unit(values: Tensor, split: Split | None, before: int) -> Tensor:
    """The elements of each unit of a tensor side by side, [..., U, E], behind so many other dimensions."""
    if split is None:
        return values.flatten(before).unsqueeze(before)
    first = values.movedim(before + split.dim, before)
    return first.reshape(*first.shape[:before], first.shape[before] // split.size, -1)
