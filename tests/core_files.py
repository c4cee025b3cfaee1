"""Core files for tiny models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor, Method
from trace_transfer.core_sets.selection import select
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import Ranges
from trace_transfer.records import to_json


def write_core(model: Path, file: Path, task: str = "math", ratio: float = 0.1) -> Path:
    """Write a core file in which the later tensors of a model score higher; returns the file."""
    opened = open_model(model, load_families())
    shapes = opened.anatomy.inventory.shapes
    parameters = []
    for index, (name, shape) in enumerate(shapes.items()):
        units = opened.anatomy.units_of(name)
        component = "+".join(dict.fromkeys(unit.component for unit in units))
        score = (index + 1) / len(shapes)
        parameters.append(CoreTensor(name=name, shape=shape, score=score, component=component, layer=units[0].layer))
    method = Method(name="lf", ratio=ratio)
    core = CoreFile(task=task, model=opened.identity, method=method, parameters=select(parameters, ratio))
    file.write_text(to_json(core), encoding="utf-8")
    return file


def core_of(model: Path, file: Path, chosen: Iterable[str] | Mapping[str, Ranges | None], **changes: object) -> Path:
    """Write a core file in which the chosen tensors of a model are core, or rows of them, in this order; returns it."""
    opened = open_model(model, load_families())
    rows = chosen if isinstance(chosen, Mapping) else dict.fromkeys(chosen)
    shapes = opened.anatomy.inventory.shapes
    parameters = tuple(
        CoreTensor(name=name, shape=shapes[name], rows=rows.get(name), score=1 - place / 1000, core=name in rows)
        for place, name in enumerate({**rows, **shapes})
    )
    method = Method(name="lf", ratio=0.1, unit="rows" if any(rows.values()) else "tensors")
    core = CoreFile(task="math", model=opened.identity, method=method, parameters=parameters)
    file.write_text(to_json(core.model_copy(update=changes)), encoding="utf-8")
    return file
