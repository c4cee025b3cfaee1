"""A run's report as a document: its title, its warnings and its sections, in the order in which a reader wants them."""

from __future__ import annotations

from typing import Any

from trace_transfer.reporting import findings, sections
from trace_transfer.reporting.blocks import Document, Line, code
from trace_transfer.reporting.contents import ReportContents
from trace_transfer.reporting.html import page
from trace_transfer.reporting.markdown import markdown
from trace_transfer.reporting.numbers import several

__all__ = ["document", "markdown", "page"]

SECTIONS = (
    sections.answered,
    sections.ran,
    sections.tables,
    sections.matrices,
    sections.forgetting,
    sections.sweeps,
    findings.layers,
    findings.importance,
    findings.common,
    findings.moved,
    sections.costs,
    findings.representations,
    sections.measures,
    sections.record,
)
MOST_LISTED = 8


def document(contents: ReportContents) -> Document:
    """The report; sections that the run has nothing for are left out."""
    run = contents.run
    lead = (f"{contents.name_of('source')} → " if run.source else "") + contents.name_of("target")
    lead += f": {several(len(run.tasks), 'task')}, {several(len(run.methods), 'method')}, "
    lead += several(len(contents.seeds), "seed")
    return Document(
        title=f"Report of the run {run.name}",
        lead=lead,
        warnings=tuple(_warnings(contents)),
        sections=tuple(section for make in SECTIONS if (section := make(contents)) is not None),
    )


def _warnings(contents: ReportContents) -> list[Line]:
    if not contents.unfinished:
        return []
    shown = contents.unfinished[:MOST_LISTED]
    more = len(contents.unfinished) - len(shown)
    places: list[Any] = []
    for place in shown:
        places += [code(place), ", "]
    return [
        (
            f"This run is not complete: {several(len(contents.unfinished), 'step')} "
            f"{'is' if len(contents.unfinished) == 1 else 'are'} not finished (",
            *places[:-1], f" and {more} more" if more else "", f"), so that {contents.num_left_out} of "
            f"{contents.num_left_out + len(contents.run.cells)} trained models are left out of every number below. "
            "The same command goes on with it.",
        )
    ]  # fmt: skip
