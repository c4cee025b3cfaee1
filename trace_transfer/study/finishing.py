"""A run to its end: its steps, and what it leaves for people: `summary.json`, the tables as CSV, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trace_transfer.errors import UserError
from trace_transfer.files import prepare_directory, write_text
from trace_transfer.launching import place_among_ranks
from trace_transfer.locking import held
from trace_transfer.records import to_json
from trace_transfer.reporting.records import RunFile, Summary
from trace_transfer.reporting.reporting import HTML, MARKDOWN, read_contents, write_contents
from trace_transfer.reporting.summarising import summarise
from trace_transfer.reporting.summary_tables import tables
from trace_transfer.stopping import StopSignal
from trace_transfer.study.checking import check_plan
from trace_transfer.study.graph import RunGraph
from trace_transfer.study.running import run_graph
from trace_transfer.study.show_running import Display
from trace_transfer.study.status import StepStatus
from trace_transfer.tables import to_csv

SUMMARY, TABLES = "summary.json", "tables"


@dataclass(frozen=True)
class Finished:
    """A run that is done: `run.json`, its numbers, and the files for people."""

    record: RunFile
    summary: Summary
    files: tuple[Path, ...]


def run_to_the_end(graph: RunGraph, status: Sequence[StepStatus], display: Display, stop: StopSignal) -> Finished:
    """Check everything if anything is to be run, run it, and write what it says; raises as `running.run_graph`.

    Raises:
        UserError: another process is at work there, or a launcher started this one as one of several.
    """
    if (place := place_among_ranks()).size > 1:
        raise UserError(
            f"a launcher started {place.size} processes of this run, and a run starts its own; start one without it, "
            f"and say processes: {place.size} in {graph.run.file}"
        )
    out, anew = graph.run.out, any(one.record is None for one in status)
    if anew:
        check_plan(graph)
    with held(out):
        record = run_graph(graph, status, out, display, stop)
        return Finished(record, *finish(out, anew=anew))


def finish(out: Path, *, anew: bool) -> tuple[Summary, tuple[Path, ...]]:
    """Write summary, tables and report; what is there already is left if nothing was run.

    Args:
        anew: whether any step was run.

    Returns:
        The summary, and the files for people.
    """
    summary = summarise(out)
    files = (out / HTML, out / MARKDOWN, out / SUMMARY)
    if anew or not all(file.is_file() for file in files):
        directory = prepare_directory(out / TABLES)
        for number, table in enumerate(tables(summary), start=1):
            name = "".join(c if c.isalnum() else "-" for c in table.title.lower()).strip("-")
            write_text(directory / f"{number:02d}-{name}.csv", to_csv(table))
        write_contents(read_contents(out), out, out)
        write_text(out / SUMMARY, to_json(summary))
    return summary, files
