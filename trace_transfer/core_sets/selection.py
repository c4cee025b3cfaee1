"""The top r of scored tensors or rows: the one place where a ratio becomes a core set; and `select`, anew from files.

Reads and writes: `TASK.core.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor, Unit
from trace_transfer.errors import UserError, each_of
from trace_transfer.families.anatomy import Anatomy, Split, unit_kinds, unit_parts
from trace_transfer.files import held, refuse_inputs, write_text
from trace_transfer.records import read_artefact, to_json
from trace_transfer.settings import Settings, Share, setting

ROUNDING = 1e-9  # keeps 0.29 * 100, which is 28.999999999999996, at 29


class Selection(Settings):
    """What of scores is core; None is as before."""

    ratio: Share | None = setting(None, "Core share.")
    unit: Unit | None = setting(None, "What it counts.")


def select(tensors: Sequence[CoreTensor], ratio: float, unit: str = "tensors") -> tuple[CoreTensor, ...]:
    """Mark the top r as core.

    Args:
        tensors: entries in order of preference where scores tie; those without a score are never chosen. With
            `rows`, an entry is a head or a neuron, or a whole tensor that has none.
        ratio: in (0, 1]; 1 selects everything that has a score.
        unit: `tensors`: max(1, floor(r · entries)), as the paper. `elements` and `rows`: in score order, whatever still
            fits into r of all tensors; an embedding larger than that is passed over, however high its score. Where
            nothing fits the best one alone is taken.

    Returns:
        All entries, best score first, those without a score last; equal scores in the order given.
    """
    ranked = sorted(tensors, key=lambda one: (one.score is None, -(one.score or 0.0)))
    if unit == "tensors":
        count = max(1, int(ratio * len(ranked) + ROUNDING))
        chosen = [index < count and p.score is not None for index, p in enumerate(ranked)]
    else:
        chosen = _within_budget(ranked, ratio)
    # Copies are slow, and with rows there are a million entries: only what changes is copied.
    return tuple(
        p if p.core == core else p.model_copy(update={"core": core}) for p, core in zip(ranked, chosen, strict=True)
    )


def _within_budget(ranked: Sequence[CoreTensor], ratio: float) -> list[bool]:
    sizes = [p.num_elements for p in ranked]
    budget = int(ratio * sum(sizes) + ROUNDING)
    chosen, used = [], 0
    for tensor, size in zip(ranked, sizes, strict=True):
        fits = tensor.score is not None and used + size <= budget
        used += size if fits else 0
        chosen.append(fits)
    if not any(chosen) and ranked and ranked[0].score is not None:
        chosen[0] = True
    return chosen


def entries_of(anatomy: Anatomy, name: str, shape: tuple[int, ...], split: Split | None) -> list[CoreTensor]:
    """A tensor, or with a split its rows (or columns) in order, as entries without a score."""
    units = anatomy.units_of(name)
    layer = units[0].layer if units else None
    parts = zip(unit_parts(shape, split), unit_kinds(anatomy, name, split), strict=True)
    return [  # not validated: rows make many, of what is checked already
        CoreTensor.model_construct(name=name, shape=shape, rows=rows, columns=columns, component=component, layer=layer)
        for (rows, columns), component in parts
    ]


def reselect(file: Path, ratio: float | None, unit: str | None) -> CoreFile:
    """Another core set from the scores of a core file; None is as before."""
    core: CoreFile = read_artefact(file, CoreFile)
    ratio, unit = ratio or core.method.ratio, unit or core.method.unit
    if "parameters" in (unit, core.method.unit):
        raise UserError(f"{file}: single parameters are chosen while they are scored: identify again with --ratio")
    if unit != core.method.unit and "rows" in (unit, core.method.unit):
        raise UserError(
            f"{file}: was scored by {core.method.unit}, and cannot be selected from by {unit}: score again with --unit "
            f"{unit}"
        )
    method = core.method.model_copy(update={"ratio": ratio, "unit": unit})
    return core.model_copy(update={"method": method, "parameters": select(core.parameters, ratio, unit)})


def reselect_all(
    files: Sequence[Path], ratio: float | None, unit: str | None, out: Path | str | None
) -> tuple[CoreFile, ...]:
    """`reselect` for several files, in their order; written into a directory, if one is named. A UserError for `rows`
    of scores of whole tensors, or the other way round; for two files of one task, or one that would be written over."""
    chosen = Selection.of(ratio=ratio, unit=unit)
    unusable = "core files that cannot be used"
    cores = each_of(files, lambda file: reselect(file, chosen.ratio, chosen.unit), unusable)
    if out is not None:
        tasks = [core.task for core in cores]
        if len(set(tasks)) < len(tasks):
            raise UserError(f"core files of the same task would overwrite each other: {', '.join(tasks)}")
        written = [core_path(out, core) for core in cores]
        refuse_inputs(written, files)
        with held(out):
            for core, path in zip(cores, written, strict=True):
                write_text(path, to_json(core))
    return tuple(cores)


def core_path(out: Path | str, core: CoreFile) -> Path:
    return Path(out) / f"{core.task}.core.json"
