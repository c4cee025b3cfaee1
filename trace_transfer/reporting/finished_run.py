"""A run, read back: its trained models with their scores and costs, and what its steps found.

Reads: `run.json` and, of each cell that is finished, `step.json` of all steps that it needed, the scores, layer
matches, core files, verifications and the representation. Only files with the hash that `step.json` gives are used.
Cells that are not finished are left out and named; everything that is wrong is told at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.evaluation.records import Score, ScoreMatrix
from trace_transfer.files import sha256_file
from trace_transfer.patch.records import Verification
from trace_transfer.records import ModelIdentity, Strict, read_artefact
from trace_transfer.reporting.numbers import several
from trace_transfer.reporting.records import CellRecord, RunFile, StepFile
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.transfer.draw import read_similarities
from trace_transfer.transfer.records import LayerMatch

RUN, STEP, SCORES, CORE = "run.json", "step.json", "scores.json", ".core.json"
# Two scores are of the same thing only where all of these are the same.
SAME = ("kind", "metric", "higher_is_better", "num_examples", "data_sha256", "settings")
# Methods that take a carried core set for its size, and train others.
SIZE_ONLY = (
    "random", "first", "last", "random-tensors", "random-rows", "random-parameters", "random-within-rows",
    "random-within-parameters", "norms-random", "head-norms-random",
)  # fmt: skip

Role = Literal["source", "target", "carried"]


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


@dataclass(frozen=True)
class MatchFound:
    """A layer match; `picture` is the path of its PNG from the run's directory, if it has one."""

    directory: str
    uses: tuple[CellRecord, ...]
    match: LayerMatch
    similarity: NDArray[np.float64]
    picture: str | None


@dataclass(frozen=True)
class CoreFound:
    """A core file, on which model it was identified, and the cells that use it."""

    directory: str
    role: Role
    uses: tuple[CellRecord, ...]
    core: CoreFile
    picture: str | None

    @property
    def trained_by(self) -> tuple[CellRecord, ...]:
        """Cells of the main comparison that train this set; those that only take its size if there are no others."""
        main = tuple(cell for cell in self.uses if cell.axis is None)
        return tuple(cell for cell in main if cell.method not in SIZE_ONLY) or main

    @property
    def score(self) -> str:
        return self.core.method.name.upper()


@dataclass
class FinishedRun:
    """A run as far as it is finished; what its steps found is in the order of the cells.

    Attributes:
        directory: as an absolute path.
        record: `run.json`, with the cells that are finished alone.
        evaluations: the scores of the base in the first cell: names and metrics of the columns.
        steps: directory → step, of all that the cells needed.
        unfinished: directories of steps that are named by a cell and not finished.
        num_left_out: cells that are not finished.
        verified: the uses of trained models, and what moved in them.
        representation: its step's directory, the file, and the PNG if there is one.
    """

    directory: Path
    record: RunFile
    evaluations: tuple[Score, ...]
    cells: tuple[FinishedCell, ...]
    steps: Mapping[str, StepFile]
    unfinished: tuple[str, ...]
    num_left_out: int
    models: dict[str, ModelIdentity] = field(default_factory=dict)
    matches: list[MatchFound] = field(default_factory=list)
    cores: list[CoreFound] = field(default_factory=list)
    verified: list[tuple[tuple[CellRecord, ...], Verification]] = field(default_factory=list)
    representation: tuple[str, RepresentationFile, bytes | None] | None = None

    @property
    def taught(self) -> tuple[str, ...]:
        """Evaluations that measure a task, in the order of the tasks, each once."""
        return tuple(dict.fromkeys(self.record.of_task[task] for task in self.record.tasks))

    @property
    def main(self) -> tuple[CellRecord, ...]:
        """Cells of the main comparison."""
        return tuple(cell for cell in self.record.cells if cell.axis is None)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(cell.seed for cell in self.main))

    @property
    def orders(self) -> dict[tuple[str, ...], list[int]]:
        """Orders of the tasks, each with the seeds that train it."""
        found: dict[tuple[str, ...], list[int]] = {}
        for order, seed in dict.fromkeys((cell.order, cell.seed) for cell in self.main):
            found.setdefault(order, []).append(seed)
        return found

    def title(self, method: str) -> str:
        return next((one.title for one in self.record.methods if one.name == method), method)

    def name_of(self, role: str) -> str:
        """A model's name without the directories that it lies in."""
        found = self.models.get(role)
        name = found.id if found else (self.record.source or "no source") if role == "source" else self.record.target
        return name.rstrip("/").rpartition("/")[2] or name


def read_run(directory: str | Path) -> FinishedRun:
    """Read all of a run that is finished; one UserError for all files that are missing, changed or not comparable."""
    directory = Path(directory)
    if not (directory / RUN).is_file():
        raise UserError(
            f"{directory}: no {RUN} in it, so this is not the directory of a run, or nothing of it is finished; "
            "expected what `trace-transfer run` leaves"
        )
    whole: RunFile = read_artefact(directory / RUN, RunFile)
    reader = _Reader(directory, whole)
    records = tuple(cell for cell in whole.cells if reader.is_finished(cell))
    main = [cell.method for cell in records if cell.axis is None]
    reference = whole.reference if whole.reference in main or not main else main[0]
    record = whole.model_copy(update={"cells": records, "reference": reference})
    cells = tuple(cell for one in records if (cell := reader.cell(one)) is not None)
    evaluations = reader.first[1].stages[0].scores if reader.first else ()
    run = FinishedRun(directory.resolve(), record, evaluations, cells, {}, (), len(whole.cells) - len(records))
    reader.add_found(run)
    run.steps, run.unfinished = reader.finished, tuple(reader.unfinished)
    if reader.problems:
        raise ArtefactError(
            f"{directory}: {several(len(reader.problems), 'problem')}; run it again to make what is missing or was "
            "changed:\n" + listing(list(reader.problems))
        )
    if not main:
        raise UserError(
            f"{directory}: nothing of the main comparison is finished, so there is nothing to report; "
            f"{several(len(reader.unfinished), 'step')} missing:\n" + listing(list(reader.unfinished))
        )
    return run


class _Reader:
    """Reads steps and their files, each once, and notes what is wrong instead of stopping at the first."""

    def __init__(self, directory: Path, run: RunFile) -> None:
        self.directory, self.run = directory, run
        self.problems: dict[str, None] = {}
        self.unfinished: dict[str, None] = {}
        self.first: tuple[str, ScoreMatrix] | None = None
        self._steps: dict[str, StepFile | None] = {}
        self._by_address = {path.name.rpartition("-")[2]: path.name for path in directory.glob("steps/*")}

    def note(self, problem: str) -> None:
        self.problems[problem] = None

    @property
    def finished(self) -> dict[str, StepFile]:
        return {place: step for place, step in self._steps.items() if step is not None}

    def is_finished(self, cell: CellRecord) -> bool:
        missing = [place for place in cell.steps.values() if self.step(place) is None]
        self.unfinished |= dict.fromkeys(missing)
        return not missing

    def step(self, place: str) -> StepFile | None:
        """The record of a step, None if it is not finished (or cannot be read, which is a problem)."""
        if place not in self._steps:
            there = (self.directory / place / STEP).is_file()
            self._steps[place] = self._read(f"{place}/{STEP}", StepFile) if there else None
        return self._steps[place]

    def names(self, place: str) -> list[str]:
        """Names of the files that a finished step has."""
        step = self.step(place)
        return [] if step is None else [name for name in step.files if name not in step.removed]

    def checked(self, place: str, name: str) -> Path | None:
        """A file as its step made it; None if the step made none, and where something is wrong with it."""
        step = self.step(place)
        if step is None or name not in self.names(place):
            return None
        file = self.directory / place / name
        if not file.is_file():
            self.note(f"{place}/{name}: missing")
        elif sha256_file(file) != step.files[name]:
            self.note(f"{place}/{name}: was changed after its step was finished (its hash is not that in {STEP})")
        else:
            return file
        return None

    def file(self, place: str, name: str, kind: type[Strict]) -> Any:
        return None if self.checked(place, name) is None else self._read(f"{place}/{name}", kind)

    def _read(self, name: str, kind: type[Strict]) -> Any:
        file = self.directory / name
        try:
            return read_artefact(file, kind)
        except ArtefactError as error:
            self.note(str(error).replace(str(file), name))
            return None

    def cell(self, record: CellRecord) -> FinishedCell | None:
        """A finished cell with its scores; None if something is wrong with it."""
        place = record.steps["evaluate"]
        if SCORES not in self.names(place):
            self.note(f"{place}/{SCORES}: missing")
        matrix: ScoreMatrix | None = self.file(place, SCORES, ScoreMatrix)
        if matrix is None or not self._is_comparable(f"{place}/{SCORES}", matrix):
            return None
        names = [score.name for score in matrix.stages[0].scores]
        values = [{score.name: score.value for score in stage.scores} for stage in matrix.stages]
        values_SE = np.array([[one[name] for name in names] for one in values])
        first: dict[str, int] = {}
        for number, stage in enumerate(matrix.stages[1:], 1):
            for task in stage.learned:
                first.setdefault(self.run.of_task[task], number)
        return FinishedCell(record, matrix, values_SE, first, tuple(self._needed(record)))

    def _needed(self, record: CellRecord) -> Iterator[StepFile]:
        """The steps that a cell names and, by their addresses, those that these were made of."""
        waiting, seen = list(record.steps.values()), set()
        while waiting:
            place = waiting.pop(0)
            step = None if place in seen else self.step(place)
            seen.add(place)
            if step is not None:
                yield step
                found = (self._by_address.get(address[:12]) for address in step.inputs.values())
                waiting += [f"steps/{name}" for name in found if name is not None]

    def _is_comparable(self, where: str, matrix: ScoreMatrix) -> bool:
        """Whether it is of the run's tasks, and has the same evaluations of the same base as the first cell's."""
        self.first = self.first or (where, matrix)
        first_where, first = self.first
        before = len(self.problems)
        learned = {task for stage in matrix.stages[1:] for task in stage.learned}
        expected = _evaluations(first.stages[0].scores)
        of_task = self.run.of_task
        if learned != {*self.run.tasks} or matrix.of_task != of_task or not {*of_task.values()} <= expected.keys():
            self.note(f"{where}: of other tasks or evaluations than {RUN}")
        if (matrix.base_fingerprint, matrix.model.names_sha256) != (first.base_fingerprint, first.model.names_sha256):
            self.note(f"{where}: of another base model than {first_where}")
        for stage in matrix.stages:
            found = _evaluations(stage.scores)
            if others := [name for name in expected | found if expected.get(name) != found.get(name)]:
                self.note(f"{where}: {stage.label}: other evaluations than in {first_where}: {', '.join(others)}")
        return len(self.problems) == before

    def add_found(self, run: FinishedRun) -> None:
        """What the steps of the finished cells found, and the representation of the run."""
        uses: dict[str, list[CellRecord]] = {}
        for cell in run.record.cells:
            for place in dict.fromkeys(cell.steps.values()):
                uses.setdefault(place, []).append(cell)
        needs = {method.name: method.needs for method in run.record.methods}
        if self.first is not None:
            run.models["target"] = self.first[1].model
        for place, several_cells in uses.items():
            step, cells = self.step(place), tuple(several_cells)
            kind = "" if step is None else step.kind
            if kind == "train":
                if (verification := self.file(place, "verification.json", Verification)) is not None:
                    run.verified.append((cells, verification))
            elif kind == "identify":
                self._add_cores(place, cells, "target" if needs[cells[0].method] == "target" else "source", run)
            elif kind in ("match", "map"):
                self._add_cores(place, cells, "carried", run)
                self._add_match(place, cells, run)
        where = run.record.settings.get("represent_step")
        if not isinstance(where, str):
            return
        if self.step(where) is None:
            self.unfinished[where] = None
        file: RepresentationFile | None = self.file(where, "representation.json", RepresentationFile)
        picture = self.checked(where, "representation.png")
        if file is not None:
            run.representation = where, file, None if picture is None else picture.read_bytes()

    def _add_match(self, place: str, uses: tuple[CellRecord, ...], run: FinishedRun) -> None:
        match: LayerMatch | None = self.file(place, "layer_match.json", LayerMatch)
        file = self.checked(place, "similarity.safetensors")
        if match is None or file is None:
            return
        try:
            similarity = read_similarities(file, match)[match.representation]
        except ArtefactError as error:
            self.note(str(error))
            return
        run.matches.append(MatchFound(place, uses, match, similarity, self._picture(place, "heatmap.png")))
        run.models.setdefault("source", match.source)

    def _add_cores(self, place: str, uses: tuple[CellRecord, ...], role: Role, run: FinishedRun) -> None:
        picture = self._picture(place, "importance.png")
        for task in self.run.tasks:
            core: CoreFile | None = self.file(place, f"{task}{CORE}", CoreFile)
            if core is not None:
                run.cores.append(CoreFound(place, role, uses, core, picture))
                if role == "source":
                    run.models.setdefault("source", core.model)

    def _picture(self, place: str, name: str) -> str | None:
        return None if self.checked(place, name) is None else f"{place}/{name}"


def _evaluations(scores: tuple[Score, ...]) -> dict[str, list[Any]]:
    return {score.name: [getattr(score, key) for key in SAME] for score in scores}
