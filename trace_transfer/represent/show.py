"""What `represent` prints: what it will read, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trace_transfer.represent.draw import table_of
from trace_transfer.tables import draw_table
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

    def draw(page: Page) -> None:
        page.line(f"texts: {counts}", "bold")
        page.table(columns, rows)
        page.line(f"t-SNE: {space}; perplexity {plan.settings.perplexity:g}")

    return drawn(draw)


def render_representation(file: RepresentationFile, files: Sequence[Path]) -> str:
    """What was found, as text as wide as the terminal, and where the files are."""

    def draw(page: Page) -> None:
        draw_representation(file, page)
        page.written(files)

    return drawn(draw)


def draw_representation(file: RepresentationFile, page: Page) -> None:
    """How well each model keeps the tasks apart, and how the pictures compare."""
    counts = ", ".join(f"{task} {number}" for task, number in zip(file.tasks, file.num_texts, strict=True))
    page.line(f"Last-layer embeddings of texts: {counts}", "bold")
    draw_table(table_of(file), page)
    page.line("S: mean distance between the tasks' centroids, which the columns after it are of")
    if len(file.models) > 1:
        same_kind = len({model.model.names_sha256 for model in file.models}) == 1
        page.line(
            "t-SNE: one space for all models" + ("" if same_kind else ", which are of different kinds: they lie apart")
            if file.settings.get("space") == "unified"
            else "t-SNE: a space for each model, since they are not equally wide; panels do not compare"
        )
    for label, count in file.settings.get("num_cut", {}).items():
        if count:
            length = file.settings.get("max_length")
            page.line(f"! {label}: {count} of {sum(file.num_texts)} texts were cut at {length} tokens")
