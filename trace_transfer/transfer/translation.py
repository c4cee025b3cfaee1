"""Carry a core set across: source core file and correspondence → target core file.

`core` is the paper's way: what is core on the source makes core whatever it corresponds to. `scores` moves every
score along the correspondence and selects the top r anew on the target, so that the budget holds.

What is core must be all of a unit. Neither rows nor experts correspond from one model to another: if some experts of a
layer are core and others not, their unit is not carried and is named, with the share of it that was core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from trace_transfer.core_sets.core_file import EXCLUDED, CoreFile, CoreTensor, Transfer
from trace_transfer.core_sets.masks import merged_ranges
from trace_transfer.core_sets.selection import select
from trace_transfer.errors import ArtefactError, listing, together
from trace_transfer.families.anatomy import Place, Unit
from trace_transfer.families.correspondence import Correspondence, build_correspondence
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import sha256_file
from trace_transfer.models.sources import numel
from trace_transfer.records import library_versions, read_artefact
from trace_transfer.transfer.records import LayerPair


@dataclass(frozen=True)
class Carried:
    """A translated core file, and what did not come across: source tensor → reason, core ones only."""

    core: CoreFile
    source: CoreFile
    dropped: Mapping[str, str]


Cores = tuple[tuple[Path, CoreFile], ...]


class _Scored(NamedTuple):
    score: float
    core: bool


def open_cores(files: Sequence[str | Path], source: OpenModel) -> Cores:
    """Read core files of the source, of a task each; an ArtefactError tells all that are of another model."""
    cores: Cores = tuple((Path(file), read_artefact(file, CoreFile)) for file in files)
    if len({core.task for _, core in cores}) < len(cores):
        raise ArtefactError(
            "core files of the same task would overwrite each other:\n" + listing([str(file) for file, _ in cores])
        )
    expected, problems = source.identity, []
    for where, core in cores:
        there = core.model
        if there.names_sha256 != expected.names_sha256:
            models = [
                f"{one.id} ({one.family}, {one.num_layers} layers, names_sha256 {one.names_sha256[:12]}…)"
                for one in (there, expected)
            ]
            problems.append(f"{where}: made for another model: {models[0]}, but --src is {models[1]}")
        elif core.chosen is not None:
            problems.append(
                f"{where}: single parameters do not correspond from one model to another; carry scores of tensors "
                "(--unit tensors)"
            )
        elif wrong := [p.name for p in core.parameters if source.anatomy.inventory.shapes.get(p.name) != p.shape]:
            problems.append(f"{where}: tensors that {expected.id} does not have:\n" + listing(wrong))
    if problems:
        raise ArtefactError(together("core files that are not of --src", problems))
    return cores


@dataclass(frozen=True)
class Carrier:
    """What carries core sets from one model to another along matched layers."""

    source: OpenModel
    target: OpenModel
    pairs: tuple[LayerPair, ...]
    match_sha256: str

    @cached_property
    def correspondence(self) -> Correspondence:
        pairs = [(pair.source, pair.target) for pair in self.pairs]
        return build_correspondence(self.source.anatomy, self.target.anatomy, pairs)

    def carry_all(self, cores: Cores, how: str, ratio: float | None) -> tuple[Carried, ...]:
        return tuple(self.carry(core, sha256_file(file), how, ratio) for file, core in cores)

    def carry(self, core: CoreFile, core_sha256: str, how: str, ratio: float | None) -> Carried:
        """Translate one core file; an ArtefactError where nothing of the core set has a counterpart in the target.

        Args:
            how: `core` or `scores`.
            ratio: None keeps the source file's. With `core` it is taken on the source, with `scores` on the target.
        """
        ratio = core.method.ratio if ratio is None else ratio
        if how == "core" and ratio != core.method.ratio:
            core = core.model_copy(update={"parameters": select(core.parameters, ratio, core.method.unit)})
        source, target = self.correspondence.source, self.correspondence.target
        scored, partly = _scores_of_units(core, source.units)
        places: dict[Place, list[Unit]] = {}  # a tied or shared tensor is one entry, though a unit of two components
        for unit in target.units:
            places.setdefault(unit.place, []).append(unit)
        entries = [(self._entry(units, scored), units) for units in places.values()]
        shapes = target.inventory.shapes
        excluded = [name for name in target.excluded if name in shapes]
        entries += [(CoreTensor(name=name, shape=shapes[name], component=EXCLUDED), []) for name in excluded]
        if how == "scores":
            entries.sort(key=lambda entry: -self._best_similarity(entry[1]))  # the order in which ties are taken
            tensors = select([tensor for tensor, _ in entries], ratio, core.method.unit)
        else:
            found = [tensor for tensor, _ in entries]
            tensors = tuple(sorted(found, key=lambda one: (one.score is None, not one.core, -(one.score or 0.0))))
        dropped = self._dropped(core, scored, partly)
        if not any(tensor.core for tensor in tensors):
            raise ArtefactError(
                f"core set of task '{core.task}': nothing of it has a counterpart in the target:\n"
                + listing([f"{name}: {reason}" for name, reason in dropped.items()])
            )
        transfer = Transfer(
            model=core.model, core_sha256=core_sha256, layer_match_sha256=self.match_sha256,
            rules=(source.family, target.family), carry=how,
        )  # fmt: skip
        translated = CoreFile(
            task=core.task, model=self.target.identity, method=core.method.model_copy(update={"ratio": ratio}),
            parameters=tensors, transferred_from=transfer, libraries=library_versions(),
        )  # fmt: skip
        return Carried(translated, core, dropped)

    def _entry(self, units: Sequence[Unit], scored: Mapping[Unit, _Scored]) -> CoreTensor:
        """One target tensor: the best score of what it came from, core if any of that was."""
        unit = units[0]
        sources = {source for one in units for source, _ in self.correspondence.sources_of(one) if source in scored}
        core = any(scored[source].core for source in sources)
        told = [source for source in sources if scored[source].core or not core]
        names = dict.fromkeys(s.label for s in sorted(told, key=lambda s: (-scored[s].score, s.label)))
        name, rows, columns, depth = unit.place
        return CoreTensor(
            name=name, shape=unit.shape, rows=rows, columns=columns, depth=depth,
            component="+".join(dict.fromkeys(one.component for one in units)), layer=unit.layer, core=core,
            score=max((scored[source].score for source in sources), default=None), sources=tuple(names) or None,
        )  # fmt: skip

    def _best_similarity(self, units: Sequence[Unit]) -> float:
        """Of the layers that some units' sources are in; a tie in score goes to the better matched one."""
        known: dict[tuple[int | None, int | None], float] = {
            (pair.source, pair.target): pair.similarity or 0.0 for pair in self.pairs
        }
        pairs = [(source.layer, unit.layer) for unit in units for source, _ in self.correspondence.sources_of(unit)]
        return max((known.get(pair, 0.0) for pair in pairs), default=0.0)

    def _dropped(self, core: CoreFile, scored: Mapping[Unit, _Scored], partly: Mapping[Unit, str]) -> dict[str, str]:
        """What is core on the source and did not come across, by no component that it serves, with the reason."""
        source, dropped = self.correspondence.source, self.correspondence.dropped
        reached = {unit.place for unit in source.units if unit not in dropped}
        found: dict[str, str] = {}
        for unit in source.units:
            is_core = unit in partly or (unit in scored and scored[unit].core)
            if is_core and unit.place not in reached:
                found.setdefault(unit.label, dropped[unit])
            elif unit in partly:
                found.setdefault(unit.label, partly[unit])
        for name in {tensor.name for tensor in core.core} & source.excluded.keys():
            found[name] = f"excluded: {source.excluded[name]}"
        return found


def _scores_of_units(core: CoreFile, units: Sequence[Unit]) -> tuple[dict[Unit, _Scored], dict[Unit, str]]:
    """The score of every unit, and the units of which only a part is core: these are carried as not core."""
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
                f"only {covered / unit.num_elements:.0%} of its parameters are core, and "
                f"{'experts' if len(unit.shape) > 2 else 'rows'} do not correspond from one model to another"
            )
        scored[unit] = _Scored(max(score for score, _ in mine), whole)
    return scored, partly


def _overlap(tensor: CoreTensor, unit: Unit) -> int:
    """Number of elements that an entry of a core file and a unit have in common."""
    count = numel(unit.shape)
    for size, one, other in zip(unit.shape, tensor.place[1:], unit.place[1:], strict=False):
        parts = [ranges or ((0, size),) for ranges in (one, other)]
        lengths = [sum(b - a for a, b in merged_ranges(ranges)) for ranges in (*parts, (*parts[0], *parts[1]))]
        count = count // size * (lengths[0] + lengths[1] - lengths[2])
    return count
