"""What `represent` prints: what it will read, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trace_transfer.represent.embedding import mean_distance
from trace_transfer.represent.representation_view import MOST_PAIRS, number
from trace_transfer.terminal import Page, drawn

if TYPE_CHECKING:
    from trace_transfer.represent.records import RepresentationFile
    from trace_transfer.represent.representing import RepresentPlan


def render_plan(plan: RepresentPlan) -> str:
    """A plan as text as wide as the terminal."""
    counts = ", ".join(f"{task} {count}" for task, count in zip(plan.tasks, plan.num_texts, strict=True))
    headings = ("label", "model", "family", "width", "patches", "tokens", "longest", "cut")
    columns = [(one, "left" if one in ("label", "model", "family") else "right") for one in headings]
    rows = []
    for one in plan.models:
        lengths = [len(text) for text in one.ids]
        rows.append((
            one.label, one.opened.name, one.opened.anatomy.family, str(one.width), str(len(one.state.patches)),
            f"{sum(lengths):,}", str(max(lengths)), str(one.num_cut),
        ))  # fmt: skip
    space = "one space for all models" if plan.unified else "models of different widths: a space for each"
    return _printed(f"texts: {counts}", columns, rows, [f"t-SNE: {space}; perplexity {plan.settings.perplexity:g}"])


def render_representation(file: RepresentationFile, files: Sequence[Path]) -> str:
    """What was found, as text as wide as the terminal, and where the files are."""
    tasks = file.tasks
    pairs = [(a, b) for a in range(len(tasks)) for b in range(a + 1, len(tasks))]
    listed = pairs if len(pairs) <= MOST_PAIRS else []
    headings = ("silhouette", "mean (S)", *(f"{tasks[a]} – {tasks[b]}" for a, b in listed))
    columns = [("model", "left"), *((heading, "right") for heading in headings)]
    rows = []
    for model in file.models:
        distances = [number(model.distances[a][b]) for a, b in listed]
        mean = number(mean_distance(np.array(model.distances)))
        rows.append((model.label, f"{model.silhouette:.3f}", mean, *distances))
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
    title = "last-layer embeddings: silhouette, and distances between the tasks' centroids"
    return _printed(title, columns, rows, lines, files)


def _printed(
    title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], lines: Sequence[str],
    files: Sequence[Path] = (),
) -> str:  # fmt: skip
    def draw(page: Page) -> None:
        page.line(title, "bold")
        page.table(columns, rows)
        for line in lines:
            page.line(line)
        if files:
            page.written(files)

    return drawn(draw)
