"""What `represent` prints: what it will read, and what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trace_transfer.represent.draw import table_of
from trace_transfer.tables import draw_tables
from trace_transfer.terminal import Page, as_text

if TYPE_CHECKING:
    from trace_transfer.represent.records import RepresentationFile
    from trace_transfer.represent.representing import RepresentPlan


@as_text
def render_plan(page: Page, plan: RepresentPlan) -> None:
    """What will be read."""
    page.line(f"texts: {_counts(plan.tasks, plan.num_texts)}", "bold")
    rows = []
    for one in plan.models:
        lengths = [len(text) for text in one.ids]
        rows.append((one.label, one.opened.name, one.opened.anatomy.family, one.width, len(one.state.patches),
                     sum(lengths), max(lengths), one.num_cut))  # fmt: skip
    page.table(("label", "model", "family", "width", "patches", "tokens", "longest", "cut"), rows)
    space = "one space for all models" if plan.unified else "models of different widths: a space for each"
    page.line(f"t-SNE: {space}; perplexity {plan.settings.perplexity:g}")


@as_text
def render_representation(page: Page, file: RepresentationFile, files: Sequence[Path]) -> None:
    """What was found, and where the files are."""
    draw_representation(page, file)
    page.written(files)


def draw_representation(page: Page, file: RepresentationFile) -> None:
    """How well each model keeps the tasks apart, and how the pictures compare."""
    page.line(f"Last-layer embeddings of texts: {_counts(file.tasks, file.num_texts)}", "bold")
    draw_tables([table_of(file)], page)
    page.line("S: mean distance between the tasks' centroids, which the columns after it are of")
    if len(file.models) > 1:
        same_kind = len({model.model.names_sha256 for model in file.models}) == 1
        together = "one space for all models" + ("" if same_kind else ", which are of different kinds: they lie apart")
        apart = "a space for each model, since they are not equally wide; panels do not compare"
        page.line(f"t-SNE: {together if file.settings.get('space') == 'unified' else apart}")
    for label, count in file.settings.get("num_cut", {}).items():
        if count:
            length = file.settings.get("max_length")
            page.line(f"! {label}: {count} of {sum(file.num_texts)} texts were cut at {length} tokens")


def _counts(tasks: Sequence[str], counts: Sequence[int]) -> str:
    return ", ".join(f"{task} {count}" for task, count in zip(tasks, counts, strict=True))
