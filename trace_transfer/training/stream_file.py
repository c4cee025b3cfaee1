"""`stream.yaml` → the tasks of a stream in order, each with its core file, and every problem of the file in one go.

    tasks:
      - name: math
        data: gsm8k.jsonl
        fields: {prompt: question, completion: answer}
        core: cores/math.core.json      # beside this file; as identified on this model, or carried over to it by `map`

It is a `tasks.yaml` with one more key, so that any `tasks.yaml` is a stream for a method that needs no core set.
Reads the file's text and whether the files that it names are there; no data, no core file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trace_transfer.data.tasks_file import TaskSpec, load_list, locate


class StreamTask(TaskSpec):
    """One task of a stream.

    Attributes:
        core: its core file, relative to the stream's file; None where the method needs none.
    """

    core: str | None = None

    @classmethod
    def local_files(cls, item: Mapping[str, Any]) -> dict[str, str]:
        core = item.get("core")
        return {**super().local_files(item), **({"core": core} if isinstance(core, str) else {})}


def load_stream(path: Path | str) -> tuple[StreamTask, ...]:
    """Read `stream.yaml`.

    Raises:
        TaskError: not there, not YAML, no tasks, unknown keys, two tasks with one name, missing data or core files: all
            that is wrong with the file at once.
    """
    return load_list(path, StreamTask)


def core_file(task: StreamTask, base_directory: Path | str) -> Path | None:
    """Where a task's core file lies, if it names one."""
    return None if task.core is None else locate(task.core, base_directory)
