"""A correspondence as lines to read: layers that are alike fold into one template, so that a model is a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import commonpath

from trace_transfer.families.anatomy import Anatomy, Unit, layer_ranges
from trace_transfer.families.correspondence import UNMATCHED, UNREACHED_LAYER, Correspondence
from trace_transfer.families.language import NUMBER

LAYERS, OUTSIDE = "inside a layer", "outside the layers"
DROPPED, UNREACHED = "dropped: no target", "unreached: no source"
MAX_RUNS = 4
SECTIONS = (LAYERS, OUTSIDE, DROPPED, UNREACHED)


@dataclass(frozen=True)
class Line:
    """One line of a section: a source, a target (either may be empty), and the rule or the reason."""

    section: str
    source: str
    target: str
    why: str


def explain(correspondence: Correspondence, every_layer: bool = False) -> list[Line]:
    """All edges, then what is dropped and unreached, in model order and section by section.

    Names inside layers are shown from below the layer (`self_attn.q_proj.weight`), with the layers if they are not all
    alike; `every_layer` gives whole names and one line for each.
    """
    lines = _edges(correspondence, every_layer)
    dropped = _reasons(correspondence.source, correspondence.dropped, every_layer)
    unreached = _reasons(correspondence.target, correspondence.unreached, every_layer)
    lines += [Line(DROPPED, name, "", reason) for name, reason in dropped]
    lines += [Line(UNREACHED, "", name, reason) for name, reason in unreached]
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
            f"{elements:,} of {total:,} elements {verb} ({elements / total:.2%})"
        )
    return lines


def _below_layer(unit: Unit, anatomy: Anatomy) -> str:
    """The unit's name below its layer, with its part; numbers in it as `{n}`, so that what is alike folds."""
    if unit.layer is None:
        return unit.label
    below = unit.name.removeprefix(f"{anatomy.layer_path}.{unit.layer}.").split(".")
    return ".".join(NUMBER if segment.isdecimal() else segment for segment in below) + unit.part


def _edges(correspondence: Correspondence, every_layer: bool) -> list[Line]:
    """Source units of one template fold together where their targets and rules are the same."""
    folded: dict[tuple[str, str], dict[tuple[tuple[str, str], ...], set[int | None]]] = {}
    for unit in correspondence.source.units:
        found = correspondence.targets_of(unit)
        if not found:
            continue
        if every_layer:
            key, edges = (unit.label, unit.component), tuple((target.label, rule) for target, rule in found)
        else:
            key = (_below_layer(unit, correspondence.source), unit.component)
            named = ((_below_layer(target, correspondence.target), rule) for target, rule in found)
            edges = tuple(dict.fromkeys(named))
        folded.setdefault(key, {}).setdefault(edges, set()).add(unit.layer)
    lines = []
    for (source, _), variants in folded.items():
        for edges, layers in variants.items():
            section = OUTSIDE if None in layers else LAYERS
            shown = source if len(variants) == 1 else f"{source} {_of_layers(layers)}"
            for index, (target, rule) in enumerate(edges):
                lines.append(Line(section, "" if index else shown, target, rule))
    return lines


def _reasons(anatomy: Anatomy, reasons: Mapping[Unit, str], every_layer: bool) -> list[tuple[str, str]]:
    """(name, reason) of the units without an edge, a layer without any edge as one, then the excluded tensors."""
    if every_layer:
        found = [(unit.label, reason) for unit, reason in reasons.items()]
        return found + [(name, f"excluded: {reason}") for name, reason in anatomy.excluded.items()]
    in_layer: dict[int, list[Unit]] = {}
    for unit in anatomy.units:
        if unit.layer is not None:
            in_layer.setdefault(unit.layer, []).append(unit)
    unmatched: dict[int, str] = {}
    for layer, units in in_layer.items():
        told = {reasons.get(unit) for unit in units}
        reason = next((one for one in (UNMATCHED, UNREACHED_LAYER) if one in told), None)
        if reason is not None and None not in told:
            unmatched[layer] = reason
    together: dict[tuple[str, str], dict[int | None, None]] = {}  # (name or number, reason) → layers
    for unit, why in reasons.items():
        name, reason = _below_layer(unit, anatomy), why
        if unit.layer in unmatched:
            reason = unmatched[unit.layer]
            name = f"all {len({one.place for one in in_layer[unit.layer]})} tensors"
        together.setdefault((name, reason), {})[unit.layer] = None
    lines = []
    for (name, reason), layers in together.items():
        limited = None not in layers and (name.startswith("all ") or len(layers) < anatomy.num_layers)
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
