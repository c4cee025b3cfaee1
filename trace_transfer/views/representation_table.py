"""What `represent` prints: what it will read, and what it found."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trace_transfer.maths.embedding import mean_distance
from trace_transfer.views.representation_view import MOST_PAIRS, number

if TYPE_CHECKING:
    from trace_transfer.artefacts.evaluation import RepresentationFile
    from trace_transfer.stages.representing import RepresentPlan

WIDTH = 100


def render_plan(plan: RepresentPlan) -> str:
    """A plan as text of at most 100 columns."""
    counts = ", ".join(f"{task} {count}" for task, count in zip(plan.tasks, plan.num_texts, strict=True))
    table = Table(title=f"texts: {counts}")
    for heading in ("label", "model", "family", "width", "patches", "tokens", "longest", "cut"):
        table.add_column(heading, justify="left" if heading in ("label", "model", "family") else "right")
    for one in plan.models:
        lengths = [len(text) for text in one.ids]
        table.add_row(
            escape(one.label), escape(one.opened.name), one.opened.anatomy.family, str(one.width),
            str(len(one.state.patches)), f"{sum(lengths):,}", str(max(lengths)), str(one.num_cut),
        )  # fmt: skip
    space = "one space for all models" if plan.unified else "models of different widths: a space for each"
    return _printed(table, [f"t-SNE: {space}; perplexity {plan.settings.perplexity:g}"])


def render_representation(file: RepresentationFile, files: Sequence[Path]) -> str:
    """What was found, as text of at most 100 columns, and where the files are."""
    tasks = file.tasks
    pairs = [(a, b) for a in range(len(tasks)) for b in range(a + 1, len(tasks))]
    listed = pairs if len(pairs) <= MOST_PAIRS else []
    table = Table(title="last-layer embeddings: silhouette, and distances between the tasks' centroids")
    table.add_column("model", overflow="fold")
    headings = ("silhouette", "mean (S)", *(f"{tasks[a]} – {tasks[b]}" for a, b in listed))
    for heading in headings:
        table.add_column(escape(heading), justify="right")
    for model in file.models:
        distances = [number(model.distances[a][b]) for a, b in listed]
        mean = number(mean_distance(np.array(model.distances)))
        table.add_row(escape(model.label), f"{model.silhouette:.3f}", mean, *distances)
    lines = []
    if len(file.models) > 1:
        unified = file.settings.get("space") == "unified"
        same_kind = len({model.model.names_sha256 for model in file.models}) == 1
        lines.append(
            "t-SNE: one space for all models" + ("" if same_kind else ", which are of different kinds: they lie apart")
            if unified
            else "t-SNE: a space for each model, since they are not equally wide; panels do not compare"
        )
    for label, count in file.settings.get("num_cut", {}).items():
        if count:
            length = file.settings.get("max_length")
            lines.append(f"! {label}: {count} of {sum(file.num_texts)} texts were cut at {length} tokens")
    return _printed(table, [*lines, "", "written:", *(f"  {path}" for path in files)])


def _printed(table: Table, lines: Sequence[str]) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None)
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
