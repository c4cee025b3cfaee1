"""One process at a time in a directory: whoever comes second is told at once who is at work there.

A lock is a hidden file that holds the process and the machine of whoever has it, and is gone afterwards. The system
lets go of it when that process ends in whatever way. Where the file system has no such locks (Lustre as it is mounted
commonly), the file itself is the lock: one that a killed process left is taken over on the machine of that process, and
on another machine, where nobody can know whether it still runs, the message says what to remove.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from trace_transfer.errors import UserError
from trace_transfer.files import prepare_directory
from trace_transfer.launching import is_first_rank

LOCK = ".trace-transfer.lock"
TAKE_OVER = 0.3  # s in which what a killed process left is removed, and then held


@contextmanager
def held(
    directory: Path | str, *, replaced: bool = False, shared: bool = False, patience: float = 0.0, name: str = LOCK
) -> Iterator[Path]:  # fmt: skip
    """Hold an output directory alone, made if it is not there; gives its path.

    Args:
        replaced: the directory will be put there whole under its name, so its lock lies beside it.
        shared: the processes of a launcher work there together, and the first of them holds it for all.
        patience: seconds in which another process may still let go of it.
        name: of the lock in the directory.
    """
    directory = Path(directory)
    prepare_directory(directory.absolute().parent if replaced else directory)
    if shared and not is_first_rank():
        yield directory
        return
    file = directory.absolute().with_name(f".{directory.name}.lock") if replaced else directory / name
    native = _has_locks(file.parent)
    lock: BaseFileLock = (
        FileLock(file, timeout=patience) if native else SoftFileLock(file, timeout=patience + TAKE_OVER)
    )
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(_busy(directory, file, native)) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be locked ({error.strerror}); remove it, or name another --out") from error
    try:
        if native:  # the other kind says itself whose it is
            file.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", "utf-8")
        yield directory
    finally:
        if native:  # before it is let go of: whoever waits for it sees that this is no longer the file
            with suppress(OSError):
                file.unlink()
        lock.release()


def _has_locks(directory: Path) -> bool:
    """Whether the file system has locks that end with their process."""
    try:
        with tempfile.TemporaryFile(dir=directory) as ours:
            fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # nobody else knows that file, so no lock can be had, whatever the system calls it
        return False
    return True


def _busy(directory: Path, file: Path, native: bool) -> str:
    """Who is at work, as the lock says; it may just have been removed, or not be written yet."""
    who = ""
    with suppress(OSError, ValueError):
        process, host, *_ = file.read_text("utf-8").splitlines()
        since = datetime.fromtimestamp(file.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
        who = f" (process {int(process)} on {host.partition('?')[0]}, since {since})"
    gone = "" if native else f"; where that process is gone, remove {file}"
    return f"{directory}: another process is at work here{who}; wait for it, stop it, or name another --out{gone}"
