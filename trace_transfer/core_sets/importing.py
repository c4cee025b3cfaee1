"""`import`: a core file from a list of tensors that another program trains.

Reads: an Axolotl configuration, what Spectrum wrote or a list of the authors' scripts, and a model's config. The core
file is returned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trace_transfer.core_sets.authors_list import core_tensors, read_authors_list
from trace_transfer.core_sets.axolotl import Pattern, mask_of_patterns, read_patterns
from trace_transfer.core_sets.chosen import Chosen
from trace_transfer.core_sets.core_file import EXCLUDED, CoreFile, CoreTensor, Method
from trace_transfer.core_sets.masks import Mask
from trace_transfer.core_sets.selection import Selection, entries_of, select
from trace_transfer.errors import ArtefactError, UserError
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.families.model_handle import OpenModel, names_told, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import Ranges
from trace_transfer.records import library_versions, require_task

IMPORTED, SCORE = "imported", 1.0
LAYER = re.compile(r"\.(\d+)(?:\\?\.|$)")  # a number of its own in a name or pattern, as a layer's is


def import_list(
    file: Path, model: str | Path, task: str, ratio: float | None, unit: str | None, rules: Sequence[str] = ()
) -> CoreFile:
    """A core file from a list of the authors' scripts. All of a list of fewer names than the model has are core.

    Raises:
        ArtefactError: the list cannot be read, or names what the model lacks.
        UserError: a full list without a ratio, or a selected one with one; a task that is no name.
    """
    Selection.of(ratio=ratio, unit=unit)
    opened = open_model(model, load_families([Path(path) for path in rules]))
    shapes = opened.anatomy.inventory.shapes
    method, listed = read_authors_list(file)
    told = names_told(opened, [entry.name for entry in listed])
    listed = [entry._replace(name=told.translated.get(entry.name, entry.name)) for entry in listed]
    tensors = tuple(
        tensor.model_copy(update={"component": entry.component, "layer": entry.layer})
        for tensor in core_tensors(listed, shapes, told.known)
        for entry in entries_of(opened.anatomy, tensor.name, tensor.shape, None)
    )
    whole = len(listed) == len(shapes)
    if whole and ratio is None:
        raise UserError(f"{file}: lists all tensors of {opened.name}; give --ratio to select from them")
    if not whole and ratio is not None:
        raise UserError(
            f"{file}: lists {len(listed)} of the {len(shapes)} tensors of {opened.name}: that is a core set, "
            "and no other can be made of it; leave --ratio out"
        )
    unit = "tensors" if unit is None else unit
    if whole and ratio is not None:
        tensors = select(tensors, ratio, unit)
    if unit == "rows":
        raise UserError("such lists name whole tensors: rows cannot be selected from them")
    return CoreFile(
        task=require_task(task),
        model=opened.identity,
        method={"name": method, "ratio": ratio or len(listed) / len(shapes), "unit": unit, "imported_from": file.name},
        parameters=tensors,
        libraries=library_versions(),
    )


def import_patterns(
    file: Path, model: str | Path, task: str, rules: Sequence[str] = (), made_by: str = "axolotl"
) -> CoreFile:
    """A core file from `unfrozen_parameters`, read as Axolotl reads them.

    What trains is core, with a score of 1; the rest has none, since the list does not rank it. Where
    rows of a tensor train, its other rows are an entry of their own.

    Args:
        model: whose tensors the patterns are to match; only its config is read.
        made_by: who wrote the list; recorded.

    Raises:
        ArtefactError: there is no list, or patterns match nothing in the model; all are named.
        UserError: a task that is no name.
    """
    require_task(task)
    patterns = read_patterns(file)
    opened = open_model(model, load_families([Path(path) for path in rules]))
    shapes = opened.anatomy.inventory.shapes
    mask = _mask(patterns, opened, file)
    chosen, left = [], []
    for name, shape in shapes.items():
        part = mask.parts.get(name)
        assert not isinstance(part, Chosen)  # patterns say rows
        if not mask.trains(name):
            left.append(_entry(opened.anatomy, name, shape, None, core=False))
        elif part is None:
            chosen.append(_entry(opened.anatomy, name, shape, None, core=True))
        else:
            chosen.append(_entry(opened.anatomy, name, shape, part.ranges, core=True))
            left.append(_entry(opened.anatomy, name, shape, _others(part.ranges, shape[0]), core=False))
    share = mask.numel(shapes) / opened.anatomy.inventory.num_elements if mask.sliced else len(chosen) / len(shapes)
    return CoreFile(
        task=task,
        model=opened.identity,
        method=Method.model_validate({
            "name": IMPORTED, "ratio": share, "unit": "rows" if mask.sliced else "tensors", "made_by": made_by,
            "imported_from": file.name,
        }),
        parameters=(*chosen, *left),
        libraries=library_versions(),
    )  # fmt: skip


def _mask(patterns: Sequence[Pattern], model: OpenModel, file: Path) -> Mask:
    """What the list trains; where most of it matches nothing, that it looks like a list for another model comes first.

    Raises:
        ArtefactError: patterns match nothing.
    """
    anatomy, names = model.anatomy, model.anatomy.inventory.shapes
    patterns, known = _translated(patterns, model)
    try:
        return mask_of_patterns(patterns, names, known)
    except ArtefactError as error:
        lost = [one for one in patterns if one not in known and not any(map(one.regex.match, names))]
        layers = sorted({int(number) for one in lost for number in LAYER.findall(one.text)})
        beyond = bool(layers) and layers[-1] >= anatomy.num_layers
        if 2 * len(lost) < len(patterns) and not beyond:
            raise  # a few mistyped ones
        named = f"they name layers up to {layers[-1]}; " if layers else ""
        raise ArtefactError(
            f"{file}: looks like a list for another model: {len(lost)} of its {len(patterns)} patterns match nothing; "
            f"{named}{model.name} ({anatomy.family}) has layers {anatomy.layer_path}.0 to "
            f"{anatomy.layer_path}.{anatomy.num_layers - 1}\n{error}"
        ) from error


def _translated(patterns: Sequence[Pattern], model: OpenModel) -> tuple[list[Pattern], dict[Pattern, str]]:
    """The list with names on disk as they are at run time, and what is known of others that match nothing."""
    lost = [one for one in patterns if not any(map(one.regex.match, model.anatomy.inventory.shapes)) and one.literal]
    told = names_told(model, [str(one.literal) for one in lost])
    instead = {
        one: Pattern.parse(f"^{name}$" + (one.text[one.text.rindex("[") :] if one.rows else ""))
        for one in lost
        if (name := told.translated.get(str(one.literal))) is not None
    }
    known = {one: told.known[str(one.literal)] for one in lost if str(one.literal) in told.known}
    return [instead.get(one, one) for one in patterns], known


def _entry(anatomy: Anatomy, name: str, shape: tuple[int, ...], rows: Ranges | None, core: bool) -> CoreTensor:
    units = [unit for unit in anatomy.units_of(name) if rows is None or unit.rows is None or _meet(unit.rows, rows)]
    return CoreTensor(
        name=name,
        shape=shape,
        rows=rows,
        component="+".join(dict.fromkeys(unit.component for unit in units)) or EXCLUDED,
        layer=units[0].layer if units else None,
        score=SCORE if core else None,
        core=core,
    )


def _others(ranges: Ranges, size: int) -> Ranges:
    """What is between sorted ranges, before and after them."""
    bounds = [0, *(bound for one in ranges for bound in one), size]
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return tuple((start, stop) for start, stop in pairs if start < stop)


def _meet(one: Ranges, other: Ranges) -> bool:
    return any(a < d and c < b for a, b in one for c, d in other)
