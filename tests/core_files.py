"""Core files for tiny models."""

from __future__ import annotations

from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile, CoreParameter, Method
from trace_transfer.core_sets.selection import select
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.records import to_json


def write_core(model: Path, file: Path, task: str = "math", ratio: float = 0.1) -> Path:
    """Write a core file in which the later parameters of a model score higher; returns the file."""
    opened = open_model(model, load_families())
    shapes = opened.anatomy.inventory.shapes
    parameters = [
        CoreParameter(name=name, shape=shape, score=(index + 1) / len(shapes))
        for index, (name, shape) in enumerate(shapes.items())
    ]
    core = CoreFile(
        task=task,
        model=opened.identity,
        method=Method(name="lf", ratio=ratio),
        parameters=select(parameters, ratio),
    )
    file.write_text(to_json(core), encoding="utf-8")
    return file
