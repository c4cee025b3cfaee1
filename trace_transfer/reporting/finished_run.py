"""A finished run, read back: its cells with their scores and what they cost; all that does not fit is told at once.

Reads `run.json`, and of each cell `scores.json` and the `step.json` of all steps that it needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trace_transfer.errors import ArtefactError, listing
from trace_transfer.evaluation.scores import Score, ScoreMatrix
from trace_transfer.files import sha256_file
from trace_transfer.records import Strict, read_artefact
from trace_transfer.reporting.continual import first_stages
from trace_transfer.reporting.records import CellRecord, RunFile, StepFile

RUN, STEP, SCORES, EVALUATE = "run.json", "step.json", "scores.json", "evaluate"
NEEDED = ("train", EVALUATE)
# What must be the same for two scores to be of the same thing.
SAME = ("kind", "metric", "higher_is_better", "num_examples", "data_sha256", "settings")


@dataclass(frozen=True)
class FinishedCell:
    """One trained model.

    Attributes:
        values_SE: scores after each stage, the first row is the base; columns are the run's evaluations; own metrics.
        first: evaluation → the stage (from 1) that first trained a task that it measures.
        steps: all steps that it needed, each once.
    """

    record: CellRecord
    matrix: ScoreMatrix
    values_SE: NDArray[np.float64]
    first: Mapping[str, int]
    steps: tuple[StepFile, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(stage.label for stage in self.matrix.stages)


@dataclass(frozen=True)
class FinishedRun:
    """`evaluations` are the scores of the base in the first cell: names and metrics of the columns."""

    record: RunFile
    evaluations: tuple[Score, ...]
    cells: tuple[FinishedCell, ...]

    @property
    def taught(self) -> tuple[str, ...]:
        """Evaluations that measure a task, in the order of the tasks, each once."""
        return tuple(dict.fromkeys(self.record.of_task[task] for task in self.record.tasks))


def read_run(directory: Path) -> FinishedRun:
    """Read a run and check that its cells can be compared.

    Raises:
        ArtefactError: `run.json` cannot be read; or files of cells are missing, were changed by hand, or are not of the
            same evaluations; all of them are told.
    """
    run: RunFile = read_artefact(directory / RUN, RunFile)
    reader = _Reader(directory, run)
    reader.check_run()
    cells = [cell for record in run.cells if (cell := reader.cell(record)) is not None]
    if reader.problems:
        problems = tuple(reader.problems)
        raise ArtefactError(
            f"{directory}: {len(problems)} problem{'' if len(problems) == 1 else 's'}; run it again to make what is "
            "missing:\n" + listing(problems)
        )
    return FinishedRun(run, reader.columns, tuple(cells))


def label_of(record: CellRecord) -> str:
    """A cell in a message."""
    return f"{record.method}, seed {record.seed}" + (f", {record.axis} {record.value}" if record.axis else "")


class _Reader:
    """Reads cells, each step once, and notes what is wrong instead of stopping at the first."""

    def __init__(self, directory: Path, run: RunFile) -> None:
        self.directory, self.run = directory, run
        self.problems: dict[str, None] = {}
        self.columns: tuple[Score, ...] = ()
        self.first_matrix: tuple[str, ScoreMatrix] | None = None
        self._steps: dict[str, StepFile | None] = {}
        self._by_address = {path.name.rpartition("-")[2]: path.name for path in directory.glob("steps/*")}

    def cell(self, record: CellRecord) -> FinishedCell | None:
        before = len(self.problems)
        lacks = [name for name in NEEDED if name not in record.steps]
        if lacks:
            self._note(f"{label_of(record)}: run.json names no step for {' and '.join(lacks)}")
        steps = tuple(self._needed(record))
        if lacks:
            return None
        place = record.steps[EVALUATE]
        matrix = self._file(f"{place}/{SCORES}", ScoreMatrix, self._steps.get(place))
        if matrix is None or not self._check_matrix(f"{place}/{SCORES}", matrix) or len(self.problems) > before:
            return None
        names = [score.name for score in self.columns]
        values_SE = np.array([[_by_name(stage.scores)[name].value for name in names] for stage in matrix.stages])
        return FinishedCell(record, matrix, values_SE, self._first(matrix), steps)

    def check_run(self) -> None:
        """What `run.json` itself says."""
        known = [method.name for method in self.run.methods]
        seen: set[str] = set()
        for record in self.run.cells:
            key = json.dumps([record.method, record.seed, record.axis, record.value])
            if key in seen:
                self._note(f"run.json: {label_of(record)}: there are two such cells")
            seen.add(key)
            if record.method not in known:
                self._note(f"run.json: {label_of(record)}: no such method; it has {', '.join(known)}")
        main = [record.method for record in self.run.cells if record.axis is None]
        if not main:
            self._note("run.json: no cells of the main comparison (without an axis)")
        elif self.run.reference not in main:
            self._note(f"run.json: the reference '{self.run.reference}' has no cells; others: {', '.join(set(main))}")
        for task in self.run.tasks:
            if task not in self.run.of_task:
                self._note(f"run.json: of_task does not say which evaluation measures the task '{task}'")
        for record in self.run.cells:
            if sorted(record.order) != sorted(self.run.tasks):
                self._note(f"run.json: {label_of(record)}: its order {list(record.order)} is not one of the tasks")

    def _note(self, problem: str) -> None:
        self.problems[problem] = None

    def _needed(self, record: CellRecord) -> Iterator[StepFile]:
        """The steps that a cell names and, by their addresses, those that these were made of."""
        waiting, seen = list(record.steps.values()), set()
        while waiting:
            place = waiting.pop(0)
            if place in seen:
                continue
            seen.add(place)
            if place not in self._steps:
                self._steps[place] = self._file(f"{place}/{STEP}", StepFile)
            step = self._steps[place]
            if step is not None:
                yield step
                found = (self._by_address.get(address[:12]) for address in step.inputs.values())
                waiting += [f"steps/{name}" for name in found if name is not None]

    def _file(self, name: str, kind: type[Strict], step: StepFile | None = None) -> Any:
        """A file of the run, or None; its hash is compared where the step that made it is known."""
        file = self.directory / name
        try:
            found = read_artefact(file, kind)
        except ArtefactError as error:
            self._note(str(error).replace(str(file), name))
            return None
        expected = step.files.get(file.name) if step is not None else None
        if expected is not None and sha256_file(file) != expected:
            self._note(f"{name}: was changed after its step was finished (its hash is another than in {STEP})")
            return None
        return found

    def _check_matrix(self, where: str, matrix: ScoreMatrix) -> bool:
        before = len(self.problems)
        if len(matrix.stages) < 2:
            self._note(f"{where}: no stage after the base")
        if matrix.stages[0].learned:
            self._note(f"{where}: the first stage is to be the base, but learned {', '.join(matrix.stages[0].learned)}")
        if matrix.of_task != self.run.of_task:
            self._note(f"{where}: of_task is {matrix.of_task}, in run.json {self.run.of_task}")
        learned = {task for stage in matrix.stages for task in stage.learned}
        for task in self.run.tasks:
            if task not in learned:
                self._note(f"{where}: no stage learned the task '{task}'")
        for task in sorted(learned - set(self.run.tasks)):
            self._note(f"{where}: learned '{task}', which is no task of the run")
        for stage in matrix.stages:
            for score in stage.scores:
                if not np.isfinite(score.value):
                    self._note(f"{where}: {score.name} after {stage.label} is {score.value}")
        if self.first_matrix is None:
            self.first_matrix, self.columns = (where, matrix), matrix.stages[0].scores
            for task, name in self.run.of_task.items():
                if name not in _by_name(self.columns):
                    self._note(f"{where}: no evaluation '{name}', which measures the task '{task}'")
        self._compare(where, matrix)
        return len(self.problems) == before

    def _compare(self, where: str, matrix: ScoreMatrix) -> None:
        """Against the first cell's base: the same evaluations of the same base model."""
        assert self.first_matrix is not None  # the caller has set it
        first_where, first = self.first_matrix
        if (matrix.base_fingerprint, matrix.model.names_sha256) != (first.base_fingerprint, first.model.names_sha256):
            self._note(f"{where}: of another base model than {first_where}")
        expected = _by_name(self.columns)
        for stage in matrix.stages:
            found = _by_name(stage.scores)
            if len(found) < len(stage.scores):
                self._note(f"{where}: {stage.label}: an evaluation stands there twice")
            if found.keys() != expected.keys():
                names = f"{', '.join(sorted(found))}; in {first_where}: {', '.join(sorted(expected))}"
                self._note(f"{where}: {stage.label}: other evaluations: {names}")
                continue
            for name, score in found.items():
                for key in SAME:
                    ours, theirs = getattr(score, key), getattr(expected[name], key)
                    if ours != theirs:
                        self._note(f"{where}: {name}: {key} is {ours!r}, in {first_where}: {theirs!r}")

    def _first(self, matrix: ScoreMatrix) -> dict[str, int]:
        names = list(dict.fromkeys(self.run.of_task[task] for task in self.run.tasks))
        learned = [{names.index(self.run.of_task[task]) for task in stage.learned} for stage in matrix.stages[1:]]
        return dict(zip(names, first_stages(learned, len(names)).tolist(), strict=True))


def _by_name(scores: tuple[Score, ...]) -> dict[str, Score]:
    return {score.name: score for score in scores}
