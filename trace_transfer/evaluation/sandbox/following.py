"""The parent's watch over a trial's two confined processes: reads what they write, keeps them within their limits."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
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
    """What was seen of a trial that has ended, or is to be killed.

    `evidence` is what the test's process wrote, `stderr` the end of what both did; `excess` is None if the trial ended
    by itself, "time", or one line on what it used too much of; `seconds` since the report that both are confined, None
    if there was none.
    """

    evidence: bytes
    stderr: bytes
    excess: str | None
    seconds: float | None


@dataclass
class _Stream:
    """A pipe that is read without ever waiting, and all that came is counted.

    Kept are the first `keep` bytes, or the last.
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


def follow(pids: Sequence[int], evidence: int, stderr: int, directory: str, limits: Bounds) -> Followed:
    """Watch a trial until its verdict is there, all its processes have ended, or they are to be killed.

    Killing is left to the caller. `evidence` and `stderr` are the ends of pipes to read from, `directory` is the
    program's. The clock starts when the first line of `evidence`, the report of confinement, has arrived: until then no
    line of the program was run. The second line is the verdict.
    """
    said = _Stream(evidence, MAX_EVIDENCE, is_first=True)
    complained = _Stream(stderr, TAIL_BYTES, is_first=False)
    started: float | None = None
    deadline = time.monotonic() + START_SECONDS
    excess: str | None = None
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for stream in (said, complained):
            os.set_blocking(stream.descriptor, False)
            selector.register(stream.descriptor, selectors.EVENT_READ, stream)
        running = [os.pidfd_open(pid) for pid in pids]
        for process in running:
            stack.callback(os.close, process)
            selector.register(process, selectors.EVENT_READ, None)
        num_running = len(running)
        while num_running and said.data.count(b"\n") < 2 and excess is None:
            for key, _ in selector.select(POLL_SECONDS):
                if key.data is None:
                    num_running -= 1
                    selector.unregister(key.fd)
                elif not key.data.read():
                    selector.unregister(key.fd)
            now = time.monotonic()
            if started is None and b"\n" in said.data:
                started, deadline = now, now + limits.wall_seconds
            if num_running:
                excess = "time" if now >= deadline else _excess(complained, directory, limits)
        # What is left in the pipes: no more than they hold, for nobody waits for their writers.
        for stream, most in ((said, MAX_EVIDENCE), (complained, limits.output_bytes)):
            while stream.num_bytes <= most and stream.read():
                pass
    seconds = None if started is None else time.monotonic() - started
    if started is None and b"\n" in said.data:
        seconds = 0.0  # over before it was looked at
    return Followed(bytes(said.data), bytes(complained.data), excess, seconds)


def _excess(complained: _Stream, directory: str, limits: Bounds) -> str | None:
    if complained.num_bytes > limits.output_bytes:
        return f"wrote more than {limits.output_bytes:,} bytes to standard error"
    # Empty in our sight if the program's process has put a file system of its own there. It can make no subdirectories.
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
