"""Generated programs, each run in a child process that can harm nothing; one that fails is a result, not an error.

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

Not protected: against errors in the kernel, against side channels (timing, caches), and against a program that cheats
on its own score. A program passes if a random token arrives after its last line; `exit(0)`, `os._exit(0)` or a
replaced `assert` machinery do not send it. But it shares an interpreter with its test, as in the official checker: one
that searches the interpreter's frames for the token, or whose objects compare equal to anything, can pass unearned.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trace_transfer.errors import UserError, listing
from trace_transfer.evaluation.following import Followed, follow
from trace_transfer.evaluation.system_calls import ARCHITECTURES, program_filter

CONFINEMENT = Path(__file__).with_name("confinement.py")
MAX_LINES = 20


class IsolationError(UserError):
    """This system cannot run generated code safely, so none was run; says what is missing."""


@dataclass(frozen=True)
class Limits:
    """What one program may use.

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

    `reason` is one line, empty if it passed; `stderr` the last lines that it wrote there; `seconds` wall-clock time
    from its first line; `layers` what confined it. "killed": by a signal, the system's or ours, other than for time.
    """

    status: Literal["passed", "failed", "timed out", "killed"]
    reason: str
    stderr: str
    seconds: float
    layers: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def run_program(source: str, limits: Limits = DEFAULT_LIMITS, *, namespaces: bool = True) -> Outcome:
    """Run Python source in a confined child process, and say whether it ran to its end.

    `namespaces` false leaves them out even where the system permits them: what is left is the minimum, and enough.

    Raises:
        IsolationError: the minimum of isolation is not to be had here; the program was not run.
    """
    machine = _supported_machine()
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as directory:
        with _child(directory) as (process, evidence):
            sent = _request(source, token, directory, machine, process.pid, limits) | {"namespaces": namespaces}
            assert process.stdin is not None and process.stderr is not None
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(sent).encode())
            followed = follow(process.pid, evidence, process.stderr.fileno(), directory, limits)
        return _outcome(followed, process.returncode, token, limits)


def run_programs(sources: Sequence[str], limits: Limits = DEFAULT_LIMITS, jobs: int | None = None) -> list[Outcome]:
    """Run programs, `jobs` at a time (as many as there are cores if not said); outcomes in their order."""
    with ThreadPoolExecutor(max_workers=jobs or os.cpu_count()) as pool:
        return list(pool.map(lambda source: run_program(source, limits), sources))


def _supported_machine() -> str:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ARCHITECTURES or sys.maxsize < 1 << 32:
        raise IsolationError(
            f"generated code is run on 64-bit Linux only ({', '.join(ARCHITECTURES)}), found {sys.platform} on "
            f"{machine}: it needs Landlock and seccomp. Run this evaluation in a Linux machine, virtual or not"
        )
    return machine


@contextmanager
def _child(directory: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A child that waits for its request, and the descriptor on which it reports; dead at the end in any case."""
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            # Not -I, which ignores PYTHONHASHSEED with the rest of an environment that is wholly ours.
            [sys.executable, "-s", "-P", "-S", "-X", "utf8", str(CONFINEMENT), str(write_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=directory,
            env=_environment(directory),
            pass_fds=(write_end,),
            start_new_session=True,
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    try:
        with process:
            try:
                yield process, read_end
            finally:
                # It has no descendants; the group is killed all the same. Not reaped yet, so the number is its own.
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, 9)
    finally:
        os.close(read_end)


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


def _request(source: str, token: str, directory: str, machine: str, pid: int, limits: Limits) -> dict[str, Any]:
    """What `confinement` is told; see its `main`."""
    site_packages = _site_packages()
    return {
        "source": source,
        "token": token,
        "parent": os.getpid(),
        "directory": directory,
        "limits": asdict(limits),
        "filter": program_filter(pid, machine).hex(),
        "readable": _readable(site_packages),
        "site_packages": site_packages,
    }


def _outcome(followed: Followed, code: int, token: str, limits: Limits) -> Outcome:
    stderr = "\n".join(followed.stderr.decode(errors="replace").splitlines()[-MAX_LINES:])
    first, _, rest = followed.evidence.partition(b"\n")
    report = json.loads(first) if first.startswith(b"{") and first.endswith(b"}") else {}
    if followed.seconds is None or "layers" not in report:
        silence = "did not start in time" if followed.excess else f"ended with code {code} and said nothing"
        missing = report.get("missing") or [stderr or f"the child process {silence}"]
        raise IsolationError(
            "generated code cannot be run safely on this system, and was not run; missing:\n"
            + listing(missing)
            + "\nBoth are part of Linux since 5.13; a container may have to permit them. Run this evaluation elsewhere"
        )
    status, reason = _verdict(followed, code, rest == token.encode(), limits)
    return Outcome(status, reason, stderr, followed.seconds, tuple(report["layers"]))


def _verdict(
    followed: Followed, code: int, is_proved: bool, limits: Limits
) -> tuple[Literal["passed", "failed", "timed out", "killed"], str]:
    if followed.excess == "time":
        return "timed out", f"ran for more than {limits.wall_seconds:g} s"
    if followed.excess is not None:
        return "killed", followed.excess
    if code == -24 or (code == -9 and followed.seconds is not None and followed.seconds >= limits.cpu_seconds):
        return "timed out", f"used more than {limits.cpu_seconds} s of processor time"  # SIGXCPU, or SIGKILL after it
    if code < 0:
        return "killed", f"ended by signal {-code}"
    if code == 0 and is_proved:
        return "passed", ""
    return "failed", f"ended with code {code}" + ("" if code else " before its last line")
