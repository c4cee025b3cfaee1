"""The parent's watch over one confined child: reads what it writes, and sees that it stays within its limits."""

from __future__ import annotations

import os
import selectors
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

POLL_SECONDS = 0.02
START_SECONDS = 60.0  # for Python to start and confine itself, on a busy machine
MAX_EVIDENCE = 1 << 16
TAIL_BYTES = 1 << 14


class Bounds(Protocol):
    """The part of a program's limits that the parent keeps."""

    @property
    def wall_seconds(self) -> float: ...
    @property
    def disk_bytes(self) -> int: ...
    @property
    def num_files(self) -> int: ...
    @property
    def output_bytes(self) -> int: ...


@dataclass(frozen=True)
class Followed:
    """What was seen of a child that has ended, or is to be killed.

    `evidence` and `stderr` are what it wrote, of the latter the end; `excess` is None if it ended by itself, "time",
    or one line on what it used too much of; `seconds` since its report that it is confined, None if there was none.
    """

    evidence: bytes
    stderr: bytes
    excess: str | None
    seconds: float | None


@dataclass
class _Stream:
    """A pipe that is read without ever waiting, and all that came is counted.

    Kept are the first `keep` bytes, or the last: what the child said first was before the program, which may go on.
    """

    descriptor: int
    keep: int
    is_first: bool
    data: bytearray = field(default_factory=bytearray)
    num_bytes: int = 0

    def read(self) -> bool:
        """Take what is there, at most 64 KiB; False if that is nothing, now or for good."""
        try:
            block = os.read(self.descriptor, 1 << 16)
        except BlockingIOError:
            return False
        self.data += block
        del self.data[slice(self.keep, None) if self.is_first else slice(0, -self.keep)]
        self.num_bytes += len(block)
        return bool(block)


def follow(pid: int, evidence: int, stderr: int, directory: str, limits: Bounds) -> Followed:
    """Watch a child until it ends or is to be killed (which is left to the caller).

    `evidence` and `stderr` are the ends of pipes to read from. The clock starts when the child's report, one line on
    `evidence`, has arrived: until then no line of the program was run.
    """
    said = _Stream(evidence, MAX_EVIDENCE, is_first=True)
    complained = _Stream(stderr, TAIL_BYTES, is_first=False)
    ended = os.pidfd_open(pid)
    started: float | None = None
    deadline = time.monotonic() + START_SECONDS
    excess: str | None = None
    try:
        with selectors.DefaultSelector() as selector:
            for stream in (said, complained):
                os.set_blocking(stream.descriptor, False)
                selector.register(stream.descriptor, selectors.EVENT_READ, stream)
            selector.register(ended, selectors.EVENT_READ, None)
            has_ended = False
            while not has_ended and excess is None:
                for key, _ in selector.select(POLL_SECONDS):
                    if key.data is None:
                        has_ended = True
                    elif not key.data.read():
                        selector.unregister(key.fd)
                now = time.monotonic()
                if started is None and b"\n" in said.data:
                    started, deadline = now, now + limits.wall_seconds
                if not has_ended:
                    excess = "time" if now >= deadline else _excess(said, complained, directory, limits)
        # What is left in the pipes: no more than they hold, for their writer has ended or is not waited for.
        for stream, most in ((said, MAX_EVIDENCE), (complained, limits.output_bytes)):
            while stream.num_bytes <= most and stream.read():
                pass
    finally:
        os.close(ended)
    seconds = None if started is None else time.monotonic() - started
    if started is None and b"\n" in said.data:
        seconds = 0.0  # over before it was looked at
    return Followed(bytes(said.data), bytes(complained.data), excess, seconds)


def _excess(said: _Stream, complained: _Stream, directory: str, limits: Bounds) -> str | None:
    if complained.num_bytes > limits.output_bytes:
        return f"wrote more than {limits.output_bytes:,} bytes to standard error"
    if said.num_bytes > MAX_EVIDENCE:
        return "wrote where it had nothing to write"
    # Empty in our sight if the child has put a file system of its own there. It can make no subdirectories.
    sizes = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                sizes.append(entry.stat(follow_symlinks=False).st_size)
    if len(sizes) > limits.num_files:
        return f"made more than {limits.num_files} files"
    if sum(sizes) > limits.disk_bytes:
        return f"wrote more than {limits.disk_bytes:,} bytes of files"
    return None
