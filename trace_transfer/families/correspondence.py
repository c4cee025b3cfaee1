"""Two anatomies and a layer match → the bipartite graph source unit → target units, each edge with its rule.

Reads: the `Anatomy` of both models and pairs of layers. The result is total: every source unit has targets or a reason
why it is dropped, and every target unit has sources or a reason why nothing reaches it.

A principal carries over to all members of the same component of every matched layer (only to the principal if either
family says `expand: false`); a satellite carries over to the satellites of the same role. Components outside the layers
meet by name; a tied head meets on its owner.

Experts: those of a layer are one tensor, and a part of it is the principal of `mlp.gate`, `mlp.up` or `mlp.down`; so
a dense MLP meets all experts together, and two layers of experts meet whatever their numbers are. Shared experts are
satellites, which a dense MLP reaches by expansion. The router is a component of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonpath
from typing import Any

from trace_transfer.families.anatomy import Anatomy, Place, Unit, folded_name, layer_ranges
from trace_transfer.models.sources import AXES

UNMATCHED, UNREACHED_LAYER = "its layer is not matched", "no source layer is matched to its layer"
LAYERS, OUTSIDE = "inside a layer", "outside the layers"
DROPPED, UNREACHED = "dropped: no target", "unreached: no source"
MAX_RUNS = 4
SECTIONS = (LAYERS, OUTSIDE, DROPPED, UNREACHED)


@dataclass(frozen=True)
class Correspondence:
    """The graph: source unit → target unit → rule, each in its model's order; `dropped` and `unreached` give the reason
    for each source and target unit without an edge."""

    source: Anatomy
    target: Anatomy
    edges: Mapping[Unit, Mapping[Unit, str]]
    dropped: Mapping[Unit, str]
    unreached: Mapping[Unit, str]

    def targets_of(self, unit: Unit) -> list[tuple[Unit, str]]:
        return list(self.edges[unit].items())

    def sources_of(self, unit: Unit) -> list[tuple[Unit, str]]:
        return self._sources.get(unit, [])

    @cached_property
    def _sources(self) -> Mapping[Unit, list[tuple[Unit, str]]]:
        found: dict[Unit, list[tuple[Unit, str]]] = {}
        for unit, targets in self.edges.items():
            for target, rule in targets.items():
                found.setdefault(target, []).append((unit, rule))
        return found

    def to_payload(self) -> dict[str, Any]:
        """The contents of correspondence.json: every source tensor (or part of one), and what nothing reaches.

        A tied or shared tensor, a unit of two components, is one entry. Excluded tensors are listed as dropped."""
        entries = [*self._entries(), *_excluded(self.source, components=[], targets=[], why="dropped")]
        reached = {unit.place for unit in self.target.units if unit not in self.unreached}
        missed = {unit.place: {**_reference(unit), "reason": reason} for unit, reason in self.unreached.items()}
        unreached = [entry for key, entry in missed.items() if key not in reached]
        unreached += _excluded(self.target, why="reason")
        counts = {
            "parameters": len(entries),
            "mapped": sum(bool(entry["targets"]) for entry in entries),
            "dropped": sum(not entry["targets"] for entry in entries),
            "edges": sum(len(entry["targets"]) for entry in entries),
            "reached_targets": len(reached),
            "unreached_targets": len(unreached),
        }
        return {"parameters": entries, "unreached_targets": unreached, "counts": counts}

    def _entries(self) -> list[dict[str, Any]]:
        entries: dict[Place, dict[str, Any]] = {}
        targets: dict[Place, dict[Place, dict[str, Any]]] = {}
        for unit in self.source.units:
            entry = entries.setdefault(unit.place, {**_reference(unit), "components": []})
            entry["components"].append(unit.component)
            found = targets.setdefault(unit.place, {})
            for target, rule in self.targets_of(unit):
                before = found.get(target.place)
                rule = f"{before['rule']}; {rule}" if before else rule
                found[target.place] = {**_reference(target), "rule": rule}
        for unit in self.source.units:
            entries[unit.place]["targets"] = list(targets[unit.place].values())
            if not targets[unit.place]:
                entries[unit.place]["dropped"] = self.dropped[unit]
        return list(entries.values())


def _excluded(anatomy: Anatomy, why: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"name": name, **fields, why: f"excluded: {reason}"} for name, reason in anatomy.excluded.items()]


def _reference(unit: Unit) -> dict[str, Any]:
    """`{"name", "rows"?, "columns"?, "depth"?}` as in all files."""
    reference: dict[str, Any] = {"name": unit.name}
    if unit.dim is not None:
        reference[AXES[unit.dim]] = [list(one) for one in unit.ranges or ()]
    return reference


def build_correspondence(source: Anatomy, target: Anatomy, pairs: Iterable[tuple[int, int]]) -> Correspondence:
    """Connect two models along pairs of (source layer, target layer); a layer may stand in several, or in none."""
    pairs = list(dict.fromkeys((int(first), int(second)) for first, second in pairs))
    unexpanded = source.unexpanded | target.unexpanded
    there = _Side(target, pairs, UNMATCHED)
    back = _Side(source, [(second, first) for first, second in pairs], UNREACHED_LAYER)
    order = {unit: index for index, unit in enumerate(target.units)}
    edges: dict[Unit, dict[Unit, str]] = {}
    for unit in source.units:
        rules = {}
        for found in sorted(there.candidates(unit), key=order.__getitem__):
            expanded = unit.principal and not found.principal
            same = found.principal if unit.principal else found.role == unit.role and not found.principal
            if same or (expanded and unit.component not in unexpanded):
                rules[found] = f"{unit.rule} → {found.rule}{' (expand)' if expanded else ''}"
        edges[unit] = rules
    dropped = {
        unit: there.why_none(unit) + " and is not expanded" * (unit.principal and bool(there.candidates(unit)))
        for unit, targets in edges.items()
        if not targets
    }
    reached = {unit for targets in edges.values() for unit in targets}
    unreached = {unit: back.why_none(unit, unexpanded) for unit in target.units if unit not in reached}
    return Correspondence(source, target, edges, dropped, unreached)


class _Side:
    """A model as seen from the other one: what stands where a unit of the other meets it.

    Pairs are (layer of the other, layer of this one); `unmatched` is the reason for a unit whose layer is in none."""

    def __init__(self, anatomy: Anatomy, pairs: Sequence[tuple[int, int]], unmatched: str) -> None:
        self.anatomy, self.unmatched = anatomy, unmatched
        self.layers: dict[int | None, list[int | None]] = {None: [None]}
        for other, own in pairs:
            self.layers.setdefault(other, []).append(own)
        self.units: dict[tuple[str, int | None], list[Unit]] = {}
        for unit in anatomy.units:
            self.units.setdefault((unit.component, unit.layer), []).append(unit)

    def candidates(self, unit: Unit) -> list[Unit]:
        """The units of the same component in the layers that meet."""
        layers = self.layers.get(unit.layer, ())
        return [found for layer in layers for found in self.units.get((unit.component, layer), ())]

    def why_none(self, unit: Unit, unexpanded: frozenset[str] = frozenset()) -> str:
        """Why nothing here corresponds to a unit of the other model."""
        family = self.anatomy.family
        if unit.component not in self.anatomy.components:
            return f"{family} has no {unit.component}"
        if unit.layer not in self.layers:
            return self.unmatched
        if not self.candidates(unit):
            return f"{unit.component} is absent from the matched layers of {family}"
        if unit.principal:
            return f"{unit.component} of {family} has no principal here"
        switched_off = ", and expansion is switched off" if unit.component in unexpanded else ""
        return f"{unit.component} of {family} has no '{unit.role}'{switched_off}"


# ---- as lines to read: layers that are alike fold into one template, so that a model is a page


@dataclass(frozen=True)
class Line:
    """One line of a section: a source, a target (either may be empty), and the rule or the reason."""

    section: str
    source: str
    target: str
    why: str


def explain(correspondence: Correspondence) -> list[Line]:
    """All edges, then what is dropped and unreached, in model order and section by section.

    Names inside layers are shown from below the layer (`self_attn.q_proj.weight`), with the layers if they differ."""
    lines = _edges(correspondence)
    lines += [Line(DROPPED, name, "", why) for name, why in _reasons(correspondence.source, correspondence.dropped)]
    lines += [Line(UNREACHED, "", name, why) for name, why in _reasons(correspondence.target, correspondence.unreached)]
    return sorted(lines, key=lambda line: SECTIONS.index(line.section))


def totals(correspondence: Correspondence) -> list[str]:
    """Counts of tensors (a part of a fused one counts as one) and elements on both sides."""
    lines = []
    for what, anatomy, without, verb, fail in (
        ("source", correspondence.source, correspondence.dropped, "carried", "dropped"),
        ("target", correspondence.target, correspondence.unreached, "reached", "unreached"),
    ):
        sizes = {unit.place: unit.num_elements for unit in anatomy.units}
        done = {unit.place for unit in anatomy.units if unit not in without}
        elements = sum(sizes[place] for place in done)
        total, num = anatomy.inventory.num_elements, len(anatomy.inventory.shapes)
        excluded = f", {len(anatomy.excluded)} excluded" if anatomy.excluded else ""
        parts = f" in {len(sizes)} parts" if len(sizes) + len(anatomy.excluded) > num else ""
        lines.append(
            f"{what}: {anatomy.family}, {anatomy.num_layers} layers, {num} tensors{parts}: "
            f"{len(done)} {verb}, {len(sizes) - len(done)} {fail}{excluded}; "
            f"{elements:,} of {total:,} parameters {verb} ({elements / total:.2%})"
        )
    return lines


def _below_layer(unit: Unit) -> str:
    """The unit's name below its layer, with its part; numbers in it as `{n}`, so that what is alike folds."""
    return unit.label if unit.layer is None else folded_name(unit.name).partition("{layer}.")[2] + unit.part


def _edges(correspondence: Correspondence) -> list[Line]:
    """Source units of one template fold together where their targets and rules are the same."""
    folded: dict[tuple[str, str], dict[tuple[tuple[str, str], ...], set[int | None]]] = {}
    for unit in correspondence.source.units:
        named = ((_below_layer(target), rule) for target, rule in correspondence.targets_of(unit))
        if edges := tuple(dict.fromkeys(named)):
            folded.setdefault((_below_layer(unit), unit.component), {}).setdefault(edges, set()).add(unit.layer)
    lines = []
    for (source, _), variants in folded.items():
        for edges, layers in variants.items():
            section = OUTSIDE if None in layers else LAYERS
            shown = source if len(variants) == 1 else f"{source} {_of_layers(layers)}"
            for index, (target, rule) in enumerate(edges):
                lines.append(Line(section, "" if index else shown, target, rule))
    return lines


def _reasons(anatomy: Anatomy, reasons: Mapping[Unit, str]) -> list[tuple[str, str]]:
    """(name, reason) of the units without an edge, those of layers without a partner in one, then excluded tensors."""
    together: dict[tuple[str, str], set[int | None]] = {}
    for unit, reason in reasons.items():
        name = "tensors" if reason in (UNMATCHED, UNREACHED_LAYER) else _below_layer(unit)
        together.setdefault((name, reason), set()).add(unit.layer)
    lines = []
    for (name, reason), layers in together.items():
        limited = None not in layers and (name == "tensors" or len(layers) < anatomy.num_layers)
        lines.append((f"{name} {_of_layers(layers)}" if limited else name, reason))
    by_reason: dict[str, list[str]] = {}
    for name, reason in anatomy.excluded.items():
        by_reason.setdefault(f"excluded: {reason}", []).append(name)
    for reason, names in by_reason.items():
        module = commonpath([name.replace(".", "/") for name in names]).replace("/", ".")
        lines.append((names[0] if len(names) == 1 else f"{module}.… ({len(names)} tensors)", reason))
    return lines


def _of_layers(layers: Iterable[int | None]) -> str:
    """`(layer 3)`, `(layers 0-7, 9)` or `(32 layers: 1, 3, 5, 7, …)`; nothing outside the layers."""
    numbers = [layer for layer in layers if layer is not None]
    if not numbers:
        return ""
    runs = layer_ranges(numbers).split(", ")
    if len(runs) > MAX_RUNS:
        return f"({len(numbers)} layers: {', '.join(runs[:MAX_RUNS])}, …)"
    return f"(layer{'s' if len(numbers) > 1 else ''} {', '.join(runs)})"
