"""A small run on disk: two tiny models of different families, two tasks, a run file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

TASKS = ("math", "code")


def run_content(**changes: Any) -> dict[str, Any]:
    """What the run file says; `changes` replace keys, None removes one."""
    content: dict[str, Any] = {
        "name": "small",
        "source": "llama",
        "target": "qwen3",
        "out": "out",
        "tasks": [{"name": name, "data": f"{name}.train.jsonl"} for name in TASKS],
        "evaluations": [{"name": name, "kind": "loss", "data": f"{name}.test.jsonl"} for name in TASKS],
        "methods": ["sequential", "transfer-lf"],
        "identify": {"batch_size": 4, "learning_rate": 1e-3, "ratio": 0.2, "max_length": 64},
        "map": {"splits": 2, "probe": "probe.txt"},
        "train": {"batch_size": 4, "epochs": 1, "learning_rate": 1e-3, "zero": 0, "max_length": 64},
        "evaluate": {"max_length": 64, "save_samples": False},
    }
    content |= changes
    return {key: value for key, value in content.items() if value is not None}


def write_run(directory: Path, tiny: Any, **changes: Any) -> Path:
    """Models, data and `run.yaml` in a directory; returns the file."""
    directory.mkdir(parents=True, exist_ok=True)
    for family in ("llama", "qwen3"):
        if not (directory / family).is_dir():
            shutil.copytree(tiny(family), directory / family)
    for task in TASKS:
        for part, count in (("train", 8), ("test", 4)):
            rows = [{"prompt": f"{part} {task} {i}?", "completion": f"{task} {i * i}"} for i in range(count)]
            (directory / f"{task}.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [f"The answer to question {i} is {i * i}, as everybody knows." for i in range(40)]
    (directory / "probe.txt").write_text("\n\n".join(texts))
    return write_file(directory, **changes)


def write_file(directory: Path, **changes: Any) -> Path:
    """`run.yaml` alone, beside what is there."""
    file = directory / "run.yaml"
    file.write_text(yaml.safe_dump(run_content(**changes), sort_keys=False))
    return file
