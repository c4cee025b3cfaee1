"""Carry a core set across: source core file and correspondence → target core file.

`core` is the paper's way: what is core on the source makes core whatever it corresponds to. `scores` moves every
score along the correspondence and selects the top r anew on the target, so that the budget holds.

What is core must be all of a unit. Neither rows nor experts correspond from one model to another: if some experts of a
layer are core and others not, their unit is not carried and is named, with the share of it that was core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import prod

from trace_transfer.core_sets.core_file import EXCLUDED, CoreFile, CoreTensor, Transfer
from trace_transfer.core_sets.masks import merged_ranges
from trace_transfer.core_sets.selection import select
from trace_transfer.errors import ArtefactError, listing, together
from trace_transfer.families.anatomy import Place, Unit
from trace_transfer.families.correspondence import Correspondence
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.models.sources import AXES
from trace_transfer.records import library_versions


@dataclass(frozen=True)
class Carried:
    """A translated core file, and what did not come across: source tensor → reason, core ones only."""

    core: CoreFile
    source: CoreFile
    dropped: Mapping[str, str]


@dataclass(frozen=True)
class _Scored:
    """What the source core file says of one unit."""

    score: float
    core: bool


def check_cores_fit(cores: Sequence[tuple[str, CoreFile]], source: OpenModel, target: OpenModel) -> None:
    """Refuse core files that were made for another model than the source.

    Args:
        cores: each with its name for messages.

    Raises:
        ArtefactError: names or shapes differ; tells for each file both hashes and the first tensors that differ,
            and whether it is of the target.
    """
    problems = [f"{where}: {problem}" for where, core in cores if (problem := _misfit(core, source, target))]
    if problems:
        raise ArtefactError(together("core files that are not of --src", problems))


def _misfit(core: CoreFile, source: OpenModel, target: OpenModel) -> str | None:
    there, expected = core.model, source.identity
    if there.names_sha256 != expected.names_sha256:
        of_target = there.names_sha256 == target.identity.names_sha256
        return (
            f"made for another model: {there.id} ({there.family}, {there.num_layers} layers, "
            f"names_sha256 {there.names_sha256[:12]}…), but --src is {expected.id} ({expected.family}, "
            f"{expected.num_layers} layers, names_sha256 {expected.names_sha256[:12]}…)"
            + ("; it is of --dst: are --src and --dst swapped?" if of_target else "")
        )
    if core.chosen is not None:
        return "single parameters do not correspond from one model to another; carry scores of tensors (--unit tensors)"
    shapes = source.anatomy.inventory.shapes
    wrong = [f"{p.name} {list(p.shape)}" for p in core.parameters if shapes.get(p.name) != p.shape]
    return f"tensors that {expected.id} does not have:\n" + listing(wrong) if wrong else None


def carry(
    core: CoreFile,
    correspondence: Correspondence,
    similarity: Mapping[tuple[int, int], float | None],
    *,
    how: str,
    ratio: float | None,
    target: OpenModel,
    core_sha256: str,
    layer_match_sha256: str,
) -> Carried:
    """Translate one core file.

    Args:
        similarity: of each matched (source layer, target layer); a tie in score goes to the better matched layer.
        how: `core` or `scores`.
        ratio: None keeps the source file's. With `core` it is taken on the source, with `scores` on the target.

    Raises:
        ArtefactError: nothing of the core set has a counterpart in the target.
    """
    ratio = core.method.ratio if ratio is None else ratio
    if how == "core" and ratio != core.method.ratio:
        core = core.model_copy(update={"parameters": select(core.parameters, ratio, core.method.unit)})
    scored, partly = _scores_of_units(core, correspondence.source.units)
    places: dict[Place, list[Unit]] = {}  # a tied or shared tensor is one entry, though a unit of two components
    for unit in correspondence.target.units:
        places.setdefault(unit.place, []).append(unit)
    entries = [(_entry(units, correspondence, scored), units) for units in places.values()]
    shapes = correspondence.target.inventory.shapes
    excluded = [name for name in correspondence.target.excluded if name in shapes]
    entries += [(CoreTensor(name=name, shape=shapes[name], component=EXCLUDED), []) for name in excluded]
    if how == "scores":
        # A stable sort: the order in which ties in score are taken.
        entries.sort(key=lambda entry: -_best_similarity(entry[1], correspondence, similarity))
        tensors = select([tensor for tensor, _ in entries], ratio, core.method.unit)
    else:
        found = [tensor for tensor, _ in entries]
        tensors = tuple(sorted(found, key=lambda one: (one.score is None, not one.core, -(one.score or 0.0))))
    dropped = _dropped(core, correspondence, scored, partly)
    if not any(tensor.core for tensor in tensors):
        reasons = listing([f"{name}: {reason}" for name, reason in dropped.items()])
        raise ArtefactError(
            f"core set of task '{core.task}': nothing of it has a counterpart in the target:\n{reasons}"
        )
    transfer = Transfer(
        model=core.model, core_sha256=core_sha256, layer_match_sha256=layer_match_sha256,
        rules=(correspondence.source.family, correspondence.target.family), carry=how,
    )  # fmt: skip
    translated = CoreFile(
        task=core.task, model=target.identity, method=core.method.model_copy(update={"ratio": ratio}),
        parameters=tensors, transferred_from=transfer, libraries=library_versions(),
    )  # fmt: skip
    return Carried(translated, core, dropped)


def _entry(units: Sequence[Unit], correspondence: Correspondence, scored: Mapping[Unit, _Scored]) -> CoreTensor:
    """One target tensor: the best score of what it came from, core if any of that was."""
    unit = units[0]
    sources = {source for one in units for source, _ in correspondence.sources_of(one) if source in scored}
    core = any(scored[source].core for source in sources)
    told = [source for source in sources if scored[source].core or not core]
    names = dict.fromkeys(s.label for s in sorted(told, key=lambda s: (-scored[s].score, s.label)))
    return CoreTensor(
        name=unit.name, shape=unit.shape, rows=unit.rows, columns=unit.columns, depth=unit.depth,
        component="+".join(dict.fromkeys(one.component for one in units)), layer=unit.layer,
        score=max((scored[source].score for source in sources), default=None), core=core, sources=tuple(names) or None,
    )  # fmt: skip


def _best_similarity(
    units: Sequence[Unit], correspondence: Correspondence, similarity: Mapping[tuple[int, int], float | None]
) -> float:
    found = [
        similarity.get((source.layer, unit.layer)) or 0.0
        for unit in units
        for source, _ in correspondence.sources_of(unit)
        if source.layer is not None and unit.layer is not None
    ]
    return max(found, default=0.0)


def _scores_of_units(core: CoreFile, units: Sequence[Unit]) -> tuple[dict[Unit, _Scored], dict[Unit, str]]:
    """The score of every unit, and the units of which only a part is core.

    Rows and experts do not correspond across models, so a unit of which only some are core is carried as not core.
    """
    by_name: dict[str, list[CoreTensor]] = {}
    for tensor in core.parameters:
        by_name.setdefault(tensor.name, []).append(tensor)
    scored, partly = {}, {}
    for unit in units:
        mine = [(p.score, p) for p in by_name.get(unit.name, []) if p.score is not None and _overlap(p, unit)]
        if not mine:
            continue
        covered = sum(_overlap(p, unit) for _, p in mine if p.core)
        whole = covered == unit.num_elements
        if covered and not whole:
            partly[unit] = (
                f"only {covered / unit.num_elements:.0%} of its elements are core, and "
                f"{'experts' if len(unit.shape) > 2 else 'rows'} do not correspond from one model to another"
            )
        scored[unit] = _Scored(max(score for score, _ in mine), whole)
    return scored, partly


def _overlap(tensor: CoreTensor, unit: Unit) -> int:
    """Number of elements that an entry of a core file and a unit have in common."""
    pairs = zip_longest(tensor.place[1:], unit.place[1:], unit.shape[: len(AXES)], fillvalue=None)
    return prod(_common(one, other, 1 if size is None else size) for one, other, size in pairs) * prod(unit.shape[3:])


def _common(one: Sequence[tuple[int, int]] | None, other: Sequence[tuple[int, int]] | None, size: int) -> int:
    """Length of the intersection of two lists of ranges; None is [0, size)."""
    whole = ((0, size),)
    return _length(one or whole) + _length(other or whole) - _length((*(one or whole), *(other or whole)))


def _length(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in merged_ranges(ranges))


def _dropped(
    core: CoreFile, correspondence: Correspondence, scored: Mapping[Unit, _Scored], partly: Mapping[Unit, str]
) -> dict[str, str]:
    """What is core on the source and did not come across, by no component that it serves, with the reason."""
    reached = {unit.place for unit in correspondence.source.units if unit not in correspondence.dropped}
    found: dict[str, str] = {}
    for unit in correspondence.source.units:
        is_core = unit in partly or (unit in scored and scored[unit].core)
        if is_core and unit.place not in reached:
            found.setdefault(unit.label, correspondence.dropped[unit])
        elif unit in partly:
            found.setdefault(unit.label, partly[unit])
    for name in {tensor.name for tensor in core.core} & correspondence.source.excluded.keys():
        found[name] = f"excluded: {correspondence.source.excluded[name]}"
    return found
