"""`report`: a run's directory → one self-contained `report.html` and `report.md`.

Reads: `run.json` and, of the steps that its cells name, `step.json`, layer matches, core files, verifications and the
representation; scores and costs through `summarise`. Only files whose hash is that in `step.json` are used. Writes both
files whole. What is not finished yet is left out, and the report says so.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.evaluation.scores import ScoreMatrix
from trace_transfer.files import sha256_file, write_text
from trace_transfer.locking import held
from trace_transfer.patch.records import Verification
from trace_transfer.records import ModelIdentity, Strict, read_artefact, to_json
from trace_transfer.reporting.contents import (
    CoreFound,
    MatchFound,
    ReportContents,
    RepresentationFound,
    Role,
    Use,
    VerifiedFound,
)
from trace_transfer.reporting.document import document, markdown, page
from trace_transfer.reporting.records import CellRecord, RunFile, StepFile, Summary
from trace_transfer.reporting.summarising import summarise
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.transfer.records import LayerMatch

RUN, STEP = "run.json", "step.json"
HTML, MARKDOWN = "report.html", "report.md"
CORE = ".core.json"
MATCH, SIMILARITY, MATCH_PICTURE = "layer_match.json", "similarity.safetensors", "heatmap.png"
SCORES, VERIFICATION, IMPORTANCE = "scores.json", "verification.json", "importance.png"
REPRESENTATION, PICTURE = "representation.json", "representation.png"


@dataclass(frozen=True)
class Reported:
    """What was written; `unfinished` steps are not in it."""

    files: tuple[Path, ...]
    unfinished: tuple[str, ...]


def write_report(directory: str | Path, out: str | Path | None = None) -> Reported:
    """Write the report of a run.

    Args:
        directory: of the run.
        out: where the report is written; by default in the run's directory.

    Raises:
        UserError: it is no run's directory, its files are missing or were changed (all of them are told), nothing of
            it is finished, or the place is in use.
    """
    contents = read_contents(Path(directory))
    with held(directory if out is None else out) as target:
        return write_contents(contents, Path(directory), target)


def write_contents(contents: ReportContents, place: Path, target: Path) -> Reported:
    """Write what was read in a run's directory into another, or the same, which is held.

    Raises:
        UserError: it cannot be written.
    """
    made = document(contents)
    files = (target / HTML, target / MARKDOWN)
    # Markdown points at pictures of the run, which it does not hold.
    to_run = os.path.relpath(place.resolve(), target.resolve())
    write_text(files[0], page(made))
    write_text(files[1], markdown(made, "" if to_run == "." else f"{Path(to_run).as_posix()}/"))
    return Reported(files, contents.unfinished)


def read_contents(directory: Path) -> ReportContents:
    """Read all that the report is made of.

    Raises:
        UserError: see `write_report`.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; expected that of a run, made by `trace-transfer run`")
    if not (directory / RUN).is_file():
        raise UserError(
            f"{directory}: no {RUN} in it, so this is not the directory of a run, or nothing of it is finished; "
            "expected what `trace-transfer run` leaves"
        )
    whole: RunFile = read_artefact(directory / RUN, RunFile)
    reader = _Reader(directory)
    finished = tuple(cell for cell in whole.cells if reader.is_finished(cell))
    represent = whole.settings.get("represent_step")
    run = whole.model_copy(update={"cells": finished, "reference": _reference(whole, finished)})
    steps = reader.finished
    uses = _uses(run)
    found = _Found()
    for place in steps:
        if place in uses:
            _read_step(reader, place, uses[place], run, found)
    if isinstance(represent, str) and reader.step(represent) is not None:
        if (file := reader.file(represent, REPRESENTATION, RepresentationFile)) is not None:
            picture = reader.checked(represent, PICTURE)
            drawn = None if picture is None else picture.read_bytes()
            found.representations.append(RepresentationFound(represent, file, drawn))
    elif isinstance(represent, str):
        reader.unfinished[represent] = None
    if reader.problems:
        raise ArtefactError(
            f"{directory}: files of finished steps are missing, or not as these made them; run it again to make them "
            "again:\n" + listing(list(reader.problems))
        )
    if not any(cell.axis is None for cell in finished):
        raise UserError(
            f"{directory}: nothing of the main comparison is finished, so there is nothing to report; "
            f"{len(reader.unfinished)} steps are missing:\n" + listing(list(reader.unfinished))
        )
    return ReportContents(
        directory=directory.resolve(),
        run=run,
        summary=_summary(directory, whole, run),
        models={role: found.models[role] for role in ("source", "target") if role in found.models},
        steps=reader.finished,
        unfinished=tuple(reader.unfinished),
        matches=tuple(found.matches),
        cores=tuple(found.cores),
        verified=tuple(found.verified),
        representations=tuple(found.representations),
        importance=found.importance,
        num_left_out=len(whole.cells) - len(finished),
    )


def _reference(run: RunFile, finished: tuple[CellRecord, ...]) -> str:
    """The run's own, or the first method that is finished."""
    there = [cell.method for cell in finished if cell.axis is None]
    return run.reference if run.reference in there or not there else there[0]


def _summary(directory: Path, whole: RunFile, run: RunFile) -> Summary:
    """Of a run that is not complete, the summary of its finished cells: of a directory that has no others."""
    if whole == run:
        return summarise(directory)
    with tempfile.TemporaryDirectory() as temporary:
        part = Path(temporary) / directory.resolve().name
        part.mkdir()
        (part / "steps").symlink_to((directory / "steps").resolve(), target_is_directory=True)
        write_text(part / RUN, to_json(run))
        return summarise(part)


def _uses(run: RunFile) -> dict[str, tuple[Use, ...]]:
    """Step's directory → the cells that it is of, in their order."""
    found: dict[str, dict[Use, None]] = {}
    for cell in run.cells:
        for place in cell.steps.values():
            found.setdefault(place, {})[Use.of(cell)] = None
    return {place: tuple(uses) for place, uses in found.items()}


@dataclass
class _Found:
    """What has been read so far."""

    models: dict[str, ModelIdentity] = field(default_factory=dict)
    matches: list[MatchFound] = field(default_factory=list)
    cores: list[CoreFound] = field(default_factory=list)
    verified: list[VerifiedFound] = field(default_factory=list)
    representations: list[RepresentationFound] = field(default_factory=list)
    importance: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Reads files of steps, each checked by its hash, and notes what is wrong instead of stopping at the first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problems: dict[str, None] = {}
        self.unfinished: dict[str, None] = {}
        self._steps: dict[str, StepFile | None] = {}

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
            file = self.directory / place / STEP
            self._steps[place] = self._read(file, f"{place}/{STEP}", StepFile) if file.is_file() else None
        return self._steps[place]

    def names(self, place: str) -> tuple[str, ...]:
        """Names of the files that a finished step has."""
        step = self.step(place)
        return () if step is None else tuple(name for name in step.files if name not in step.removed)

    def checked(self, place: str, name: str) -> Path | None:
        """A file as its step made it; None if the step made none, and where something is wrong with it."""
        step = self.step(place)
        if step is None or name not in self.names(place):
            return None
        file = self.directory / place / name
        if not file.is_file():
            self.problems[f"{place}/{name}: missing"] = None
        elif sha256_file(file) != step.files[name]:
            self.problems[f"{place}/{name}: was changed after its step was finished (its hash is another)"] = None
        else:
            return file
        return None

    def file(self, place: str, name: str, kind: type[Strict]) -> Any:
        file = self.checked(place, name)
        return None if file is None else self._read(file, f"{place}/{name}", kind)

    def _read(self, file: Path, name: str, kind: type[Strict]) -> Any:
        try:
            return read_artefact(file, kind)
        except ArtefactError as error:
            self.problems[str(error).replace(str(file), name)] = None
            return None


def _read_step(reader: _Reader, place: str, uses: tuple[Use, ...], run: RunFile, found: _Found) -> None:
    kind = reader.finished[place].kind
    if kind in READERS:
        READERS[kind](reader, place, uses, run, found)


def _evaluate(reader: _Reader, place: str, uses: tuple[Use, ...], run: RunFile, found: _Found) -> None:
    matrix: ScoreMatrix | None = reader.file(place, SCORES, ScoreMatrix)
    if matrix is not None:
        found.models.setdefault("target", matrix.model)
    elif SCORES not in reader.names(place):
        reader.problems[f"{place}/{SCORES}: missing"] = None


def _train(reader: _Reader, place: str, uses: tuple[Use, ...], run: RunFile, found: _Found) -> None:
    verification: Verification | None = reader.file(place, VERIFICATION, Verification)
    if verification is not None:
        found.verified.append(VerifiedFound(place, uses, verification.counts, verification.ok))


def _identify(reader: _Reader, place: str, uses: tuple[Use, ...], run: RunFile, found: _Found) -> None:
    needs = {method.name: method.needs for method in run.methods}
    role: Role = "target" if needs.get(uses[0].method) == "target" else "source"
    _cores(reader, place, uses, role, run, found)
    if reader.checked(place, IMPORTANCE) is not None:
        found.importance[place] = f"{place}/{IMPORTANCE}"


def _map(reader: _Reader, place: str, uses: tuple[Use, ...], run: RunFile, found: _Found) -> None:
    _cores(reader, place, uses, "carried", run, found)
    _match(reader, place, uses, run, found)


def _match(reader: _Reader, place: str, uses: tuple[Use, ...], run: RunFile, found: _Found) -> None:
    match: LayerMatch | None = reader.file(place, MATCH, LayerMatch)
    file = reader.checked(place, SIMILARITY)
    if match is None or file is None:
        return
    similarity = _similarity(file)
    expected = (match.source.num_layers, match.target.num_layers)
    if similarity is None or similarity.shape != expected:
        reader.problems[f"{place}/{SIMILARITY}: no tensor 'similarity' of shape {list(expected)}"] = None
        return
    picture = f"{place}/{MATCH_PICTURE}" if reader.checked(place, MATCH_PICTURE) is not None else None
    found.matches.append(MatchFound(place, uses, match, similarity, picture))
    found.models.setdefault("source", match.source)


def _similarity(file: Path) -> NDArray[np.float64] | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            return np.asarray(tensors.get_tensor("similarity"), dtype=np.float64)
    except (SafetensorError, OSError):
        return None


def _cores(reader: _Reader, place: str, uses: tuple[Use, ...], role: Role, run: RunFile, found: _Found) -> None:
    names = {name for name in reader.names(place) if name.endswith(CORE) and "/" not in name}
    for name in _in_order(names, run.tasks):
        core: CoreFile | None = reader.file(place, name, CoreFile)
        if core is not None:
            found.cores.append(CoreFound(place, role, uses, core))
            if role == "source":
                found.models.setdefault("source", core.model)


def _in_order(names: set[str], tasks: tuple[str, ...]) -> Iterator[str]:
    """Core files in the order of the tasks, others behind them."""
    wanted = [f"{task}{CORE}" for task in tasks]
    yield from (name for name in wanted if name in names)
    yield from sorted(names.difference(wanted))


READERS: dict[str, Callable[[_Reader, str, tuple[Use, ...], RunFile, _Found], None]] = {
    "evaluate": _evaluate,
    "train": _train,
    "identify": _identify,
    "match": _match,
    "map": _map,
}
