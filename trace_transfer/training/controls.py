"""Controls: sets as large as the core set that no score chose.

The paper has none; only they tell whether a result comes from *which* tensors, rows or parameters are trained or from
how many. A control is a small function to a mask, by name in `CONTROLS`; what is random depends on the seed and the
task's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any

import numpy as np

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.masks import Chosen, Mask, MaskError, Part
from trace_transfer.core_sets.selection import select
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.files import sha256_text
from trace_transfer.models.sources import numel


@dataclass(frozen=True)
class Case:
    """What a control is made for: a task's core set, and those of all tasks."""

    core: CoreFile
    anatomy: Anatomy
    seed: int
    unit: str  # what `random` has as many of, tensors or elements
    file: str
    cores: Sequence[CoreFile] = ()

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.anatomy.inventory.shapes

    @property
    def scored(self) -> list[CoreTensor]:
        return [tensor for tensor in self.core.parameters if tensor.score is not None]

    @property
    def size(self) -> int:
        return sum(one.num_core for one in self.core.core)

    @property
    def places(self) -> dict[str, tuple[int, str]]:
        """Name → (layer, name below the layer), of the tensors in layers."""
        whole = re.compile(re.escape(self.anatomy.layer_path) + r"\.(0|[1-9][0-9]*)\.(.+)")
        found = {name: whole.fullmatch(name) for name in self.shapes}
        return {name: (int(match[1]), match[2]) for name, match in found.items() if match}

    def generator(self, what: str | None = None) -> np.random.Generator:
        """Draws of its own for each seed and thing; that of a task where none is said."""
        return np.random.default_rng([self.seed, int(sha256_text(what or self.core.task)[:16], 16)])

    def mask(self, entries: Sequence[CoreTensor] | None = None) -> Mask:
        """Of entries of the file; None for its core set."""
        core = self.core
        if entries is not None:
            marked = tuple(p if p.core else p.model_copy(update={"core": True}) for p in entries)
            core = core.model_copy(update={"parameters": marked})
        return Mask.of_core(core, self.shapes, self.anatomy.inventory.tied, self.file)

    def parameters(self, counts: Mapping[str, int]) -> Mask:
        draws, parts = self.generator(), dict[str, Part | None]()
        for name, count in counts.items():
            if count:
                owner = self.anatomy.inventory.tied.get(name, name)
                places = draws.choice(numel(self.shapes[owner]), count, replace=False, shuffle=False)
                parts[owner] = Chosen(np.sort(places))
        return Mask(parts)

    def drawn(self, entries: Sequence[CoreTensor], wanted: int) -> Mask:
        """Random entries of so many parameters together, or of single ones of each tensor the same share."""
        sizes = [one.num_elements for one in entries]
        if self.core.chosen is not None:
            return self.parameters(dict(zip((one.name for one in entries), _shares(sizes, wanted), strict=True)))
        order = self.generator().permutation(len(entries)).tolist()
        return self.mask([entries[index] for index in _as_many_elements(order, sizes, wanted)])


def random_set(case: Case) -> Mask:
    """Drawn by chance from the entries that have a score, some of the core set perhaps among them. With `tensors`,
    exactly as many entries as are core. With `elements`, entries with about as many elements together; what is missing
    or too much is at most half of an entry that was left out, and mostly far less."""
    core, scored = case.core, case.scored
    if sum(one.num_elements for one in scored) == case.size:
        raise MaskError(f"{case.file}: all {len(scored)} tensors that have a score are core: take a smaller ratio")
    if case.unit == "tensors" and core.chosen is None:
        order = case.generator().permutation(len(scored)).tolist()
        return case.mask([scored[index] for index in order[: len(core.core)]])
    return case.drawn(scored, case.size)


def random_within(case: Case, roles: bool = False) -> Mask:
    """Of each tensor (of each component in a fused one) as many random rows or parameters as its core set has; with
    `roles`, of each component as many random entries, in whatever layers."""
    core = case.core
    if not roles and core.method.unit not in ("rows", "parameters"):
        raise MaskError(f"{case.file}: random-within draws rows or parameters, and its core set is of whole tensors")
    if roles and core.chosen is not None:
        raise MaskError(f"{case.file}: role-profile draws tensors or rows, and its core set is of single parameters")
    if core.chosen is not None:
        return case.parameters({one.name: one.num_core for one in core.core})
    groups: dict[tuple[str, str], list[CoreTensor]] = {}
    for entry in case.scored:
        groups.setdefault(("" if roles else entry.name, entry.component or ""), []).append(entry)
    drawn, draws = [], case.generator()
    for _, entries in sorted(groups.items()):
        count = sum(entry.core for entry in entries)
        drawn += [entries[index] for index in draws.permutation(len(entries))[:count]]
    mask = case.mask(drawn)
    if mask == case.mask():
        where, what = ("component", "entries") if roles else ("tensor", "rows")
        raise MaskError(f"{case.file}: within each {where} all {what} are core, or none: this control can tell nothing")
    return mask


def one_set(case: Case) -> Mask:
    """One core set for all tasks: by the mean of their scores, with this task's ratio."""
    if len(case.cores) < 2 or any(core.chosen is not None for core in case.cores):
        raise MaskError(f"{case.file}: one-set takes scores of tensors or rows, of two tasks or more")
    scores: dict[Any, list[float]] = {}
    for core in case.cores:
        for one in core.parameters:
            if one.score is not None:
                scores.setdefault(one.place, []).append(one.score)
    entries = [one.model_copy(update={"score": fmean(scores[one.place])}) if one.place in scores else one
               for one in case.cores[0].parameters]  # fmt: skip
    return case.mask([one for one in select(entries, case.core.method.ratio, case.core.method.unit) if one.core])


def norms_and_random(case: Case, head: bool = False) -> Mask:
    """All norms (and the output head), and random entries of the core set's kind up to its size."""
    norms = [one.name for one in case.anatomy.units if one.role == "norm" or one.component.startswith("norm.")]
    heads = [one.name for one in case.anatomy.units if head and one.component == "head"]
    fixed = Mask(dict.fromkeys(norms + heads))
    room = case.size - fixed.numel(case.shapes)
    if room < 0:
        raise MaskError(f"{case.file}: its core set is smaller than what this control always trains: raise its ratio")
    return fixed if room == 0 else fixed | case.drawn([one for one in case.scored if not fixed.trains(one.name)], room)


def shuffled_layers(case: Case) -> Mask:
    """The core set with each of its tensors moved to the same place in another layer, by one cycle of all layers, which
    depends on the seed alone, so that two tasks keep what they share.

    Where the next layer of the cycle lacks that tensor or has it in another shape, the cycle is followed on: each
    tensor has one image, no two have the same. What stands outside the layers, or in one alone, stays."""
    cycle = case.generator("layers").permutation(case.anatomy.num_layers).tolist()
    after = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    shapes, place = case.shapes, case.places
    name_at = {where: name for name, where in place.items()}

    def image(name: str) -> str:
        layer, tail = place.get(name, (None, ""))
        while layer is not None and (layer := after[layer]) != place[name][0]:
            other = name_at.get((layer, tail))
            if other is not None and shapes[other] == shapes[name]:
                return other
        return name

    own = case.mask()
    mask = Mask({image(name): part for name, part in own.parts.items()})
    if mask == own:
        raise MaskError(f"{case.file}: shuffled, the core set is the same: this control can tell nothing")
    return mask


def whole_layers(case: Case, last: bool = False) -> Mask:
    """All of the lowest (highest) layers, as many as come nearest to the core set's elements, at least one."""
    order = range(case.anatomy.num_layers)[:: -1 if last else 1]
    places, wanted = case.places, case.mask().numel(case.shapes)
    names = [[name for name, (at, _) in places.items() if at == layer] for layer in order]
    totals = list(accumulate(sum(numel(case.shapes[name]) for name in layer) for layer in names))
    best = min(range(len(totals)), key=lambda index: (abs(totals[index] - wanted), index))
    return Mask(dict.fromkeys(name for layer in names[: best + 1] for name in layer))


CONTROLS: Mapping[str, Callable[[Case], Mask]] = {
    "random": random_set,
    "random-within": random_within,
    "role-profile": lambda case: random_within(case, roles=True),
    "one-set": one_set,
    "norms-random": norms_and_random,
    "head-norms-random": lambda case: norms_and_random(case, head=True),
    "shuffled": shuffled_layers,
    "first": whole_layers,
    "last": lambda case: whole_layers(case, last=True),
}


def _shares(sizes: Sequence[int], wanted: int) -> list[int]:
    """So many of all, divided by size: what rounding leaves goes to those that lose most by it."""
    total = sum(sizes)
    counts = [wanted * size // total for size in sizes]
    by_loss = sorted(range(len(sizes)), key=lambda index: -(wanted * sizes[index] % total))
    for index in by_loss[: wanted - sum(counts)]:
        counts[index] += 1
    return counts


def _as_many_elements(order: Sequence[int], sizes: Sequence[int], wanted: int) -> list[int]:
    """In that order until one does not fit any more, and then of all that are left the one that comes nearest, if any.

    To go on with whatever still fits would come nearer, but would end with all norms and biases of a model in each set.
    """
    candidates = [index for index in order if sizes[index] <= wanted]
    totals = list(accumulate(sizes[index] for index in candidates))
    count = sum(total <= wanted for total in totals)
    missing = wanted - totals[count - 1]
    nearest = min(candidates[count:], key=lambda index: abs(missing - sizes[index]), default=None)
    if nearest is not None and abs(missing - sizes[nearest]) < missing:
        return [*candidates[:count], nearest]
    return candidates[:count]
