"""A run, read back: its trained models with their scores and costs, and what its steps found.

Reads: `run.json` and, of each cell that is finished, `step.json` of all steps that it needed, the scores, layer
matches, core files, verifications and the representation. Only files with the hash that `step.json` gives are used, and
everything that is missing or wrong is told at once. Cells that are not finished are left out.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

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
# Methods that take a carried core set for its size, and train others.
SIZE_ONLY = (
    "random", "first", "last", "random-tensors", "random-rows", "random-parameters", "random-within-rows",
    "random-within-parameters", "norms-random", "head-norms-random",
)  # fmt: skip

Role = Literal["source", "target", "carried"]
Key = TypeVar("Key")
Value = TypeVar("Value")


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """Key → all its values."""
    found: dict[Key, list[Value]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


@dataclass(frozen=True)
class FinishedCell:
    """One trained model."""

    record: CellRecord
    matrix: ScoreMatrix
    values_SE: NDArray[np.float64]  # scores after each stage, first of the base; a column per evaluation, own metrics
    first: Mapping[str, int]  # evaluation → the stage (from 1) that first trained a task that it measures
    steps: tuple[StepFile, ...]  # all that it needed, each once


@dataclass(frozen=True)
class MatchFound:
    """A layer match of the main comparison; `picture` is its PNG's path from the run's directory, if it has one."""

    directory: str
    match: LayerMatch
    similarity: NDArray[np.float64]
    picture: str | None


@dataclass(frozen=True)
class CoreFound:
    """A core file, on which model it was identified, and the cells of the main comparison that use it."""

    directory: str
    role: Role
    uses: tuple[CellRecord, ...]
    core: CoreFile
    picture: str | None

    @property
    def trained_by(self) -> tuple[CellRecord, ...]:
        """Cells that train this set; those that only take its size if there are no others."""
        return tuple(cell for cell in self.uses if cell.method not in SIZE_ONLY) or self.uses

    @property
    def score(self) -> str:
        return self.core.method.name.upper()


@dataclass
class FinishedRun:
    """A run as far as it is finished; what its steps found is in the order of the cells."""

    directory: Path  # absolute
    record: RunFile  # with the cells that are finished alone; without any of the reference the first method is it
    evaluations: tuple[Score, ...] = ()  # of the base in the first cell: names and metrics of the columns
    cells: list[FinishedCell] = field(default_factory=list)
    steps: dict[str, StepFile] = field(default_factory=dict)  # directory → step, of all that are finished
    unfinished: list[str] = field(default_factory=list)  # directories of the other steps
    num_left_out: int = 0  # cells that are not finished
    models: dict[str, ModelIdentity] = field(default_factory=dict)
    matches: list[MatchFound] = field(default_factory=list)
    cores: list[CoreFound] = field(default_factory=list)
    # The uses of trained models in the main comparison, and what moved in them.
    verified: list[tuple[tuple[CellRecord, ...], Verification]] = field(default_factory=list)
    representation: tuple[str, RepresentationFile, bytes | None] | None = None  # directory, file, and PNG if there

    @property
    def taught(self) -> tuple[str, ...]:
        """Evaluations that measure a task, in the order of the tasks, each once."""
        return tuple(dict.fromkeys(self.record.of_task[task] for task in self.record.tasks))

    @property
    def main(self) -> tuple[CellRecord, ...]:
        return tuple(cell for cell in self.record.cells if cell.axis is None)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(cell.seed for cell in self.main))

    @property
    def orders(self) -> dict[tuple[str, ...], list[int]]:
        """Orders of the tasks, each with the seeds that train it."""
        return grouped(dict.fromkeys((cell.order, cell.seed) for cell in self.main))

    def title(self, method: str) -> str:
        return next((one.title for one in self.record.methods if one.name == method), method)

    def name_of(self, role: str) -> str:
        """A model's name without the directories that it lies in."""
        found = self.models.get(role)
        name = found.id if found else (self.record.source or "no source") if role == "source" else self.record.target
        return name.rstrip("/").rpartition("/")[2] or name


def read_run(directory: str | Path) -> FinishedRun:
    """Read all of a run that is finished; one ArtefactError for all files that are missing, changed or of another run,
    a UserError if no cell of the main comparison is finished."""
    directory = Path(directory)
    if not (directory / RUN).is_file():
        raise UserError(
            f"{directory}: no {RUN} in it, so this is not the directory of a run; expected what `trace-transfer run` "
            "leaves"
        )
    reader = _Reader(directory, read_artefact(directory / RUN, RunFile))
    searches = gc.isenabled()
    gc.disable()  # what is read is no garbage: of hundreds of core files half the time went into the search for some
    try:
        reader.read()
    finally:
        (gc.enable if searches else gc.disable)()
    if reader.problems:
        raise ArtefactError(
            f"{directory}: {several(len(reader.problems), 'problem')}; run it again to make what is missing or was "
            "changed:\n" + listing(list(reader.problems))
        )
    if not reader.run.main:
        raise UserError(
            f"{directory}: no model of the main comparison is finished, so there is nothing to report yet; steps not "
            f"finished: {len(reader.run.unfinished)}"
        )
    return reader.run


class _Reader:
    """Reads steps and their files, each once, and notes what is wrong instead of stopping at the first."""

    def __init__(self, directory: Path, record: RunFile) -> None:
        self.directory, self.run = directory, FinishedRun(directory.resolve(), record)
        self.problems: dict[str, None] = {}

    def note(self, problem: str) -> None:
        self.problems[problem] = None

    def read(self) -> None:
        run, whole = self.run, self.run.record
        represented = whole.settings.get("represent_step")
        places = [place for cell in whole.cells for place in cell.steps.values()]
        for place in dict.fromkeys([*places, *([represented] if isinstance(represented, str) else [])]):
            if not (self.directory / place / STEP).is_file():
                run.unfinished.append(place)
            elif (step := self._read(f"{place}/{STEP}", StepFile)) is not None:
                run.steps[place] = step
        cells = tuple(cell for cell in whole.cells if not {*cell.steps.values()} & {*run.unfinished})
        methods = [cell.method for cell in cells if cell.axis is None]
        reference = whole.reference if whole.reference in methods else next(iter(methods), whole.reference)
        run.record = whole.model_copy(update={"cells": cells, "reference": reference})
        run.num_left_out = len(whole.cells) - len(cells)
        uses = grouped((place, cell) for cell in cells for place in dict.fromkeys(cell.steps.values()))
        for cell in run.record.cells:
            self._add_scores(cell)
        needs = {method.name: method.needs for method in run.record.methods}
        for place, using in uses.items():
            kind, main = run.steps[place].kind if place in run.steps else "", tuple(c for c in using if c.axis is None)
            if kind == "train" and (verification := self.file(place, "verification.json", Verification)) is not None:
                run.verified.append((main, verification))
            if kind == "identify" and main:
                refined = place == main[0].steps.get("refine")
                self._add_cores(place, main, "target" if refined or needs[main[0].method] == "target" else "source")
            if kind in ("match", "map") and main:
                self._add_cores(place, main, "carried")
                self._add_match(place)
        if isinstance(represented, str):
            file: RepresentationFile | None = self.file(represented, "representation.json", RepresentationFile)
            picture = self.checked(represented, "representation.png")
            if file is not None:
                run.representation = represented, file, None if picture is None else picture.read_bytes()

    def checked(self, place: str, name: str) -> Path | None:
        """A file as its step made it; None if the step made none or let go of it, or something is wrong with it."""
        step, file = self.run.steps.get(place), self.directory / place / name
        if step is None or name not in step.files or name in step.removed:
            return None
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

    def _add_scores(self, record: CellRecord) -> None:
        run, place = self.run, record.steps["evaluate"]
        matrix: ScoreMatrix | None = self.file(place, SCORES, ScoreMatrix)
        if matrix is None:
            if place in run.steps and SCORES not in run.steps[place].files:
                self.note(f"{place}/{SCORES}: missing")
            return
        run.models["target"], run.evaluations = matrix.model, run.evaluations or matrix.stages[0].scores
        names, of_task = [score.name for score in run.evaluations], run.record.of_task
        found = [{score.name: score.value for score in stage.scores} for stage in matrix.stages]
        learned = {task for stage in matrix.stages[1:] for task in stage.learned}
        alike = all(one.keys() == {*names} for one in found) and {*of_task.values()} <= {*names}
        if learned != {*run.record.tasks} or matrix.of_task != of_task or not alike:
            self.note(f"{place}/{SCORES}: of other tasks or evaluations than {RUN}")
            return
        first: dict[str, int] = {}
        for number, stage in enumerate(matrix.stages[1:], 1):
            for task in stage.learned:
                first.setdefault(of_task[task], number)
        values_SE = np.array([[one[name] for name in names] for one in found])
        steps = [run.steps[place] for place in dict.fromkeys(record.steps.values()) if place in run.steps]
        run.cells.append(FinishedCell(record, matrix, values_SE, first, tuple(steps)))

    def _add_match(self, place: str) -> None:
        match: LayerMatch | None = self.file(place, "layer_match.json", LayerMatch)
        file = self.checked(place, "similarity.safetensors")
        if match is None or file is None:
            return
        try:
            similarity = read_similarities(file, match)[match.representation]
        except ArtefactError as error:
            self.note(str(error))
            return
        self.run.matches.append(MatchFound(place, match, similarity, self._picture(place, "heatmap.png")))
        self.run.models.setdefault("source", match.source)

    def _add_cores(self, place: str, uses: tuple[CellRecord, ...], role: Role) -> None:
        picture = self._picture(place, "importance.png")
        for task in self.run.record.tasks:
            core: CoreFile | None = self.file(place, f"{task}{CORE}", CoreFile)
            if core is not None:
                self.run.cores.append(CoreFound(place, role, uses, core, picture))
                if role == "source":
                    self.run.models.setdefault("source", core.model)

    def _picture(self, place: str, name: str) -> str | None:
        return None if self.checked(place, name) is None else f"{place}/{name}"
