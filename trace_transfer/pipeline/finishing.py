"""What a run leaves for people: the numbers in `summary.json`, the tables as CSV, and the report."""

from __future__ import annotations

from pathlib import Path

from trace_transfer.artefacts import to_json
from trace_transfer.artefacts.summary import Summary
from trace_transfer.files import prepare_directory, write_text
from trace_transfer.stages.reporting import HTML, MARKDOWN, write_report
from trace_transfer.stages.summarising import summarise
from trace_transfer.views.summary_tables import tables
from trace_transfer.views.table_texts import to_csv

SUMMARY, TABLES = "summary.json", "tables"


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
        write_report(out)
        write_text(out / SUMMARY, to_json(summary))
    return summary, files
