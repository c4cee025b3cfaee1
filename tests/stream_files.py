"""A stream on disk: tasks, their data, and a core file for each, of whole tensors and of rows."""

from __future__ import annotations

from pathlib import Path

from tests.task_files import write_tasks
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor, Method
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.records import to_json


def write_core_set(model: Path, file: Path, task: str, core: list[tuple[str, tuple | None]]) -> Path:
    """A core file in which exactly these are core: (name, None) or (name, ranges of rows). Returns the file."""
    opened = open_model(model, load_families())
    shapes = opened.anatomy.inventory.shapes
    rows = dict(core)
    parameters = tuple(
        CoreTensor(name=name, shape=shapes[name], rows=rows.get(name), score=1 - place / 1000, core=name in rows)
        for place, name in enumerate(rows | shapes)
    )
    method = Method(name="lf", ratio=len(core) / len(parameters))
    made = CoreFile(task=task, model=opened.identity, method=method, parameters=parameters)
    file.write_text(to_json(made), encoding="utf-8")
    return file


def core_sets(num_layers: int) -> dict[str, list[tuple[str, tuple | None]]]:
    """For three tasks, on the upper layers of a LLaMA-like model; the last one has rows."""
    last = f"model.layers.{num_layers - 1}"
    return {
        "math": [(f"{last}.mlp.down_proj.weight", None), (f"{last}.input_layernorm.weight", None)],
        "code": [(f"{last}.self_attn.q_proj.weight", None), ("model.norm.weight", None)],
        "law": [(f"{last}.mlp.up_proj.weight", ((0, 3), (8, 9))), (f"{last}.mlp.down_proj.weight", None)],
    }


def write_stream(
    directory: Path, model: Path, num_layers: int, sizes: dict[str, int] | None = None, cores: dict | None = None
) -> Path:
    """Tasks with so many examples and their core files; returns `stream.yaml`."""
    sizes = sizes or {"math": 8, "code": 6}
    file = write_tasks(directory, sizes, "stream.yaml")
    text = file.read_text()
    for task, core in (cores or core_sets(num_layers)).items():
        if task in sizes:
            write_core_set(model, directory / f"{task}.core.json", task, core)
            text = text.replace(f"data: {task}.jsonl", f"data: {task}.jsonl, core: {task}.core.json")
    file.write_text(text)
    return file
