"""Controls: sets as large as the core set that no score chose.

The paper has none; only they tell whether a result comes from *which* tensors, rows or parameters are trained or from
how many. A control is a small function from a core file to a mask, by name in `CONTROLS`; what is random depends on the
seed and the task's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np

from trace_transfer.core_sets.chosen import Chosen
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.masks import Mask, MaskError, Part
from trace_transfer.families.anatomy import Anatomy, Unit
from trace_transfer.files import sha256_text
from trace_transfer.models.sources import numel

NORM = "norm"  # a role
Control = Callable[[CoreFile, Anatomy, int, str, str], Mask]


def random_set(core: CoreFile, anatomy: Anatomy, seed: int, unit: str, file: str) -> Mask:
    """Drawn by chance from the entries that have a score.

    Entries are tensors, or parts of fused ones, or heads and neurons, whatever the file lists; with another seed or
    task the set is another one, and it may have some of the core set in it.

    Args:
        unit: `tensors`: exactly as many entries as are core. `elements`: entries with about as many elements together;
            what is missing or too much is at most half of an entry that was left out, and mostly far less.
        file: for messages.

    Raises:
        MaskError: all entries that have a score are core.
    """
    scored = [tensor for tensor in core.parameters if tensor.score is not None]
    if sum(one.num_elements for one in scored) == _size(core):
        raise MaskError(
            f"{file}: all {len(scored)} tensors that have a score are core: any set drawn from them would be the "
            "same; make the core set smaller with `trace-transfer select --ratio`"
        )
    if unit == "tensors" and core.chosen is None:
        order = _generator(seed, core.task).permutation(len(scored)).tolist()
        return _mask([scored[index] for index in order[: len(core.core)]], core, anatomy, file)
    return _drawn(core, scored, _size(core), anatomy, seed, file)


def random_within(core: CoreFile, anatomy: Anatomy, seed: int, unit: str, file: str) -> Mask:
    """Of each tensor (of each component in a fused one) as many random rows or parameters as its core set has.

    Raises:
        MaskError: whole tensors are core, or all rows of every tensor that has any.
    """
    if core.method.unit not in ("rows", "parameters"):
        raise MaskError(f"{file}: random-within draws rows or parameters, and its core set is of whole tensors")
    if core.chosen is not None:
        return _random_parameters(core, {one.name: one.num_core for one in core.core}, anatomy, seed)
    groups: dict[tuple[str, str | None], list[CoreTensor]] = {}
    for entry in core.parameters:
        if entry.score is not None:
            groups.setdefault((entry.name, entry.component), []).append(entry)
    drawn, draws = [], _generator(seed, core.task)
    for _, entries in sorted(groups.items()):
        count = sum(entry.core for entry in entries)
        drawn += [entries[index] for index in draws.permutation(len(entries))[:count]]
    mask = _mask(drawn, core, anatomy, file)
    if mask == Mask.of_core(core, anatomy.inventory.shapes, anatomy.inventory.tied, file):
        raise MaskError(f"{file}: within each tensor all rows are core, or none: this control can tell nothing here")
    return mask


def norms_and_random(core: CoreFile, anatomy: Anatomy, seed: int, unit: str, file: str) -> Mask:
    """All norms, and of the core set's kind of entries random ones up to its size.

    Raises:
        MaskError: the norms alone are larger than the core set.
    """
    return _with_random(core, anatomy, seed, file, lambda one: one.role == NORM or one.component.startswith("norm."))


def head_norms_and_random(core: CoreFile, anatomy: Anatomy, seed: int, unit: str, file: str) -> Mask:
    """The same with the output head (the embedding, where it is tied)."""
    return _with_random(
        core, anatomy, seed, file,
        lambda one: one.role == NORM or one.component.startswith("norm.") or one.component == "head",
    )  # fmt: skip


def shuffled_layers(core: CoreFile, anatomy: Anatomy, seed: int, unit: str, file: str) -> Mask:
    """The core set with each of its tensors moved to the same place in another layer, by one cycle of all layers.

    Where the next layer of the cycle lacks that tensor or has it in another shape, the cycle is followed on: each
    tensor has one image, no two have the same, and the set keeps its numbers of tensors and of elements. What stands
    outside the layers stays, and so does what no other layer has. The cycle depends on the seed alone, so that two
    tasks keep what they share.

    Raises:
        MaskError: the set is the same afterwards.
    """
    cycle = _generator(seed, "layers").permutation(anatomy.num_layers).tolist()
    after = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    shapes, tied = anatomy.inventory.shapes, anatomy.inventory.tied
    place = _places(anatomy)
    name_at = {where: name for name, where in place.items()}

    def image(name: str) -> str:
        if name not in place:
            return name
        layer, tail = place[name]
        while (layer := after[layer]) != place[name][0]:
            other = name_at.get((layer, tail))
            if other is not None and shapes[other] == shapes[name]:
                return other
        return name

    own = Mask.of_core(core, shapes, tied, file)
    mask = Mask({image(name): part for name, part in own.parts.items()})
    if mask == own:
        raise MaskError(
            f"{file}: with its layers shuffled the core set is the same: it lies outside the layers, or has the same "
            "part of each layer; this control can tell nothing here"
        )
    return mask


def first_layers(core: CoreFile, anatomy: Anatomy, seed: int, unit: str, file: str) -> Mask:
    """All of the lowest layers: as many as come nearest to the core set's elements, the fewer of two, at least one."""
    return _whole_layers(core, anatomy, range(anatomy.num_layers), file)


def last_layers(core: CoreFile, anatomy: Anatomy, seed: int, unit: str, file: str) -> Mask:
    """All of the highest layers: as many as come nearest to the core set's elements, the fewer of two, at least one."""
    return _whole_layers(core, anatomy, range(anatomy.num_layers - 1, -1, -1), file)


CONTROLS: Mapping[str, Control] = {
    "random": random_set,
    "random-within": random_within,
    "norms-random": norms_and_random,
    "head-norms-random": head_norms_and_random,
    "shuffled": shuffled_layers,
    "first": first_layers,
    "last": last_layers,
}


def _whole_layers(core: CoreFile, anatomy: Anatomy, order: Sequence[int], file: str) -> Mask:
    shapes = anatomy.inventory.shapes
    wanted = Mask.of_core(core, shapes, anatomy.inventory.tied, file).numel(shapes)
    names: dict[int, list[str]] = {layer: [] for layer in order}
    for name, (layer, _) in _places(anatomy).items():
        names[layer].append(name)
    totals = list(accumulate(sum(numel(shapes[name]) for name in names[layer]) for layer in order))
    best = min(range(len(totals)), key=lambda index: (abs(totals[index] - wanted), index))
    return Mask(dict.fromkeys(name for layer in order[: best + 1] for name in names[layer]))


def _size(core: CoreFile) -> int:
    """Parameters of a core set."""
    return sum(one.num_core for one in core.core)


def _with_random(core: CoreFile, anatomy: Anatomy, seed: int, file: str, wanted: Callable[[Unit], bool]) -> Mask:
    """Whole tensors, and random entries beside them up to the core set's size."""
    shapes = anatomy.inventory.shapes
    fixed = Mask(dict.fromkeys(one.name for one in anatomy.units if wanted(one)))
    room = _size(core) - fixed.numel(shapes)
    if room < 0:
        raise MaskError(
            f"{file}: its core set has {_size(core):,} parameters, fewer than the {fixed.numel(shapes):,} of the "
            f"{len(fixed.parts)} tensors that this control always trains; take a larger ratio"
        )
    others = [one for one in core.parameters if one.score is not None and not fixed.trains(one.name)]
    return fixed if room == 0 else fixed | _drawn(core, others, room, anatomy, seed, file)


def _drawn(core: CoreFile, entries: Sequence[CoreTensor], wanted: int, anatomy: Anatomy, seed: int, file: str) -> Mask:
    """Random entries of so many parameters together, or of single ones of each tensor the same share."""
    sizes = [one.num_elements for one in entries]
    if core.chosen is not None:
        counts = dict(zip((one.name for one in entries), _shares(sizes, wanted), strict=True))
        return _random_parameters(core, counts, anatomy, seed)
    order = _generator(seed, core.task).permutation(len(entries)).tolist()
    return _mask([entries[index] for index in _as_many_elements(order, sizes, wanted)], core, anatomy, file)


def _shares(sizes: Sequence[int], wanted: int) -> list[int]:
    """So many of all, divided by size: what rounding leaves goes to those that lose most by it."""
    total = sum(sizes)
    counts = [wanted * size // total for size in sizes]
    by_loss = sorted(range(len(sizes)), key=lambda index: -(wanted * sizes[index] % total))
    for index in by_loss[: wanted - sum(counts)]:
        counts[index] += 1
    return counts


def _random_parameters(core: CoreFile, counts: Mapping[str, int], anatomy: Anatomy, seed: int) -> Mask:
    """Of each tensor so many single parameters."""
    draws, inventory = _generator(seed, core.task), anatomy.inventory
    parts: dict[str, Part | None] = {}
    for name, count in counts.items():
        if count:
            owner = inventory.tied.get(name, name)
            places = draws.choice(numel(inventory.shapes[owner]), count, replace=False, shuffle=False)
            parts[owner] = Chosen(np.sort(places))
    return Mask(parts)


def _places(anatomy: Anatomy) -> dict[str, tuple[int, str]]:
    """Name → (layer, name below the layer), of the tensors in layers."""
    whole = re.compile(re.escape(anatomy.layer_path) + r"\.(0|[1-9][0-9]*)\.(.+)")
    found = {name: whole.fullmatch(name) for name in anatomy.inventory.shapes}
    return {name: (int(match[1]), match[2]) for name, match in found.items() if match}


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


def _mask(chosen: Sequence[CoreTensor], core: CoreFile, anatomy: Anatomy, file: str) -> Mask:
    marked = tuple(p if p.core else p.model_copy(update={"core": True}) for p in chosen)
    inventory = anatomy.inventory
    return Mask.of_core(core.model_copy(update={"parameters": marked}), inventory.shapes, inventory.tied, file)


def _generator(seed: int, what: str) -> np.random.Generator:
    """Draws of its own for each seed and thing."""
    return np.random.default_rng([seed, int(sha256_text(what)[:16], 16)])
