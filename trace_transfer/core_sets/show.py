"""Core sets side by side: how large they are, and how much of them tasks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from trace_transfer.core_sets import overlap
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.terminal import Page, as_text


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


@as_text
def render_core_sets(page: Page, cores: Sequence[CoreFile], warnings: Sequence[str], files: Sequence[Path]) -> None:
    """How large each is and what they have in common, warnings, and where the files are."""
    methods = list(dict.fromkeys(core.method.name for core in cores))
    counted = "tensors, parts" if any(core.method.unit == "rows" for core in cores) else "tensors"
    several = len(methods) > 1
    rows = [
        (core.task, *[core.method.name] * several,
         f"{len(core.core)} of {len(core.parameters)} = {core.ratio_of_tensors:.2%}", f"{core.ratio_of_elements:.2%}",
         core.core[0].name if core.core else "none")
        for core in cores
    ]  # fmt: skip
    headings = ("task", *["method"] * several, counted, "elements", "best")
    page.table(headings, rows, f"core sets ({', '.join(methods)})")
    shared = [
        (f"{one.task}, {other.task}", *(f"{share:.2f}" for share in jaccard(one, other)))
        for one, other in combinations(cores, 2)
        if one.model.names_sha256 == other.model.names_sha256
    ]
    if shared:
        page.line()
        page.table(("tasks", counted, "elements"), shared, "in common (Jaccard)")
    page.lines(f"! {warning}" for warning in warnings)
    page.written(files)
