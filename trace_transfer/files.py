"""Files and directories of results: written whole or not at all, and by one process at a time.

A file is written under a temporary name, then renamed, so that a killed run leaves no half file. A lock is a hidden
file that holds the process and the machine of whoever has it, and is gone afterwards. The system lets go of it when
that process ends in whatever way. Where the file system has no such locks (Lustre as it is mounted commonly), the file
itself is the lock: one that a killed process left is taken over on the machine of that process, and on another machine,
where nobody can know whether it still runs, the message says what to remove.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from trace_transfer.errors import UserError
from trace_transfer.launching import is_first_rank

PART = ".part"
LOCK = ".trace-transfer.lock"
SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
TAKE_OVER = 0.3  # s in which what a killed process left is removed, and then held


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size(count: float) -> str:
    """Bytes as a person reads them: `1.23 GB`."""
    rounded = float(f"{count:.3g}")
    scale, unit = next((found for found in SIZES if rounded >= found[0]), SIZES[-1])
    return f"{rounded / scale:.3g} {unit}"


class DiskFullError(UserError):
    """There is no room for a file; nothing of it was left, and what was written before is whole."""

    @classmethod
    def writing(cls, path: Path) -> DiskFullError:
        free = shutil.disk_usage(path.parent).free
        return cls(
            f"{path}: the disk is full ({free:,} bytes free); what was written before is whole. Make room and run the "
            "same command again, or name another --out"
        )


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the system says that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the same directory, renamed at the end, so that no reader ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError.writing(path) from error
        raise


@contextmanager
def new_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """A directory beside it with a temporary name, renamed at the end: there is all of it, or nothing.
    With `replace`, what is there goes when the new one is whole; otherwise only an empty one can be replaced."""
    temporary, replaced = (path.with_name(f".{path.name}{end}{PART}") for end in ("", ".old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if replace and path.is_dir():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        elif path.is_dir():
            path.rmdir()
        temporary.rename(path)
        sync(path.parent)
    except BaseException:
        if replace and replaced.is_dir() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, content: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(content, "utf-8")


def prepare_directory(path: Path | str, what: str = "output directory", hint: str = "") -> Path:
    """Make a directory that can be written, before anything expensive is begun; raises as `check_directory`."""
    directory = check_directory(path, what, hint)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def check_directory(path: Path | str, what: str = "output directory", hint: str = "") -> Path:
    """Refuse a directory that cannot be made or written, and make nothing."""
    directory, hint = Path(path), hint or f"; name another {what}"
    try:
        place = next(one for one in (directory, *directory.parents) if one.exists())
        if not place.is_dir():
            shown = "" if place == directory else f"{place} "
            raise UserError(f"{directory}: {shown}is a file, expected a directory{hint}")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{directory}: the {what} cannot be written: {error.strerror}{hint}") from error
    return directory


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path | str], option: str = "--out") -> None:
    """Refuse to write over what is read, before any work: a file is replaced whole, and what it was is gone.

    Args:
        inputs: files, and models by their names; those of the hub are not here, and in nobody's way. Of a directory
            its files are inputs, too.
        option: what names the outputs, for the message.
    """
    read = {path.resolve() for one in inputs if (path := Path(one).expanduser()).exists()}
    for output in outputs:
        place = output.resolve()
        if place in read or (place.is_file() and place.parent in read):
            raise UserError(f"{output}: is an input as well; name another {option}")


def remove_leftovers(directory: Path, older_than: float = 0.0) -> None:
    """Remove what killed runs left half-written and nobody wrote to for `older_than` seconds; more than 0 where another
    run may be writing now."""
    for leftover in directory.glob(f".*{PART}"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime >= older_than:
                leftover.unlink()


# ---- one process at a time


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
    kind, timeout = (FileLock, patience) if native else (SoftFileLock, patience + TAKE_OVER)
    lock = kind(file, timeout=timeout)
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
