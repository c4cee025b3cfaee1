"""`score`: from deltas to one core file per task.

Reads: a base model and fine-tuned ones, or the `deltas.json` of an earlier run. Writes: `deltas.json` and one
`TASK.core.json` per task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trace_transfer.artefacts import CoreFile, CoreParameter, DeltaFile, library_versions, read_artefact, to_json
from trace_transfer.errors import ArtefactError, UserError
from trace_transfer.files import prepare_directory, write_text
from trace_transfer.maths.saliency import METHODS
from trace_transfer.progress import Reporter
from trace_transfer.rules.registry import load_families
from trace_transfer.stages.differencing import deltas_of, plan_deltas, read_deltas
from trace_transfer.stages.opening import open_model
from trace_transfer.stages.selection import select

DELTAS = "deltas.json"
MANY_UNCHANGED = 0.25


@dataclass(frozen=True)
class Scored:
    """Core files of all tasks, what to be warned of, and the files written."""

    cores: tuple[CoreFile, ...]
    warnings: tuple[str, ...]
    files: tuple[Path, ...]


def run_score(
    base: str | Path,
    tuned: Mapping[str, str | Path],
    *,
    method: str,
    ratio: float,
    unit: str,
    out: str | Path,
    rules: tuple[str, ...],
    reporter: Reporter,
) -> Scored:
    """Score all parameters for every task by how its fine-tuned model differs from the base.

    Raises:
        UserError: models that do not fit together, a single task with `cs`, or an output that cannot be written.
    """
    if method == "cs" and len(tuned) < 2:
        raise UserError(f"cs compares tasks and needs at least two, found {len(tuned)}: {', '.join(tuned) or 'none'}")
    registry = load_families([Path(path) for path in rules])
    opened_base = open_model(base, registry)
    opened = {task: open_model(name, registry) for task, name in tuned.items()}
    checkpoints = plan_deltas(opened_base, opened)
    directory = prepare_directory(out)
    known = _earlier(directory / DELTAS, {task: c.fingerprint for task, c in checkpoints.items()})
    if known is None:
        known = read_deltas(opened_base, opened, checkpoints, reporter)
        write_text(directory / DELTAS, to_json(known))
    else:
        reporter.note(f"{directory / DELTAS}: these models were compared before")
    cores = core_files(known, method, ratio, unit)
    files = [directory / DELTAS]
    for core in cores:
        files.append(directory / f"{core.task}.core.json")
        write_text(files[-1], to_json(core))
    return Scored(cores, tuple(_warnings(known, method)), tuple(files))


def core_files(deltas: DeltaFile, method: str, ratio: float, unit: str) -> tuple[CoreFile, ...]:
    """One core file per task, by a method of `METHODS`; parameters that cannot be scored are listed without one."""
    table = deltas_of(deltas)
    cores = []
    for index, tuned in enumerate(deltas.tuned):
        scores = METHODS[method](table, index)
        parameters = [
            CoreParameter(name=p.name, shape=p.shape, score=None if np.isnan(score) else float(score))
            for p, score in zip(deltas.parameters, scores, strict=True)
        ]
        cores.append(
            CoreFile(
                task=tuned.task,
                model=deltas.model,
                method={"name": method, "ratio": ratio, "unit": unit, "tasks": [t.task for t in deltas.tuned]},
                parameters=select(parameters, ratio, unit),
                libraries=library_versions(),
            )
        )
    return tuple(cores)


def _earlier(file: Path, fingerprints: Mapping[str, str]) -> DeltaFile | None:
    """The deltas of an earlier run on the same weights, or None."""
    if not file.is_file():
        return None
    try:
        found: DeltaFile = read_artefact(file, DeltaFile)
    except ArtefactError:
        return None
    theirs = {"": found.base_fingerprint, **{tuned.task: tuned.fingerprint for tuned in found.tuned}}
    return found if list(theirs.items()) == list(fingerprints.items()) else None


def _warnings(deltas: DeltaFile, method: str) -> list[str]:
    found = []
    total = deltas.model.num_elements
    for index, tuned in enumerate(deltas.tuned):
        unchanged = sum(parameter.unchanged[index] for parameter in deltas.parameters) / total
        still = [parameter.name for parameter in deltas.parameters if parameter.norms[index] == 0]
        if tuned.sixteen_bit and unchanged > MANY_UNCHANGED:
            found.append(
                f"{tuned.task}: saved in 16 bits, and {unchanged:.0%} of the elements are as in the base: updates were "
                "rounded away, and scores with them. Save fine-tuned models in float32"
            )
        if still:
            shown = ", ".join(still[:3]) + (f", … ({len(still)})" if len(still) > 3 else "")
            found.append(f"{tuned.task}: did not move at all: {shown}")
    if method == "cs" and len(deltas.tuned) == 2:
        found.append("cs with two tasks gives both the same core set: the cosine of two deltas has no side")
    return found


def reselect(file: Path, ratio: float, unit: str | None) -> CoreFile:
    """Another core set from the scores of a core file.

    Raises:
        ArtefactError: it is not a core file.
    """
    core: CoreFile = read_artefact(file, CoreFile)
    unit = unit or core.method.unit
    return core.model_copy(
        update={
            "method": core.method.model_copy(update={"ratio": ratio, "unit": unit}),
            "parameters": select(core.parameters, ratio, unit),
        }
    )
