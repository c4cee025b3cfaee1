"""Core sets side by side: how large they are, and how much of them tasks have in common."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trace_transfer.artefacts import CoreFile
from trace_transfer.maths import overlap

WIDTH = 100


def jaccard(one: CoreFile, other: CoreFile) -> tuple[float, float]:
    """Overlap of two core sets of one model, in tensors and in elements."""
    first, second = ({p.place: p.num_elements for p in core.core} for core in (one, other))
    return overlap.jaccard(overlap.counted(first), overlap.counted(second)), overlap.jaccard(first, second)


def render_core_sets(cores: Sequence[CoreFile], warnings: Sequence[str], files: Sequence[Path]) -> str:
    """Core sets as text of at most 100 columns."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None)
    methods = list(dict.fromkeys(core.method.name for core in cores))
    counted = "tensors, parts" if any(core.method.unit == "rows" for core in cores) else "tensors"
    headings = ["task", *(["method"] if len(methods) > 1 else []), counted, "elements", "best"]
    table = Table(title=f"core sets ({', '.join(methods)})")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in (counted, "elements") else "left", overflow="fold")
    for core in cores:
        cells = {
            "task": core.task,
            "method": core.method.name,
            counted: f"{len(core.core)} of {len(core.parameters)} = {core.ratio_of_tensors:.2%}",
            "elements": f"{core.ratio_of_elements:.2%}",
            "best": core.core[0].name if core.core else "none",
        }
        table.add_row(*(cells[heading] for heading in headings))
    console.print(table)
    comparable = [pair for pair in combinations(cores, 2) if pair[0].model.names_sha256 == pair[1].model.names_sha256]
    if comparable:
        shared = Table(title="in common (Jaccard)")
        for heading in ("tasks", counted, "elements"):
            shared.add_column(heading, justify="left" if heading == "tasks" else "right")
        for one, other in comparable:
            tensors, elements = jaccard(one, other)
            shared.add_row(f"{one.task}, {other.task}", f"{tensors:.2f}", f"{elements:.2f}")
        console.print(shared)
    for warning in warnings:
        console.print(f"! {warning}", markup=False, highlight=False)
    console.print("\nwritten:", highlight=False)
    for file in files:
        console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
