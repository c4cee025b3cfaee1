"""A run as it goes: how many steps are done, and what those at work are doing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Display:
    """Bars on stderr: one for the run, one below it for each task that a step reports."""

    def __init__(self) -> None:
        from trace_transfer.terminal import console

        self.console = console(stderr=True)
        self.progress: Any = None
        self.bars: dict[tuple[str, int], Any] = {}
        self.started: dict[str, Any] = {}

    @contextmanager
    def running(self, num_steps: int, num_done: int) -> Iterator[None]:
        """While steps are run; `num_done` were up to date."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        if not num_steps:
            yield
            return
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ]
        columns.append(TextColumn("{task.fields[status]}", style="dim", markup=False))
        with Progress(*columns, console=self.console) as self.progress:
            said = f"{num_done} were up to date" if num_done else ""
            self.run = self.progress.add_task("steps", total=num_steps, status=said)
            yield

    def begin(self, address: str, label: str) -> None:
        self.started[address] = self.progress.add_task(f"  {label}", total=None, status="")

    def show(self, address: str, label: str, event: tuple[Any, ...]) -> None:
        """What a step reports: ("task", number, description, total), ("advance", number, status), ("end", number) or
        ("note", message)."""
        what, *rest = event
        if what == "note":
            self.console.print(f"{label}: {rest[0]}", highlight=False, markup=False, soft_wrap=True)
        elif what == "task":
            number, description, total = rest
            self.bars[address, number] = self.progress.add_task(f"    {description}", total=total, status="")
        elif what == "advance":
            self.progress.update(self.bars[address, rest[0]], advance=1, status=rest[1])
        elif what == "end":
            self.progress.remove_task(self.bars.pop((address, rest[0])))

    def end(self, address: str, label: str, well: bool) -> None:
        self.progress.remove_task(self.started.pop(address))
        for key in [key for key in self.bars if key[0] == address]:
            self.progress.remove_task(self.bars.pop(key))
        if well:
            self.progress.update(self.run, advance=1)
            self.console.print(f"{label}: done", style="dim", highlight=False, markup=False, soft_wrap=True)
