"""A run, read back: its trained models with their scores and costs, and what its steps found.

Reads: `run.json` and, of each cell that is finished, `step.json` of all steps that it needed, the scores, layer
matches, core files, verifications and the representation. Only files with the hash that `step.json` gives are used.
Cells that are not finished are left out and named; everything that is wrong is told at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from trace_transfer.reporting.continual import first_stages
from trace_transfer.reporting.numbers import several
from trace_transfer.reporting.records import CellRecord, RunFile, StepFile
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.transfer.records import LayerMatch

RUN, STEP, SCORES, CORE = "run.json", "step.json", "scores.json", ".core.json"
NEEDED = ("train", "evaluate")
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

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(stage.label for stage in self.matrix.stages)


@dataclass(frozen=True)
class MatchFound:
    """A layer match; `similarity` is float64 [source layers, target layers], NaN for a degenerate layer.

    `picture` is the path of its PNG from the run's directory, if it has one.
    """

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
        """The method that scored it: LF, CS."""
        return self.core.method.name.upper()


@dataclass(frozen=True)
class Found:
    """What the steps found, in the order of the cells; of `verified` the uses, and what moved."""

    models: dict[str, ModelIdentity] = field(default_factory=dict)
    matches: list[MatchFound] = field(default_factory=list)
    cores: list[CoreFound] = field(default_factory=list)
    verified: list[tuple[tuple[CellRecord, ...], Verification]] = field(default_factory=list)
    representation: tuple[str, RepresentationFile] | None = None
    representation_png: bytes | None = None


@dataclass(frozen=True)
class FinishedRun:
    """A run as far as it is finished.

    Attributes:
        directory: as an absolute path.
        record: `run.json`, with the cells that are finished alone.
        evaluations: the scores of the base in the first cell: names and metrics of the columns.
        steps: directory → step, of all that the cells needed.
        unfinished: directories of steps that are named by a cell and not finished.
        num_left_out: cells that are not finished.
    """

    directory: Path
    record: RunFile
    evaluations: tuple[Score, ...]
    cells: tuple[FinishedCell, ...]
    steps: Mapping[str, StepFile]
    found: Found
    unfinished: tuple[str, ...] = ()
    num_left_out: int = 0

    @property
    def taught(self) -> tuple[str, ...]:
        """Evaluations that measure a task, in the order of the tasks, each once."""
        return tuple(dict.fromkeys(self.record.of_task[task] for task in self.record.tasks))

    @cached_property
    def main(self) -> tuple[CellRecord, ...]:
        """Cells of the main comparison."""
        return tuple(cell for cell in self.record.cells if cell.axis is None)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(cell.seed for cell in self.main))

    @property
    def orders(self) -> dict[tuple[str, ...], list[int]]:
        """Orders of the tasks, each with the seeds that train it."""
        found: dict[tuple[str, ...], dict[int, None]] = {}
        for cell in self.main:
            found.setdefault(cell.order, {})[cell.seed] = None
        return {order: list(seeds) for order, seeds in found.items()}

    def title(self, method: str) -> str:
        return next((one.title for one in self.record.methods if one.name == method), method)

    def name_of(self, role: str) -> str:
        """A model's name without the directories that it lies in."""
        found = self.found.models.get(role)
        name = found.id if found else (self.record.source or "no source") if role == "source" else self.record.target
        return name.rstrip("/").rpartition("/")[2] or name


def read_run(directory: str | Path) -> FinishedRun:
    """Read all of a run that is finished.

    Raises:
        UserError: it is no run's directory, its files are missing, were changed or cannot be compared (all of them are
            told), or nothing of the main comparison is finished.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; expected that of a run, made by `trace-transfer run`")
    if not (directory / RUN).is_file():
        raise UserError(
            f"{directory}: no {RUN} in it, so this is not the directory of a run, or nothing of it is finished; "
            "expected what `trace-transfer run` leaves"
        )
    whole: RunFile = read_artefact(directory / RUN, RunFile)
    reader = _Reader(directory, whole)
    reader.check_run()
    records = tuple(cell for cell in whole.cells if reader.is_finished(cell))
    run = whole.model_copy(update={"cells": records, "reference": _reference(whole, records)})
    cells = tuple(cell for record in records if (cell := reader.cell(record)) is not None)
    found = _found(reader, run)
    if reader.problems:
        raise ArtefactError(
            f"{directory}: {several(len(reader.problems), 'problem')}; run it again to make what is missing or was "
            "changed:\n" + listing(list(reader.problems))
        )
    if not any(cell.axis is None for cell in records):
        raise UserError(
            f"{directory}: nothing of the main comparison is finished, so there is nothing to report; "
            f"{several(len(reader.unfinished), 'step')} missing:\n" + listing(list(reader.unfinished))
        )
    return FinishedRun(
        directory.resolve(), run, reader.columns, cells, reader.finished, found, tuple(reader.unfinished),
        len(whole.cells) - len(records),
    )  # fmt: skip


def label_of(record: CellRecord) -> str:
    """A cell in a message."""
    return f"{record.method}, seed {record.seed}" + (f", {record.axis} {record.value}" if record.axis else "")


def _reference(run: RunFile, finished: tuple[CellRecord, ...]) -> str:
    """The run's own, or the first method that is finished."""
    there = [cell.method for cell in finished if cell.axis is None]
    return run.reference if run.reference in there or not there else there[0]


class _Reader:
    """Reads steps and their files, each once, and notes what is wrong instead of stopping at the first."""

    def __init__(self, directory: Path, run: RunFile) -> None:
        self.directory, self.run = directory, run
        self.problems: dict[str, None] = {}
        self.unfinished: dict[str, None] = {}
        self.columns: tuple[Score, ...] = ()
        self.first_matrix: tuple[str, ScoreMatrix] | None = None
        self._steps: dict[str, StepFile | None] = {}
        self._by_address = {path.name.rpartition("-")[2]: path.name for path in directory.glob("steps/*")}

    def note(self, problem: str) -> None:
        self.problems[problem] = None

    def check_run(self) -> None:
        """Note what `run.json` itself contradicts."""
        known, seen = [method.name for method in self.run.methods], set()
        for record in self.run.cells:
            told = f"{RUN}: {label_of(record)}"
            key = json.dumps([record.method, record.seed, record.draw, record.axis, record.value])
            if key in seen:
                self.note(f"{told}: there are two such cells")
            seen.add(key)
            if record.method not in known:
                self.note(f"{told}: no such method; it has {', '.join(known)}")
            if sorted(record.order) != sorted(self.run.tasks):
                self.note(f"{told}: its order {list(record.order)} is not one of the tasks")
            if lacks := [name for name in NEEDED if name not in record.steps]:
                self.note(f"{told}: {RUN} names no step for {' and '.join(lacks)}")
        main = [record.method for record in self.run.cells if record.axis is None]
        if not main:
            self.note(f"{RUN}: no cells of the main comparison (without an axis)")
        elif self.run.reference not in main:
            self.note(f"{RUN}: the reference '{self.run.reference}' has no cells; others: {', '.join(set(main))}")
        for task in self.run.tasks:
            if task not in self.run.of_task:
                self.note(f"{RUN}: of_task does not say which evaluation measures the task '{task}'")

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
        steps = tuple(self._needed(record))
        place = record.steps.get("evaluate", "")
        where = f"{place}/{SCORES}"
        listed = SCORES in self.names(place)
        matrix: ScoreMatrix | None = self.file(place, SCORES, ScoreMatrix) if listed else self._read(where, ScoreMatrix)
        if matrix is None or not self._check_matrix(where, matrix):
            return None
        names = [score.name for score in self.columns]
        values_SE = np.array([[_by_name(stage.scores)[name].value for name in names] for stage in matrix.stages])
        return FinishedCell(record, matrix, values_SE, self._first(matrix), steps)

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

    def _check_matrix(self, where: str, matrix: ScoreMatrix) -> bool:
        before = len(self.problems)
        if len(matrix.stages) < 2:
            self.note(f"{where}: no stage after the base")
        if matrix.stages[0].learned:
            self.note(f"{where}: the first stage is to be the base, but learned {', '.join(matrix.stages[0].learned)}")
        if matrix.of_task != self.run.of_task:
            self.note(f"{where}: of_task is {matrix.of_task}, in {RUN} {self.run.of_task}")
        learned = {task for stage in matrix.stages for task in stage.learned}
        for task in self.run.tasks:
            if task not in learned:
                self.note(f"{where}: no stage learned the task '{task}'")
        for task in sorted(learned - set(self.run.tasks)):
            self.note(f"{where}: learned '{task}', which is no task of the run")
        if self.first_matrix is None:
            self.first_matrix, self.columns = (where, matrix), matrix.stages[0].scores
            for task, name in self.run.of_task.items():
                if name not in _by_name(self.columns):
                    self.note(f"{where}: no evaluation '{name}', which measures the task '{task}'")
        self._compare(where, matrix, *self.first_matrix)
        return len(self.problems) == before

    def _compare(self, where: str, matrix: ScoreMatrix, first_where: str, first: ScoreMatrix) -> None:
        """Against the first cell's base: the same evaluations of the same base model."""
        if (matrix.base_fingerprint, matrix.model.names_sha256) != (first.base_fingerprint, first.model.names_sha256):
            self.note(f"{where}: of another base model than {first_where}")
        expected = _by_name(self.columns)
        for stage in matrix.stages:
            found = _by_name(stage.scores)
            if len(found) < len(stage.scores):
                self.note(f"{where}: {stage.label}: an evaluation stands there twice")
            if found.keys() != expected.keys():
                names = f"{', '.join(sorted(found))}; in {first_where}: {', '.join(sorted(expected))}"
                self.note(f"{where}: {stage.label}: other evaluations: {names}")
                continue
            for name, score in found.items():
                for key in SAME:
                    ours, theirs = getattr(score, key), getattr(expected[name], key)
                    if ours != theirs:
                        self.note(f"{where}: {name}: {key} is {ours!r}, in {first_where}: {theirs!r}")

    def _first(self, matrix: ScoreMatrix) -> dict[str, int]:
        names = list(dict.fromkeys(self.run.of_task[task] for task in self.run.tasks))
        learned = [{names.index(self.run.of_task[task]) for task in stage.learned} for stage in matrix.stages[1:]]
        return dict(zip(names, first_stages(learned, len(names)).tolist(), strict=True))


def _by_name(scores: tuple[Score, ...]) -> dict[str, Score]:
    return {score.name: score for score in scores}


def _found(reader: _Reader, run: RunFile) -> Found:
    """What the steps of the finished cells found, and the representation of the run."""
    uses: dict[str, list[CellRecord]] = {}
    for cell in run.cells:
        for place in dict.fromkeys(cell.steps.values()):
            uses.setdefault(place, []).append(cell)
    found = Found()
    for place, cells in uses.items():
        step = reader.step(place)
        if step is not None and step.kind in READERS:
            READERS[step.kind](reader, place, tuple(cells), run, found)
    where = run.settings.get("represent_step")
    if not isinstance(where, str):
        return found
    if reader.step(where) is None:
        reader.unfinished[where] = None
        return found
    file: RepresentationFile | None = reader.file(where, "representation.json", RepresentationFile)
    picture = reader.checked(where, "representation.png")
    return replace(
        found,
        representation=None if file is None else (where, file),
        representation_png=None if picture is None else picture.read_bytes(),
    )


def _evaluate(reader: _Reader, place: str, uses: tuple[CellRecord, ...], run: RunFile, found: Found) -> None:
    if reader.first_matrix is not None:
        found.models.setdefault("target", reader.first_matrix[1].model)


def _train(reader: _Reader, place: str, uses: tuple[CellRecord, ...], run: RunFile, found: Found) -> None:
    verification: Verification | None = reader.file(place, "verification.json", Verification)
    if verification is not None:
        found.verified.append((uses, verification))


def _identify(reader: _Reader, place: str, uses: tuple[CellRecord, ...], run: RunFile, found: Found) -> None:
    needs = {method.name: method.needs for method in run.methods}
    role: Role = "target" if needs.get(uses[0].method) == "target" else "source"
    _cores(reader, place, uses, role, run, found)


def _map(reader: _Reader, place: str, uses: tuple[CellRecord, ...], run: RunFile, found: Found) -> None:
    _cores(reader, place, uses, "carried", run, found)
    _match(reader, place, uses, run, found)


def _match(reader: _Reader, place: str, uses: tuple[CellRecord, ...], run: RunFile, found: Found) -> None:
    name = "similarity.safetensors"
    match: LayerMatch | None = reader.file(place, "layer_match.json", LayerMatch)
    file = reader.checked(place, name)
    if match is None or file is None:
        return
    similarity = _similarity(file)
    expected = (match.source.num_layers, match.target.num_layers)
    if similarity is None or similarity.shape != expected:
        reader.note(f"{place}/{name}: no tensor 'similarity' of shape {list(expected)}")
        return
    found.matches.append(MatchFound(place, uses, match, similarity, _picture(reader, place, "heatmap.png")))
    found.models.setdefault("source", match.source)


def _similarity(file: Path) -> NDArray[np.float64] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return np.asarray(tensors.get_tensor("similarity"), dtype=np.float64)
    except (SafetensorError, OSError):
        return None


def _picture(reader: _Reader, place: str, name: str) -> str | None:
    return None if reader.checked(place, name) is None else f"{place}/{name}"


def _cores(reader: _Reader, place: str, uses: tuple[CellRecord, ...], role: Role, run: RunFile, found: Found) -> None:
    """Core files in the order of the tasks, others behind them."""
    there = {name for name in reader.names(place) if name.endswith(CORE) and "/" not in name}
    wanted = [f"{task}{CORE}" for task in run.tasks if f"{task}{CORE}" in there]
    picture = _picture(reader, place, "importance.png")
    for name in (*wanted, *sorted(there.difference(wanted))):
        core: CoreFile | None = reader.file(place, name, CoreFile)
        if core is not None:
            found.cores.append(CoreFound(place, role, uses, core, picture))
            if role == "source":
                found.models.setdefault("source", core.model)


READERS: dict[str, Callable[[_Reader, str, tuple[CellRecord, ...], RunFile, Found], None]] = {
    "evaluate": _evaluate,
    "train": _train,
    "identify": _identify,
    "match": _match,
    "map": _map,
}
