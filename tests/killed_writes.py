"""Something that writes files, killed before each of its operations on them, in forks of this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

WATCHED = {"open", "os.rename", "os.remove", "os.chmod", "os.mkdir", "os.rmdir", "tempfile.mkstemp", "os.truncate"}


def killed_at_each_operation(write: Callable[[], object], place: Path) -> Iterator[int]:
    """Run `write` again and again, each time killed one operation below `place` later; ends when it is not killed."""
    number = 0
    while True:
        number += 1
        child = os.fork()
        if child == 0:
            code = 1
            try:
                sys.addaudithook(_killer(place, number))
                write()
                code = 0
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        assert status == -signal.SIGKILL, status
        yield number


def _killer(place: Path, number: int) -> Callable[[str, tuple], None]:
    count = 0

    def note(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in WATCHED and any(str(one).startswith(str(place)) for one in arguments[:2]):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return note
