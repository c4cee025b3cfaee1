"""`trace-transfer report`: a run as one HTML page and as Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli.values import OUT_DIRECTORY


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN_DIRECTORY")
@click.option("--out", type=OUT_DIRECTORY, default=None, help="Directory for the report; the run's if not given.")
def report_command(run: Path, out: Path | None) -> None:
    """Write what a run found as one self-contained page, report.html, and as report.md.

    \b
    trace-transfer report runs/study
    """
    from trace_transfer.reporting.reporting import write_report

    written = write_report(run, out)
    if written.unfinished:
        count = len(written.unfinished)
        what = "1 step is" if count == 1 else f"{count} steps are"
        click.echo(f"! the run is not complete: {what} not finished", err=True)
    for file in written.files:
        click.echo(str(file))
