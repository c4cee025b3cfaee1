"""A run file, read and checked: what a run is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

from trace_transfer.data.tasks_file import TaskSpec
from trace_transfer.evaluation.suite_file import Suite
from trace_transfer.study.methods import RunMethod


class RunTask(TaskSpec):
    """One task of a run; `evaluate` names the evaluation that measures it, by default the one of its own name."""

    evaluate: str | None = None

    @property
    def spec(self) -> TaskSpec:
        """The task as training sees it."""
        spec = TaskSpec.model_validate(self.model_dump(exclude={"evaluate"}))
        return spec if self._directory is None else spec.beside(self._directory)


@dataclass(frozen=True)
class Sweep:
    """One axis: `path` is the setting that takes each of the values, in these methods and with these seeds."""

    axis: str
    path: str
    values: tuple[Any, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class RunFile:
    """A run file, checked.

    `sections` hold the settings as they were given: `identify`, `map`, `train`, `evaluate`, `represent`; None for a
    representation that is not wanted.
    """

    file: Path
    name: str
    target: str
    source: str | None
    out: Path
    tasks: tuple[RunTask, ...]
    suite: Suite
    methods: tuple[RunMethod, ...]
    reference: str
    seeds: tuple[int, ...] = (0,)
    orders: str = "file"
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    rules: tuple[str, ...] = ()
    represent: tuple[str, ...] = ()
    jobs: int = 1
    processes: int = 1
    keep: str = "core"

    @property
    def directory(self) -> Path:
        return self.file.parent

    @property
    def of_task(self) -> dict[str, str]:
        """Task → the evaluation that measures it."""
        return {task.name: task.evaluate or task.name for task in self.tasks}

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def shown(self, model: str | None) -> str | None:
        """A model or file as a reader elsewhere can name it: relative to the run file, where it lies beside that."""
        directory = self.directory.absolute()
        if model is None or not Path(model).absolute().is_relative_to(directory):
            return model
        return str(Path(model).absolute().relative_to(directory))

    def order(self, number: int) -> tuple[str, ...]:
        """The order of the tasks for the seed of that number in the list."""
        every = list(permutations(self.task_names))
        return every[number % len(every)] if self.orders == "vary" else self.task_names
