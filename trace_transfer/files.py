"""Files written whole or not at all: under a temporary name, then renamed, so that a killed run leaves no half file."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trace_transfer.errors import UserError, listing

PART = ".part"
LONGEST_NAME, LONGEST_PATH = 255, 4096  # bytes that Linux takes
BELOW = 256  # of what is made in an output directory: steps/KIND-ADDRESS/checkpoint/…


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def size(count: float) -> str:
    """Bytes as a person reads them: `1.23 GB`."""
    scale, unit = next((found for found in SIZES if count >= found[0]), SIZES[-1])
    return f"{count / scale:.3g} {unit}"


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
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFullError.writing(path) from error
        raise
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError.writing(path) from error
        raise


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory beside it with a temporary name, renamed at the end: there is all of it, or nothing."""
    temporary = path.with_name(f".{path.name}{PART}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()  # only an empty one can be replaced
        temporary.rename(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
    """Make a directory and prove that it can be written, before anything expensive is begun.

    Raises:
        UserError: it cannot be made or written.
    """
    directory = check_directory(path, what, hint)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(f"{directory}: the {what} cannot be written: {error.strerror}{hint}") from error
    return directory


def check_directory(path: Path | str, what: str = "output directory", hint: str = "") -> Path:
    """Refuse a directory that cannot be made or written, and make nothing.

    Raises:
        UserError: it is no name, or too long; a file, a link to nothing or one that cannot be written is in its way.
    """
    directory, hint = Path(path), hint or f"; name another {what}"
    _check_name(str(path), what)
    for place in (directory, *directory.parents):
        kind, shown = _kind(place), "" if place == directory else f"{place} "
        if kind == "directory":
            break
        if kind == "file":
            raise UserError(f"{directory}: {shown}is a file, expected a directory{hint}")
        longest = len(os.fsencode(place.name)) + (len(PART) + 10 if place == directory else 0)
        if longest > LONGEST_NAME:
            raise UserError(f"{directory}: a name in it is too long ({longest} bytes of {LONGEST_NAME}){hint}")
        if place.is_symlink():
            raise UserError(f"{directory}: {shown}is a link to nothing, or to itself, expected a directory{hint}")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise UserError(f"{directory}: the {what} cannot be written: {place}: {error.strerror}{hint}") from error
    return directory


def check_file(path: Path | str, option: str = "--out") -> Path:
    """Refuse a file that cannot be written, and write nothing.

    Raises:
        UserError: it is no name, too long, or a directory; or it cannot be made where it would lie.
    """
    file, hint = Path(path), f"; name another with {option}"
    _check_name(str(path), f"file of {option}")
    kind = _kind(file)
    if kind == "directory":
        raise UserError(f"{file}: is a directory, expected a file; name one with {option}")
    longest = len(os.fsencode(file.name)) + len(PART) + 10  # under which it is written first
    if longest > LONGEST_NAME:
        raise UserError(
            f"{file}: its name is too long: it is written as one of {longest} bytes of {LONGEST_NAME}{hint}"
        )
    if kind is None and file.is_symlink():
        raise UserError(f"{file}: is a link to nothing, or to itself, expected a file{hint}")
    check_directory(file.parent, f"directory of {option}")
    return file


def _check_name(name: str, what: str) -> None:
    """Refuse a path that is none, is not UTF-8, or leaves no room for files below it."""
    try:
        length = len(str(Path(name).absolute()).encode())
    except UnicodeEncodeError as error:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"{shown}: is not UTF-8; name another {what}") from error
    if not name or "\x00" in name:
        raise UserError(f"{name!r}: is no name; give the {what}")
    if length + BELOW > LONGEST_PATH:
        raise UserError(
            f"{name[:60]}…: its path has {length:,} bytes; {LONGEST_PATH - BELOW:,} are the most that leave room for "
            f"what is below it; name another {what}"
        )


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path | str], option: str = "--out") -> None:
    """Refuse to write over what is read, before any work: a file is replaced whole, and what it was is gone.

    Args:
        outputs: files and directories that will be written.
        inputs: files, and models by their names; those of the hub are not here, and in nobody's way. Of a directory
            its files are inputs, too.
        option: what names the outputs, for the message.

    Raises:
        UserError: some are the same, under whatever name; all are named.
    """
    outputs = list(outputs)
    for output in outputs:
        _check_name(str(output), f"one with {option}")
        if output.is_symlink() and _kind(output) is None:
            raise UserError(f"{output}: is a link to nothing, or to itself; name another {option}")
    read = {path.resolve() for one in inputs if _kind(path := Path(one).expanduser())}
    taken: list[Path] = []
    for output in outputs:
        place = output.resolve()
        in_one = _kind(place) == "file" and place.parent in read  # of a directory that is taken its files are not told
        if place in read or (in_one and output.parent not in taken):
            taken.append(output)
    if len(taken) == 1:
        raise UserError(f"{taken[0]}: is an input as well; name another {option}")
    if taken:
        raise UserError(
            f"what would be written is an input as well; name another {option}:\n" + listing([*map(str, taken)])
        )


def found_in(directory: Path, pattern: str) -> list[Path]:
    """Files of that pattern in a directory, sorted; none where no directory is, or can be."""
    with suppress(OSError):
        return sorted(directory.glob(pattern))
    return []


def _kind(path: Path) -> str | None:
    """`file` or `directory`; None where nothing is, or can be: some names no file system takes."""
    with suppress(OSError, ValueError):
        # One look: between two of them another process of the same launch may make the directory.
        return "directory" if stat.S_ISDIR(path.stat().st_mode) else "file"
    return None


def remove_leftovers(directory: Path, older_than: float = 0.0) -> None:
    """Remove what killed runs left half-written.

    Args:
        older_than: seconds since it was last written; more than 0 where another run may be writing now.
    """
    for leftover in directory.glob(f".*{PART}"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime >= older_than:
                leftover.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
