"""Generated programs, each run in a process that can harm nothing; one that fails is a result, not an error.

What a program has: Python with the standard library and the site-packages of this interpreter, an empty working
directory of its own, which is removed afterwards, and the resources of `Limits`. What it has not:

- the network, and sockets at all (so no asyncio either);
- other processes and threads: it can start none, and signal none but itself, so nothing outlives it;
- files: none outside its directory can be written, made, renamed or removed; none can be read or listed but Python's
  own, the system's shared libraries and time zones. That a file exists, and its size and times, can still be asked;
- the environment and the open files of the parent; capabilities, if the parent is root; a way to regain any of it.

This is by Landlock (files), a seccomp filter (system calls) and resource limits: where one of them is not to be had,
`IsolationError` is raised and nothing is run. The directory is measured every 20 ms: a fast writer gets some way past
its limit before it is killed, and files that it removed while they are open are not seen, at most `open_files` of them.
Not protected: against errors in the kernel, and against side channels (timing, caches).

The verdict is made where the program cannot reach: its test runs in a second process, confined in the same way, which
calls the program's functions by value and gets plain data back (see `trial`). Three unearned passes remain, as in the
official checker: answers learned by heart; a wrong program whose test is too weak to show it; a test that takes the
expected value from the program itself, as HumanEval/33 does. One difference: a test does not see that an argument was
changed in place. None of HumanEval's looks for that.
"""

from __future__ import annotations

import json
import os
import platform
import selectors
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Literal

from trace_transfer.errors import UserError, listing
from trace_transfer.evaluation.sandbox.system_calls import ARCHITECTURES, program_filter

TRIAL = Path(__file__).with_name("trial.py")
MAX_LINES = 20
POLL_SECONDS = 0.02
START_SECONDS = 60.0  # for Python to start and confine itself, on a busy machine
MAX_EVIDENCE = 1 << 16
TAIL_BYTES = 1 << 14

Process = subprocess.Popen[bytes]
Status = Literal["passed", "failed", "timed out", "killed"]


class IsolationError(UserError):
    """This system cannot run generated code safely, so none was run; says what is missing."""


@dataclass(frozen=True)
class Limits:
    """What one program may use, and its test once more.

    `wall_seconds` count from the program's first line and are the guard against sleeping; `cpu_seconds` (whole) are
    what bounds work, so that a score does not depend on how busy the machine is. `memory_bytes` is address space.
    `disk_bytes` holds for each file and for all together, in at most `num_files` files, none in a subdirectory.
    `output_bytes` is for standard error; standard output goes nowhere.
    """

    wall_seconds: float = 15.0
    cpu_seconds: int = 3
    memory_bytes: int = 1 << 30
    disk_bytes: int = 16 << 20
    num_files: int = 64
    open_files: int = 64
    output_bytes: int = 1 << 20


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    `reason` is one line, empty if it passed; `stderr` the last lines that it and its test wrote there; `seconds`
    wall-clock time from its first line; `layers` what confined it. "killed": by a signal, the system's or ours, other
    than for time.
    """

    status: Status
    reason: str
    stderr: str
    seconds: float
    layers: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def run_program(source: str, test: str, limits: Limits = DEFAULT_LIMITS) -> Outcome:
    """Run a program and its test, both Python source, in two confined processes: it passes if the test runs to its end.

    The program runs first. In the test `__program__.f(…)` calls the program's function `f`, by value: see `trial`.

    Raises:
        IsolationError: the isolation is not to be had here; the program was not run.
    """
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ARCHITECTURES or sys.maxsize < 1 << 32:
        raise IsolationError(
            f"generated code is run on 64-bit Linux only ({', '.join(ARCHITECTURES)}), found {sys.platform} on "
            f"{machine}: it needs Landlock and seccomp. Run this evaluation in a Linux machine, virtual or not"
        )
    with _processes() as (processes, directories, evidence, stderr):
        # The program's process gets its code from the test's.
        codes_sent: list[dict[str, str]] = [{}, {"source": source, "test": test}]
        for process, directory, code in zip(processes, directories, codes_sent, strict=True):
            site_packages = _site_packages()
            request = {
                "parent": os.getpid(), "directory": directory, "limits": asdict(limits),
                "filter": program_filter(process.pid, machine).hex(), "readable": _readable(site_packages),
                "site_packages": site_packages,
            }  # fmt: skip
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(request | code).encode())
        excess, seconds = _follow(processes, evidence, stderr, directories[0], limits)
    codes = [process.returncode for process in processes]  # -9 if they were killed at the end
    said = "\n".join(stderr.data.decode(errors="replace").splitlines()[-MAX_LINES:])
    report, verdict = (json.loads(line) for line in [*bytes(evidence.data).splitlines(), b"{}", b"{}"][:2])
    if seconds is None or "layers" not in report:
        silence = "did not start in time" if excess else f"ended with code {codes[0]} and said nothing"
        raise IsolationError(
            "generated code cannot be run safely on this system, and was not run; missing:\n"
            + listing(report.get("missing") or [said or f"the child process {silence}"])
            + "\nBoth are part of Linux since 5.13; a container may have to permit them. Run this evaluation elsewhere"
        )
    status, reason = _verdict(excess, codes, verdict.get("passed"), seconds, limits)
    return Outcome(status, reason, said, seconds, tuple(report["layers"]))


# ---- processes


@dataclass
class _Stream:
    """A pipe that is read without ever waiting; all is counted, and the first or the last `keep` bytes are kept."""

    pipe: IO[bytes]
    keep: slice
    data: bytearray = field(default_factory=bytearray)
    num_bytes: int = 0

    def read(self) -> bool:
        """Take what is there, at most 64 KiB; False if that is nothing, now or for good."""
        try:
            block = os.read(self.pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        self.data = (self.data + block)[self.keep]
        self.num_bytes += len(block)
        return bool(block)


@contextmanager
def _processes() -> Iterator[tuple[list[Process], list[str], _Stream, _Stream]]:
    """A program's process and its test's, each waiting for its request, and their directories; what is read from them:
    the test's evidence, and the standard error of both. The processes are dead at the end in any case."""
    with ExitStack() as stack:
        pipes = [
            [stack.enter_context(os.fdopen(end, mode, 0)) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)]
            for _ in range(4)
        ]
        (calls, to_program), (answers, to_judge), (evidence, to_us), (stderr, errors) = pipes
        program, directory = stack.enter_context(_child("program", [calls, to_judge], errors))
        judge, other = stack.enter_context(_child("test", [answers, to_program, to_us], errors))
        for stream in (calls, to_program, answers, to_judge, to_us, errors):
            stream.close()
        for stream in (evidence, stderr):
            os.set_blocking(stream.fileno(), False)
        streams = _Stream(evidence, slice(MAX_EVIDENCE)), _Stream(stderr, slice(-TAIL_BYTES, None))
        yield [program, judge], [directory, other], *streams


@contextmanager
def _child(role: str, streams: Sequence[IO[bytes]], errors: IO[bytes]) -> Iterator[tuple[Process, str]]:
    """A process of `trial` in a directory of its own; killed at the end, and the directory removed."""
    descriptors = [stream.fileno() for stream in streams]
    with tempfile.TemporaryDirectory(prefix=f"{role}-", ignore_cleanup_errors=True) as directory:
        # Nothing of the parent's environment but where its Python finds its libraries; one hash seed: one score.
        environment = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        environment |= {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "HOME": directory, "TMPDIR": directory}
        process = subprocess.Popen(
            # Not -I, which ignores PYTHONHASHSEED with the rest of an environment that is wholly ours.
            [sys.executable, "-s", "-P", "-S", "-X", "utf8", str(TRIAL), role, *map(str, descriptors)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, cwd=directory,
            env=environment | {"LANG": "C.UTF-8"}, pass_fds=descriptors, start_new_session=True,
        )  # fmt: skip
        with process:
            try:
                yield process, directory
            finally:
                # It has no descendants; the group is killed all the same. Not reaped yet, so the number is its own.
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, 9)


def _site_packages() -> list[str]:
    found = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return [path for path in dict.fromkeys(found) if Path(path).is_dir()]


def _readable(site_packages: Sequence[str]) -> list[str]:
    """What Python reads while it runs."""
    python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")] + [f"{sys.base_prefix}/lib"]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"]
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    return list(dict.fromkeys([*python, *site_packages, *system, *libraries]))


def _follow(
    processes: Sequence[Process], evidence: _Stream, stderr: _Stream, directory: str, limits: Limits
) -> tuple[str | None, float | None]:
    """Watch a trial until its verdict is there, all its processes have ended, or they are to be killed.

    The clock starts when the first line of `evidence`, the report of confinement, has arrived: until then no line of
    the program was run. The second line is the verdict.

    Returns:
        None if it ended by itself, "time", or one line on what it used too much of; seconds since the report that both
        are confined, None if there was none.
    """
    started: float | None = None
    deadline = time.monotonic() + START_SECONDS
    excess: str | None = None
    with selectors.DefaultSelector() as selector:
        for stream in (evidence, stderr):
            selector.register(stream.pipe, selectors.EVENT_READ, stream)
        while excess is None and evidence.data.count(b"\n") < 2 and any(one.poll() is None for one in processes):
            for key, _ in selector.select(POLL_SECONDS):
                if not key.data.read():
                    selector.unregister(key.fileobj)
            now = time.monotonic()
            if started is None and b"\n" in evidence.data:
                started, deadline = now, now + limits.wall_seconds
            excess = "time" if now >= deadline else _excess(stderr, directory, limits)
    # What is left in the pipes: no more than they hold, for nobody waits for their writers.
    for stream, most in ((evidence, MAX_EVIDENCE), (stderr, limits.output_bytes)):
        while stream.num_bytes <= most and stream.read():
            pass
    if started is None and b"\n" in evidence.data:
        return excess, 0.0  # over before it was looked at
    return excess, None if started is None else time.monotonic() - started


def _excess(stderr: _Stream, directory: str, limits: Limits) -> str | None:
    if stderr.num_bytes > limits.output_bytes:
        return f"wrote more than {limits.output_bytes:,} bytes to standard error"
    sizes = []  # it can make no subdirectories
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                sizes.append(entry.stat(follow_symlinks=False).st_size)
    if len(sizes) > limits.num_files:
        return f"made more than {limits.num_files} files"
    return f"wrote more than {limits.disk_bytes:,} bytes of files" if sum(sizes) > limits.disk_bytes else None


def _verdict(
    excess: str | None, codes: Sequence[int], passed: bool | None, seconds: float, limits: Limits
) -> tuple[Status, str]:
    if excess is not None:
        return ("timed out", f"ran for more than {limits.wall_seconds:g} s") if excess == "time" else ("killed", excess)
    if passed is not None:
        return ("passed", "") if passed else ("failed", "its test failed")
    code = next((code for code in codes if code), 0)
    if code == -24 or (code == -9 and seconds >= limits.cpu_seconds):  # SIGXCPU, or SIGKILL after it
        return "timed out", f"used more than {limits.cpu_seconds} s of processor time"
    if code < 0:
        return "killed", f"ended by signal {-code}"
    return "failed", f"ended with code {code}" + ("" if code else " before the end of its test")
