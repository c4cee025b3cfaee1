"""`trace-transfer step` (hidden): one step of a run in a process of a launcher."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("step", hidden=True)
@click.argument("ticket", type=click.Path(path_type=Path))
def step_command(ticket: Path) -> None:
    """Do the step of a run that a ticket describes; started by `run` for each of several processes."""
    from trace_transfer.study.worker import run_ticket

    run_ticket(ticket)
