"""Generated programs, each run in a process that can harm nothing; one that fails is a result, not an error.

What a program has: Python with the standard library and the site-packages of this interpreter, an empty working
directory of its own, which is removed afterwards, and the resources of `Limits`. What it has not:

- the network, and sockets at all (so no asyncio either);
- other processes and threads: it can start none, and signal none but itself, so nothing outlives it;
- files: none outside its directory can be written, made, renamed or removed; none can be read or listed but Python's
  own, the system's shared libraries and time zones. That a file exists, and its size and times, can still be asked;
- the environment and the open files of the parent; capabilities, if the parent is root; a way to regain any of it.

Always by Landlock (files), a seccomp filter (system calls) and resource limits, and never without: where Landlock or
seccomp is not to be had, `IsolationError` is raised and nothing is run. Where the system permits it, also namespaces
of its own (user, mount, network, ipc) and a directory in memory whose size the kernel limits; elsewhere the directory
is measured every 20 ms, and a fast writer gets some way past its limit before it is killed; files that it removed
while they are open are not seen there, at most `open_files` of them. Limits are per program: `jobs` programs at once
may use `jobs` times as much.

The verdict is made where the program cannot reach: its test runs in a second process, confined in the same way, which
calls the program's functions by value and gets plain data back (see `trial`). The program's process holds no token, no
test and no channel on which success could be told, so none can be found in frames, memory or descriptors, and no exit,
hook or replaced builtin tells it; an object that equals everything arrives as plain data, or not at all. The official
checker runs program and test in one interpreter, where each of these passes.

Three unearned passes remain, as in the official checker: answers learned by heart; a wrong program whose test is too
weak to show it; a test that takes the expected value from the program itself, as HumanEval/33 does. And one difference:
calls are by value, so a test does not see that an argument was changed in place. None of HumanEval's looks for that:
its 164 canonical solutions pass.

Not protected: against errors in the kernel, and against side channels (timing, caches).
"""

from __future__ import annotations

import json
import os
import platform
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from trace_transfer.errors import UserError, listing
from trace_transfer.evaluation.sandbox.following import Followed, follow
from trace_transfer.evaluation.sandbox.system_calls import ARCHITECTURES, program_filter

TRIAL = Path(__file__).with_name("trial.py")
MAX_LINES = 20


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

    def __post_init__(self) -> None:
        problems = [f"{name}: {value!r} is not positive" for name, value in asdict(self).items() if not value > 0]
        if problems:
            raise UserError("limits of a program:\n" + listing(problems))


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """What became of a program.

    `reason` is one line, empty if it passed; `stderr` the last lines that it and its test wrote there; `seconds`
    wall-clock time from its first line; `layers` what confined it. "killed": by a signal, the system's or ours, other
    than for time.
    """

    status: Literal["passed", "failed", "timed out", "killed"]
    reason: str
    stderr: str
    seconds: float
    layers: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def run_program(source: str, test: str, limits: Limits = DEFAULT_LIMITS, *, namespaces: bool = True) -> Outcome:
    """Run a program and its test, both Python source, in two confined processes: it passes if the test runs to its end.

    The program runs first. In the test `__program__.f(…)` calls the program's function `f`, by value: see `trial`.
    `namespaces` false leaves them out even where the system permits them: what is left is the minimum, and enough.

    Raises:
        IsolationError: the minimum of isolation is not to be had here; the program was not run.
    """
    machine = _supported_machine()
    with _processes() as (program, judge, evidence, stderr):
        for child, code in ((program, {}), (judge, {"source": source, "test": test})):
            sent = _request(child, machine, limits) | code | {"namespaces": namespaces}
            assert child.process.stdin is not None
            with suppress(BrokenPipeError), child.process.stdin:
                child.process.stdin.write(json.dumps(sent).encode())
        pids = [child.process.pid for child in (program, judge)]
        followed = follow(pids, evidence, stderr, program.directory, limits)
    return _outcome(followed, [child.process.returncode for child in (program, judge)], limits)


def run_programs(
    sources: Sequence[str], test: str, limits: Limits = DEFAULT_LIMITS, jobs: int | None = None
) -> list[Outcome]:
    """Run programs with their one test, `jobs` at a time (as many as there are cores if not said); in their order."""
    with ThreadPoolExecutor(max_workers=jobs or os.cpu_count()) as pool:
        return list(pool.map(lambda source: run_program(source, test, limits), sources))


def _supported_machine() -> str:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ARCHITECTURES or sys.maxsize < 1 << 32:
        raise IsolationError(
            f"generated code is run on 64-bit Linux only ({', '.join(ARCHITECTURES)}), found {sys.platform} on "
            f"{machine}: it needs Landlock and seccomp. Run this evaluation in a Linux machine, virtual or not"
        )
    return machine


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    directory: str


@contextmanager
def _processes() -> Iterator[tuple[_Child, _Child, int, int]]:
    """A program's process and its test's, each waiting for its request, and two descriptors to read from: the test's
    evidence, and the standard error of both. The processes are dead at the end in any case.
    """
    with ExitStack() as stack:
        pipes = [
            [stack.enter_context(os.fdopen(end, mode, 0)) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)]
            for _ in range(4)
        ]
        (calls, to_program), (answers, to_judge), (evidence, to_us), (stderr, errors) = pipes
        program = stack.enter_context(_child("program", [calls, to_judge], errors))
        judge = stack.enter_context(_child("test", [answers, to_program, to_us], errors))
        for stream in (calls, to_program, answers, to_judge, to_us, errors):
            stream.close()
        yield program, judge, evidence.fileno(), stderr.fileno()


@contextmanager
def _child(role: str, streams: Sequence[IO[bytes]], errors: IO[bytes]) -> Iterator[_Child]:
    """A process of `trial` in a directory of its own; killed at the end, and the directory removed."""
    descriptors = [stream.fileno() for stream in streams]
    with tempfile.TemporaryDirectory(prefix=f"{role}-", ignore_cleanup_errors=True) as directory:
        process = subprocess.Popen(
            # Not -I, which ignores PYTHONHASHSEED with the rest of an environment that is wholly ours.
            [sys.executable, "-s", "-P", "-S", "-X", "utf8", str(TRIAL), role, *map(str, descriptors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=directory,
            env=_environment(directory),
            pass_fds=descriptors,
            start_new_session=True,
        )
        with process:
            try:
                yield _Child(process, directory)
            finally:
                # It has no descendants; the group is killed all the same. Not reaped yet, so the number is its own.
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, 9)


def _environment(directory: str) -> dict[str, str]:
    """Nothing of the parent's but where its Python finds its libraries; one hash seed, so that a score is one score."""
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    own = {"HOME": directory, "TMPDIR": directory, "LANG": "C.UTF-8"}
    return {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", **own, **one_thread, **kept}


def _site_packages() -> list[str]:
    found = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return [path for path in dict.fromkeys(found) if Path(path).is_dir()]


def _readable(site_packages: Sequence[str]) -> list[str]:
    """What Python reads while it runs."""
    python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")] + [f"{sys.base_prefix}/lib"]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"]
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    return list(dict.fromkeys([*python, *site_packages, *system, *libraries]))


def _request(child: _Child, machine: str, limits: Limits) -> dict[str, Any]:
    """What `trial` is told before it confines itself."""
    site_packages = _site_packages()
    return {
        "parent": os.getpid(),
        "directory": child.directory,
        "limits": asdict(limits),
        "filter": program_filter(child.process.pid, machine).hex(),
        "readable": _readable(site_packages),
        "site_packages": site_packages,
    }


def _outcome(followed: Followed, codes: Sequence[int], limits: Limits) -> Outcome:
    """`codes` are how the program's process and its test's ended; -9 if they were killed at the end."""
    stderr = "\n".join(followed.stderr.decode(errors="replace").splitlines()[-MAX_LINES:])
    report, verdict = [json.loads(line) for line in [*followed.evidence.splitlines(), b"{}", b"{}"][:2]]
    if followed.seconds is None or "layers" not in report:
        silence = "did not start in time" if followed.excess else f"ended with code {codes[0]} and said nothing"
        missing = report.get("missing") or [stderr or f"the child process {silence}"]
        raise IsolationError(
            "generated code cannot be run safely on this system, and was not run; missing:\n"
            + listing(missing)
            + "\nBoth are part of Linux since 5.13; a container may have to permit them. Run this evaluation elsewhere"
        )
    status, reason = _verdict(followed, codes, verdict.get("passed"), limits)
    return Outcome(status, reason, stderr, followed.seconds, tuple(report["layers"]))


def _verdict(
    followed: Followed, codes: Sequence[int], passed: bool | None, limits: Limits
) -> tuple[Literal["passed", "failed", "timed out", "killed"], str]:
    if followed.excess == "time":
        return "timed out", f"ran for more than {limits.wall_seconds:g} s"
    if followed.excess is not None:
        return "killed", followed.excess
    if passed is not None:
        return ("passed", "") if passed else ("failed", "its test failed")
    code = next((code for code in codes if code), 0)
    if code == -24 or (code == -9 and followed.seconds is not None and followed.seconds >= limits.cpu_seconds):
        return "timed out", f"used more than {limits.cpu_seconds} s of processor time"  # SIGXCPU, or SIGKILL after it
    if code < 0:
        return "killed", f"ended by signal {-code}"
    return "failed", f"ended with code {code}" + ("" if code else " before the end of its test")


# Each attempt must be refused, and what a program needs must be there.
PROBE = """
import collections, math, os, re, socket, _thread

def read(): open({secret!r}).read()
def replace(): open({secret!r}, "w")
def write_beside(): open({beside!r}, "w")
def list_directory(): os.listdir({directory!r})
def open_socket(): socket.socket()
def start_process(): os.fork()
def start_thread(): _thread.start_new_thread(id, (0,))
def signal_parent(): os.kill(os.getppid(), 0)

ATTEMPTS = read, replace, write_beside, list_directory, open_socket, start_process, start_thread, signal_parent

def got_through():
    found = []
    for attempt in ATTEMPTS:
        try:
            attempt()
        except (OSError, RuntimeError):
            continue
        found.append(attempt.__name__)
    if os.environ.keys() - {{{environment}}}:
        found.append("environment")
    with open("file", "w") as stream:
        stream.write("its own directory can be written to")
    return found
"""
PROBE_TEST = """
got_through = __program__.got_through()
assert not got_through, got_through
"""
PROBE_ENVIRONMENT = [
    *("PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
]


def require_isolation() -> tuple[str, ...]:
    """The layers that confine a program on this system; a fifth of a second.

    Raises:
        IsolationError: a layer of the minimum is missing, or a harmless program got past them. There is no weaker way.
    """
    with tempfile.TemporaryDirectory() as directory:
        secret = Path(directory, "secret")
        secret.write_text("secret", encoding="utf-8")
        paths = {"secret": str(secret), "beside": f"{directory}/beside", "directory": directory}
        outcome = run_program(PROBE.format(**paths, environment=", ".join(map(repr, PROBE_ENVIRONMENT))), PROBE_TEST)
    if not outcome.passed:
        raise IsolationError(
            f"generated code cannot be run safely on this system: a trial program was {outcome.status} "
            f"({outcome.reason}) under {', '.join(outcome.layers)}, expected it to be refused everything and to end "
            f"well. It said:\n{outcome.stderr}"
        )
    return outcome.layers
