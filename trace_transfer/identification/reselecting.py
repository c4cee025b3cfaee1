"""`select`: core files from scores that are known: those of other core files, or of the authors' lists.

Reads: core files or a JSON list. Writes: `TASK.core.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trace_transfer.core_sets.authors_list import core_parameters, read_authors_list
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.selection import select
from trace_transfer.errors import UserError, listing
from trace_transfer.families.model_handle import names_told, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.files import refuse_inputs, write_text
from trace_transfer.identification.score_inputs import entries_of
from trace_transfer.identification.scoring_settings import Unit
from trace_transfer.locking import held
from trace_transfer.records import library_versions, read_artefact, require_task, to_json
from trace_transfer.settings import Share, refuse, validated


def reselect(file: Path, ratio: float | None, unit: str | None) -> CoreFile:
    """Another core set from the scores of a core file.

    Raises:
        ArtefactError: it is not a core file.
        UserError: a ratio or unit that is none; `rows` of scores of whole tensors, or the other way round.
    """
    refuse(selection_problems(ratio, unit))
    core: CoreFile = read_artefact(file, CoreFile)
    ratio = core.method.ratio if ratio is None else ratio
    unit = core.method.unit if unit is None else unit
    if unit != core.method.unit and "rows" in (unit, core.method.unit):
        raise UserError(
            f"{file}: was scored by {core.method.unit}, and cannot be selected from by {unit}: score again with --unit "
            f"{unit}"
        )
    return core.model_copy(
        update={
            "method": core.method.model_copy(update={"ratio": ratio, "unit": unit}),
            "parameters": select(core.parameters, ratio, unit),
        }
    )


def reselect_all(
    files: Sequence[Path], ratio: float | None, unit: str | None, out: Path | str | None
) -> tuple[CoreFile, ...]:
    """`reselect` for several files, in their order; written into a directory, if one is named.

    Raises:
        ArtefactError: some are no core files; all are named.
        UserError: as `reselect`; two of one task, or one that would be written over.
    """
    refuse(selection_problems(ratio, unit))
    cores, problems = [], []
    for file in files:
        try:
            cores.append(reselect(file, ratio, unit))
        except UserError as error:
            problems.append(error)
    if len(problems) > 1:
        raise UserError("core files that cannot be used:\n" + listing(list(map(str, problems))))
    if problems:
        raise problems[0]
    if out is not None:
        _write(cores, files, out)
    return tuple(cores)


def selection_problems(ratio: float | None, unit: str | None) -> list[str]:
    """What is wrong with the settings of a selection; None is as before."""
    problems: list[str] = []
    validated("ratio", ratio, Share | None, problems)
    validated("unit", unit, Unit | None, problems)
    return problems


def import_list(
    file: Path, model: str | Path, task: str, ratio: float | None, unit: str | None, rules: Sequence[str] = ()
) -> CoreFile:
    """A core file from a list of the authors' scripts. Of a list of fewer names than the model has all are core.

    Raises:
        ArtefactError: the list cannot be read, or names what the model lacks.
        UserError: a full list without a ratio, or a selected one with one; a task that is no name.
    """
    refuse(selection_problems(ratio, unit))
    opened = open_model(model, load_families([Path(path) for path in rules]))
    shapes = opened.anatomy.inventory.shapes
    method, listed = read_authors_list(file)
    told = names_told(opened, [entry.name for entry in listed])
    listed = [entry._replace(name=told.translated.get(entry.name, entry.name)) for entry in listed]
    parameters = tuple(
        parameter.model_copy(update={"component": entry.component, "layer": entry.layer})
        for parameter in core_parameters(listed, shapes, told.known)
        for entry in entries_of(opened.anatomy, parameter.name, parameter.shape, None)
    )
    whole = len(listed) == len(shapes)
    if whole and ratio is None:
        raise UserError(f"{file}: lists all parameters of {opened.name}; give --ratio to select from them")
    if not whole and ratio is not None:
        raise UserError(
            f"{file}: lists {len(listed)} of the {len(shapes)} parameters of {opened.name}: a core set, of which no "
            "other can be made; leave --ratio out"
        )
    unit = "tensors" if unit is None else unit
    if whole and ratio is not None:
        parameters = select(parameters, ratio, unit)
    if unit == "rows":
        raise UserError("such lists name whole parameters: rows cannot be selected from them")
    return CoreFile(
        task=require_task(task),
        model=opened.identity,
        method={"name": method, "ratio": ratio or len(listed) / len(shapes), "unit": unit, "imported_from": file.name},
        parameters=parameters,
        libraries=library_versions(),
    )


def _write(cores: Sequence[CoreFile], files: Sequence[Path], out: Path | str) -> None:
    """Write core files into a directory, or nothing where two are of one task or one of `files` would be lost."""
    tasks = [core.task for core in cores]
    if len(set(tasks)) < len(tasks):
        raise UserError(f"core files of the same task would overwrite each other: {', '.join(tasks)}")
    written = [core_path(out, core) for core in cores]
    refuse_inputs(written, files)
    with held(out):
        for core, path in zip(cores, written, strict=True):
            write_text(path, to_json(core))


def core_path(out: Path | str, core: CoreFile) -> Path:
    """Where a core file lies in a directory."""
    return Path(out) / f"{core.task}.core.json"
