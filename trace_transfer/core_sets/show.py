"""Core sets side by side: how large they are, and how much of them tasks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from trace_transfer.core_sets import overlap
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.terminal import Page, drawn


def jaccard(one: CoreFile, other: CoreFile) -> tuple[float, float]:
    """Overlap of two core sets of one model, in tensors and in elements."""
    first, second = ({p.place: p.num_core for p in core.core} for core in (one, other))
    tensors = overlap.jaccard(overlap.counted(first), overlap.counted(second))
    if one.chosen is None or other.chosen is None:
        return tensors, overlap.jaccard(first, second)
    common = sum(
        one.parameters_chosen[name].common(part)
        for name, part in other.parameters_chosen.items()
        if name in one.parameters_chosen
    )
    return tensors, common / (sum(first.values()) + sum(second.values()) - common)


def render_core_sets(cores: Sequence[CoreFile], warnings: Sequence[str], files: Sequence[Path]) -> str:
    """Core sets as text as wide as the terminal."""
    return drawn(lambda page: _draw(cores, warnings, files, page))


def _draw(cores: Sequence[CoreFile], warnings: Sequence[str], files: Sequence[Path], page: Page) -> None:
    methods = list(dict.fromkeys(core.method.name for core in cores))
    counted = "tensors, parts" if any(core.method.unit == "rows" for core in cores) else "tensors"
    headings = ["task", *(["method"] if len(methods) > 1 else []), counted, "elements", "best"]
    page.line(f"core sets ({', '.join(methods)})", "bold")
    rows = []
    for core in cores:
        cells = {
            "task": core.task,
            "method": core.method.name,
            counted: f"{len(core.core)} of {len(core.parameters)} = {core.ratio_of_tensors:.2%}",
            "elements": f"{core.ratio_of_elements:.2%}",
            "best": core.core[0].name if core.core else "none",
        }
        rows.append([cells[heading] for heading in headings])
    page.table([(one, "right" if one in (counted, "elements") else "left") for one in headings], rows)
    comparable = [pair for pair in combinations(cores, 2) if pair[0].model.names_sha256 == pair[1].model.names_sha256]
    if comparable:
        page.line()
        page.line("in common (Jaccard)", "bold")
        page.table(
            [("tasks", "left"), (counted, "right"), ("elements", "right")],
            (
                (f"{one.task}, {other.task}", *(f"{share:.2f}" for share in jaccard(one, other)))
                for one, other in comparable
            ),
        )
    for warning in warnings:
        page.line(f"! {warning}")
    page.written(files)
