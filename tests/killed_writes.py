"""Processes that are ended just before an operation on files: between two of them nothing on the disk changes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

WATCHED = {
    "open", "os.rename", "os.remove", "os.chmod", "os.mkdir", "os.rmdir", "os.utime", "os.truncate", "tempfile.mkstemp",
}  # fmt: skip


def signal_at(places: Sequence[object], number: int | None, sent: int, seen: Callable[[], object] = int) -> None:
    """Send this process a signal before its n-th operation below some places; `seen` is called at each."""
    watched, count = tuple(map(str, places)), 0

    def note(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in WATCHED and any(str(one).startswith(watched) for one in arguments[:2]):
            count += 1
            seen()
            if count == number:
                os.kill(os.getpid(), sent)

    sys.addaudithook(note)


def killed_at_each_operation(write: Callable[[], object], place: Path) -> Iterator[int]:
    """Run `write` in forks, each time killed one operation below `place` later; ends when it is not killed."""
    number = 0
    while True:
        number += 1
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal_at([place], number, signal.SIGKILL)
                write()
                code = 0
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        assert status == -signal.SIGKILL, status
        yield number
