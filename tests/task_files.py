"""Small tasks on disk: a tasks.yaml and its data, for tiny models whose tokenizers know little more than bytes."""

from __future__ import annotations

import json
from pathlib import Path

SIZES = {"math": 10, "code": 8, "law": 12}


def write_tasks(directory: Path, sizes: dict[str, int] | None = None, name: str = "tasks.yaml") -> Path:
    """One JSONL file per task with so many prompts and answers of differing lengths; returns the tasks file."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = ["tasks:"]
    for task, count in (sizes or SIZES).items():
        records = [
            {"prompt": f"What is {task} {i}?", "completion": f"It is {i * i}" + f" or {task}" * (i % 3) + "."}
            for i in range(count)
        ]
        (directory / f"{task}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        lines.append(f"- {{name: {task}, data: {task}.jsonl}}")
    file = directory / name
    file.write_text("\n".join(lines) + "\n")
    return file
