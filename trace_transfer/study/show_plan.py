"""What a run will do, and why: a line for each step that is to be run, and a count of those that are up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trace_transfer.data.show import example_lines
from trace_transfer.reporting.numbers import several
from trace_transfer.reporting.summary_tables import short_tables
from trace_transfer.tables import to_text

if TYPE_CHECKING:
    from pathlib import Path

    from trace_transfer.data.examples import TaskData
    from trace_transfer.reporting.records import Summary
    from trace_transfer.study.graph import RunGraph
    from trace_transfer.study.status import StepStatus


def render_run_plan(
    graph: RunGraph, status: Sequence[StepStatus], read: Mapping[str, Sequence[TaskData]] | None = None
) -> str:
    """For `--dry-run`.

    Args:
        read: `source` or `target` → the tasks as its model reads them.
    """
    run = graph.run
    main = [cell for cell, _ in graph.cells if cell.axis is None]
    lines = [
        f"{run.name}: {several(len(run.methods), 'method')} x {several(len(run.seeds), 'seed')} on "
        + ", ".join(run.task_names),
        f"source {run.source or '-'}, target {run.target}",
        f"{several(len(main), 'model')} in the comparison, {len(graph.cells) - len(main)} in sweeps; "
        + several(len(status), "step"),
        "",
    ]
    todo = [one for one in status if one.record is None]
    for one in todo:
        lines.append(f"run   {graph.label(one.step)}: {one.reason}")
        lines.append(f"      {one.step.directory}")
    counts = Counter(one.step.kind for one in status if one.record is not None)
    if counts:
        lines += ["", "up to date: " + ", ".join(f"{number} {kind}" for kind, number in counts.items())]
    lines += ["", f"{several(len(todo), 'step')} to run, {len(status) - len(todo)} up to date"]
    for what, tasks in (read or {}).items():
        if shown := example_lines(tasks):
            lines += ["", f"read by the {what}:", *shown[1:]]
    return "\n".join(lines)


def render_run(summary: Summary, files: Sequence[Path]) -> str:
    """The short tables of a finished run, what they say, and where the report is."""
    lines = [to_text(table) for table in short_tables(summary)]
    lines += [*(f"- {note}" for note in summary.notes), "", *map(str, files)]
    return "\n".join(lines)
