"""Progress as stages report it: a task with a number of steps. Silent by default; the terminal draws a bar."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called after each step."""

    def __call__(self, status: str = "") -> None:
        """One step is done; `status` is a few words on how it goes, to be seen until the next one."""
        ...


class Reporter(Protocol):
    """Something that shows progress and messages."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]: ...

    def note(self, message: str) -> None: ...


class Silent:
    """Shows nothing; what a library does unless it is asked."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        yield lambda status="": None

    def note(self, message: str) -> None:
        return None


class Terminal:
    """A progress bar with time left, on stderr."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        columns += [TextColumn("left"), TimeLeft(), TextColumn("{task.fields[status]}", style="dim", markup=False)]
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(description, total=total, status="")
            yield lambda status="": progress.update(task, advance=1, status=status)

    def note(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


def quiet_libraries() -> None:
    """Keep the libraries' own chatter and bars off the terminal; their errors reach the user through ours."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def is_first_rank() -> bool:
    """Whether this process is the only one, or the first of those that a launcher started: it writes and reports."""
    return os.environ.get("RANK", "0") == "0"
