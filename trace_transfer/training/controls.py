"""Controls of the method: sets of parameters that are as large as a core set, but were not chosen by any score.

Each is a pure function of a core file, a model and a seed, by name in `CONTROLS`. The paper has none of them. Only with
them can be told whether a result comes from *which* parameters are trained or from how many.

Reads: a core file whose core set fits the model. Writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import numpy as np

from trace_transfer.core_sets.core_file import CoreFile, CoreParameter
from trace_transfer.core_sets.masks import Mask, MaskError
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.files import sha256_text
from trace_transfer.models.sources import numel

Control = Callable[[CoreFile, Anatomy, int, str, str], Mask]


def random_set(core: CoreFile, anatomy: Anatomy, seed: int, unit: str, file: str) -> Mask:
    """Drawn by chance from the entries that have a score.

    Entries are parameters, or parts of fused ones, or heads and neurons, whatever the file lists; with another seed or
    task the set is another one, and it may have some of the core set in it.

    Args:
        unit: `tensors`: exactly as many entries as are core. `elements`: entries with about as many elements together;
            what is missing or too much is at most half of an entry that was left out, and mostly far less.
        file: for messages.

    Raises:
        MaskError: all entries that have a score are core.
    """
    scored = [parameter for parameter in core.parameters if parameter.score is not None]
    if len(scored) == len(core.core):
        raise MaskError(
            f"{file}: all {len(scored)} parameters that have a score are core: any set drawn from them would be the "
            "same; make the core set smaller with `trace-transfer select --ratio`"
        )
    order = _generator(seed, core.task).permutation(len(scored)).tolist()
    if unit == "tensors":
        drawn = order[: len(core.core)]
    else:
        drawn = _as_many_elements(order, [p.num_elements for p in scored], sum(p.num_elements for p in core.core))
    return _mask([scored[index] for index in drawn], core, anatomy, file)


def shuffled_layers(core: CoreFile, anatomy: Anatomy, seed: int, unit: str, file: str) -> Mask:
    """The core set with each of its parameters moved to the same place in another layer, by one cycle of all layers.

    Where the next layer of the cycle lacks that parameter or has it in another shape, the cycle is followed on: each
    parameter has one image, no two have the same, and the set keeps its numbers of tensors and of elements. What stands
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

    moved = [p.model_copy(update={"name": image(tied.get(p.name, p.name))}) for p in core.core]
    mask = _mask(moved, core, anatomy, file)
    if mask == Mask.of_core(core, shapes, tied, file):
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


def _places(anatomy: Anatomy) -> dict[str, tuple[int, str]]:
    """Name → (layer, name below the layer), of the parameters in layers."""
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


def _mask(chosen: Sequence[CoreParameter], core: CoreFile, anatomy: Anatomy, file: str) -> Mask:
    marked = tuple(p if p.core else p.model_copy(update={"core": True}) for p in chosen)
    inventory = anatomy.inventory
    return Mask.of_core(core.model_copy(update={"parameters": marked}), inventory.shapes, inventory.tied, file)


def _generator(seed: int, what: str) -> np.random.Generator:
    """Draws of its own for each seed and thing."""
    return np.random.default_rng([seed, int(sha256_text(what)[:16], 16)])
