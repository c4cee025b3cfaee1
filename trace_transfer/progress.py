"""Progress as stages report it: a task with a number of steps. Silent by default; a terminal shows a bar, and a file or
a pipe (the log of a cluster's job) gets a line every few seconds.

Beside it what any reader of files has to tell of them (`tell`), which the command line shows once each.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeAlias

from trace_transfer.stopping import raise_swallowed_interruption

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

EVERY = 10.0  # s between two lines
Advance: TypeAlias = Callable[..., None]  # after each step; takes a few words on how it goes, seen until the next one


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


@dataclass
class Counted:
    """A task, and how far it is; `text` says so in a line."""

    description: str
    total: int
    done: int = 0
    status: str = ""
    begun: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        said = f", {self.status}" if self.status else ""
        return f"{self.description}: step {self.done} of {self.total}, {passed(self.begun)}{said}"


def passed(since: float) -> str:
    """Time since then, on the monotonic clock, as 0:03:20."""
    return str(timedelta(seconds=int(time.monotonic() - since)))


@contextmanager
def repeatedly(every: float, call: Callable[[], object]) -> Iterator[None]:
    """Call it every so many seconds while the block lasts, in another thread."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.wait(every):
            call()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Lines:
    """A line of text every few seconds, whether a step was done or not, and one at the end of each task; `write` gets
    it without its end, from another thread, too."""

    def __init__(self, write: Callable[[str], None], every: float = EVERY) -> None:
        self.write, self.every = write, every

    def moved(self, counted: Counted | None) -> None:
        """For those who show more than lines: a task that begins or is a step further; None at its end."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        counted = Counted(description, total)

        def advance(status: str = "") -> None:
            counted.done, counted.status = counted.done + 1, status
            self.moved(counted)

        self.moved(counted)
        try:
            with repeatedly(self.every, lambda: self.write(counted.text)):
                yield advance
        finally:
            self.write(counted.text)
            self.moved(None)

    def note(self, message: str) -> None:
        self.write(message)


def shows_bars(console: Console) -> bool:
    """Whether what moves can be shown there: not in a file or pipe, even where colours are asked for (FORCE_COLOR)."""
    return console.is_jupyter or (console.is_interactive and console.file.isatty())


def bars(console: Console, *, left: bool = False) -> Progress:
    """Where bars are shown, each with what it counts, its time (and the time `left`) and its status."""
    from rich import progress as of

    columns = [of.TextColumn("{task.description}", markup=False), of.BarColumn(), of.MofNCompleteColumn()]
    columns += [of.TimeElapsedColumn(), *([of.TextColumn("left"), of.TimeRemainingColumn()] if left else [])]
    return of.Progress(*columns, of.TextColumn("{task.fields[status]}", style="dim", markup=False), console=console)


class Terminal:
    """A progress bar with time left on stderr, or lines where that is no terminal. Tasks of two threads share it."""

    def __init__(self) -> None:
        from trace_transfer.terminal import console

        self.console = console(stderr=True)
        self.lock, self.num_tasks = threading.Lock(), 0
        self.progress: Progress  # while there are tasks

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        raise_swallowed_interruption()
        if not shows_bars(self.console):
            with Lines(self.note).task(description, total) as advance:
                yield advance
            return
        with self.lock:
            if self.num_tasks == 0:
                self.progress = bars(self.console, left=True)
                self.progress.start()
            self.num_tasks += 1
            task = self.progress.add_task(description, total=total, status="")
        try:
            yield lambda status="": self.progress.update(task, advance=1, status=status)
        finally:
            with self.lock:
                self.num_tasks -= 1
                if self.num_tasks == 0:
                    self.progress.stop()

    def note(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)


_LISTENER: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def tell(message: str) -> None:
    """Say what is no error, and yet to be known: to the listener of `telling`, otherwise as a Python warning."""
    if listener := _LISTENER.get():
        listener(message)
    else:
        warnings.warn(message, stacklevel=2)


@contextmanager
def telling(listener: Callable[[str], None]) -> Iterator[None]:
    """Within the block, each message of `tell` goes to the listener once."""
    token = _LISTENER.set(cache(listener))
    try:
        yield
    finally:
        _LISTENER.reset(token)


def quiet_libraries() -> None:
    """Keep the libraries' own chatter and bars off the terminal; their errors reach the user through ours."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
