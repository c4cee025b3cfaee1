"""Which steps of a run are up to date, which are to be run, and why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.files import LOCK as COMMANDS_LOCK
from trace_transfer.files import PART, held, sha256_file, write_text
from trace_transfer.models.content import difference
from trace_transfer.records import read_artefact
from trace_transfer.reporting.records import StepFile
from trace_transfer.settings import flat, side_by_side
from trace_transfer.study.steps import TICKET, Step
from trace_transfer.text_formats import read_json_object

if TYPE_CHECKING:
    from trace_transfer.study.graph import RunGraph

RECORD, LOG, LOCK, SEEN, TIME = "step.json", "log.txt", ".lock", ".seen.json", ".time.json"
OWN = (RECORD, LOG, LOCK, SEEN, TIME, TICKET)
SHOWN = 3


@dataclass(frozen=True)
class StepStatus:
    """`record` of a step that is up to date, or None and the `reason` why it is to be run; one that is `stale` was
    finished, and its files are not what is wanted now."""

    step: Step
    record: StepFile | None
    reason: str = ""
    stale: bool = False


def read_status(graph: RunGraph, out: Path, *, rebuild: bool = False) -> tuple[StepStatus, ...]:
    """Look at every step's directory, and hash what may have been changed. A UserError names all files of finished
    steps that were changed, removed or added by hand; with `rebuild`, such steps are made again instead."""
    found: dict[str, StepStatus] = {}
    changed: list[str] = []
    past = _past(graph, out)
    for step in graph.steps:
        directory = out / step.directory
        was_finished, record, reason = (directory / RECORD).is_file(), None, ""
        if was_finished:
            record, reason = _record(step, out)
        elif (directory / TICKET).is_file():
            reason = "begun and not finished: goes on"
        if record is not None and (problems := changes(directory, record)):
            changed += [f"{step.directory}/{problem}" for problem in problems]
            record, reason = None, f"changed by hand: {', '.join(problems[:SHOWN])}"
        if record is None and not reason:
            others = (differences(other, step) for other in past.get(step.kind, ()))
            nearest = min(others, key=len, default=["not run yet"])
            reason = "; ".join([*nearest[:SHOWN], *([f"{len(nearest) - SHOWN} more"] * (len(nearest) > SHOWN))])
        found[step.address] = StepStatus(step, record, reason, was_finished and record is None)
    if changed and not rebuild:
        raise UserError(
            f"{out}: files of finished steps are not as these made them; put them back, or give --rebuild to run their "
            "steps again:\n" + listing(changed)
        )
    for step in reversed(graph.steps):  # what was removed is needed again once a step that reads it is to be run
        status = found[step.address]
        waiting = [other for other in graph.dependants(step) if found[other.address].record is None]
        if status.record is not None and status.record.removed and waiting:
            reason = f"its large files were removed (keep: …), and {waiting[0].kind} needs them"
            found[step.address] = replace(status, record=None, reason=reason, stale=True)
    return tuple(found.values())


def changes(directory: Path, record: StepFile) -> list[str]:
    """Files that are not as the step made them. A file is hashed unless size and times are those of the last look."""
    there, problems, seen = files_of(directory), list[str](), dict[str, Any]()
    expected = {name: digest for name, digest in record.files.items() if name not in record.removed}
    with suppress(UserError):
        seen = read_json_object(directory / SEEN)
    for name, digest in expected.items():
        if name not in there:
            problems.append(f"{name}: missing")
        elif seen.get(name) != (mark := _mark(there[name])):
            if sha256_file(there[name]) != digest:
                problems.append(f"{name}: its hash is another")
            seen[name] = mark
    problems += [f"{name}: not there when the step was finished" for name in there if name not in expected]
    if not problems:
        remember(directory, seen)
    return problems


def files_of(directory: Path) -> dict[str, Path]:
    """What a step wrote, by relative names, but for its record and what helps to run it."""
    return {
        str(file.relative_to(directory)): file
        for file in sorted(directory.rglob("*"))
        if file.is_file()
        and not (file.parent == directory and file.name in OWN)
        and not (file.name.startswith(".") and file.suffix == PART)
        and not file.name.startswith(COMMANDS_LOCK)  # of a stage that was killed
    }


def remember(directory: Path, seen: Mapping[str, Any] | None = None) -> None:
    """Note size and times of files whose hashes are known, so that the next look is quick."""
    if seen is None:
        seen = {name: _mark(file) for name, file in files_of(directory).items()}
    text = json.dumps(seen)
    if not (directory / SEEN).is_file() or (directory / SEEN).read_text("utf-8") != text:
        write_text(directory / SEEN, text)


def _mark(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def is_finished(step: Step, out: Path) -> bool:
    """Whether its record is there; its files are not looked at."""
    return (out / step.directory / RECORD).is_file() and _record(step, out)[0] is not None


def _record(step: Step, out: Path) -> tuple[StepFile | None, str]:
    try:
        record: StepFile = read_artefact(out / step.directory / RECORD, StepFile)
    except ArtefactError as error:
        return None, f"its record cannot be used ({error})"
    return (record, "") if record.address == step.address else (None, "its record is of another step")


def _past(graph: RunGraph, out: Path) -> dict[str, list[StepFile]]:
    """Kind → steps that were finished with other settings than those of now: what a new one is compared with."""
    now = {step.address for step in graph.steps}
    found: dict[str, list[StepFile]] = {}
    for file in sorted((out / "steps").glob(f"*/{RECORD}")):
        with suppress(ArtefactError):
            record: StepFile = read_artefact(file, StepFile)
            if record.address not in now:
                found.setdefault(record.kind, []).append(record)
    return found


def differences(record: StepFile, step: Step) -> list[str]:
    """What makes a step another one than that of a record, a line for each setting and input."""
    both = side_by_side(flat(record.settings), flat(step.settings))
    told = [f"{key}: {old} → {new}" for key, old, new in both if old != new]
    inputs = step.all_inputs
    for name in sorted({*inputs, *record.inputs}):
        if (old := record.inputs.get(name)) != (new := inputs.get(name)):
            told.append(f"{name} is another" if name in step.needs else difference(name, old, new))
    return told


def prune_steps(graph: RunGraph, out: Path) -> tuple[str, ...]:
    """Remove the directories of steps that are not of the run as it is now; returns their names. A UserError where that
    depends on learning rates that are not chosen yet."""
    if not (out / "steps").is_dir():
        return ()
    if graph.waiting:
        raise UserError(
            f"{graph.run.file}: the learning rates of {', '.join(graph.waiting)} are not chosen yet, so what is not "
            "needed is not known; run it first"
        )
    needed = {out / step.directory for step in graph.steps}
    with held(out):
        unneeded = [place for place in sorted((out / "steps").iterdir()) if place.is_dir() and place not in needed]
        for place in unneeded:
            shutil.rmtree(place)
    return tuple(place.name for place in unneeded)
