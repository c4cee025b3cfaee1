"""`import`: a core file from a list of tensors that another program trains.

Reads: an Axolotl configuration, what Spectrum wrote or a list of the authors' scripts, and a model's config. The core
file is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trace_transfer.core_sets.authors_list import core_tensors, read_authors_list
from trace_transfer.core_sets.core_file import EXCLUDED, CoreFile, CoreTensor
from trace_transfer.core_sets.masks import Slice
from trace_transfer.core_sets.selection import Selection, select
from trace_transfer.core_sets.trainer_settings import mask_of_patterns, read_patterns
from trace_transfer.errors import UserError
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.families.model_handle import OpenModel, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import Ranges
from trace_transfer.records import library_versions, require_task


def import_list(
    file: Path, model: str | Path, task: str, ratio: float | None, unit: str | None, rules: Sequence[str] = ()
) -> CoreFile:
    """A core file from a list of the authors' scripts. All of a list of fewer names than the model has are core.

    Raises:
        UserError: the list cannot be read, or names what the model lacks; a full list without a ratio, or a selected
            one with one; a task that is no name.
    """
    Selection.of(ratio=ratio, unit=unit)
    require_task(task)
    opened = open_model(model, load_families([Path(path) for path in rules]))
    shapes = opened.anatomy.inventory.shapes
    method, listed = read_authors_list(file)
    tensors = tuple(
        tensor.model_copy(update=_what(opened.anatomy, tensor.name, None))
        for tensor in core_tensors(listed, shapes, opened.anatomy.inventory.tied)
    )
    whole = len(listed) == len(shapes)
    if whole != (ratio is not None):
        do = "give --ratio to select from them" if whole else "that is a core set by itself; leave --ratio out"
        raise UserError(f"{file}: lists {len(listed)} of the {len(shapes)} tensors of {opened.name}; {do}")
    if unit == "rows":
        raise UserError("such lists name whole tensors: rows cannot be selected from them")
    if ratio is not None:
        tensors = select(tensors, ratio, unit or "tensors")
    share = ratio or len(listed) / len(shapes)
    return _core_file(opened, task, tensors, file, name=method, ratio=share, unit=unit or "tensors")


def import_patterns(
    file: Path, model: str | Path, task: str, rules: Sequence[str] = (), made_by: str = "axolotl"
) -> CoreFile:
    """A core file from `unfrozen_parameters`, read as Axolotl reads them; `made_by` is recorded.

    What trains is core, with a score of 1; the rest has none, since the list does not rank it. Where
    rows of a tensor train, its other rows are an entry of their own.

    Raises:
        UserError: there is no list, or patterns match nothing in the model (all are named); a task that is no name.
    """
    require_task(task)
    patterns = read_patterns(file)
    opened = open_model(model, load_families([Path(path) for path in rules]))
    shapes = opened.anatomy.inventory.shapes
    mask = mask_of_patterns(patterns, shapes, opened.anatomy.inventory.tied)
    chosen, left = [], []
    for name, shape in shapes.items():
        part = mask.parts.get(name)
        rows = part.ranges if isinstance(part, Slice) else None
        if mask.trains(name):
            made = CoreTensor(name=name, shape=shape, rows=rows, score=1.0, core=True)
            chosen.append(made.model_copy(update=_what(opened.anatomy, name, rows)))
        if rows or not mask.trains(name):
            others = rows and _others(rows, shape[0])
            made = CoreTensor(name=name, shape=shape, rows=others)
            left.append(made.model_copy(update=_what(opened.anatomy, name, others)))
    share = mask.numel(shapes) / opened.anatomy.inventory.num_elements if mask.sliced else len(chosen) / len(shapes)
    unit = "rows" if mask.sliced else "tensors"
    return _core_file(opened, task, [*chosen, *left], file, name="imported", ratio=share, unit=unit, made_by=made_by)


def _core_file(
    model: OpenModel, task: str, tensors: Sequence[CoreTensor], file: Path, **method: object
) -> CoreFile:  # fmt: skip
    return CoreFile(
        task=task, model=model.identity, method={**method, "imported_from": file.name},
        parameters=tensors, libraries=library_versions(),
    )  # fmt: skip


def _what(anatomy: Anatomy, name: str, rows: Ranges | None) -> dict[str, object]:
    """Component and layer of a tensor, or of some rows of it."""
    units = [one for one in anatomy.units_of(name) if rows is None or one.rows is None or _meet(one.rows, rows)]
    component = "+".join(dict.fromkeys(unit.component for unit in units)) or EXCLUDED
    return {"component": component, "layer": units[0].layer if units else None}


def _others(ranges: Ranges, size: int) -> Ranges:
    """What is between sorted ranges, before and after them."""
    bounds = [0, *(bound for one in ranges for bound in one), size]
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return tuple((start, stop) for start, stop in pairs if start < stop)


def _meet(one: Ranges, other: Ranges) -> bool:
    return any(a < d and c < b for a, b in one for c, d in other)
