"""A stream on disk: tasks, their data, and a core file for each, of whole tensors and of rows."""

from __future__ import annotations

from pathlib import Path

from tests.core_files import core_of
from tests.task_files import write_tasks


def core_sets(num_layers: int) -> dict[str, dict[str, tuple | None]]:
    """For three tasks, on the upper layers of a LLaMA-like model; the last one has rows."""
    last = f"model.layers.{num_layers - 1}"
    return {
        "math": {f"{last}.mlp.down_proj.weight": None, f"{last}.input_layernorm.weight": None},
        "code": {f"{last}.self_attn.q_proj.weight": None, "model.norm.weight": None},
        "law": {f"{last}.mlp.up_proj.weight": ((0, 3), (8, 9)), f"{last}.mlp.down_proj.weight": None},
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
            core_of(model, directory / f"{task}.core.json", core, task=task)
            text = text.replace(f"data: {task}.jsonl", f"data: {task}.jsonl, core: {task}.core.json")
    file.write_text(text)
    return file
