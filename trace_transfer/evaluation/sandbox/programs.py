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

A system call that is not listed below fails with "Operation not permitted". Not listed on purpose: whatever starts a
process or a thread, opens a socket, changes a file's mode, owner or times, traces or signals another process, mounts,
changes limits or namespaces, or keeps memory outside of the address space (memfd, shared memory, io_uring).

The verdict is made where the program cannot reach: its test runs in a second process, confined in the same way, which
calls the program's functions by value (see `trial`), so that no test sees an argument changed in place. Unearned passes
remain, as in the official checker: answers learned by heart, and tests too weak to show what is wrong.

Sources: seccomp(2), linux/filter.h; numbers of calls from asm/unistd_64.h (x86-64) and asm-generic/unistd.h (ARM64).
"""

from __future__ import annotations

import json
import os
import platform
import selectors
import site
import struct
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
    """What one program may use, and its test once more."""

    wall_seconds: float = 15.0  # from the program's first line: the guard against sleeping
    cpu_seconds: int = 3  # what bounds work, so that a score does not depend on how busy the machine is
    memory_bytes: int = 1 << 30  # address space
    disk_bytes: int = 16 << 20  # of each file, and of all together
    num_files: int = 64  # none in a subdirectory
    open_files: int = 64
    output_bytes: int = 1 << 20  # of standard error; standard output goes nowhere


@dataclass(frozen=True)
class Outcome:
    """What became of a program; "killed": by a signal, the system's or ours, other than for time."""

    status: Status
    reason: str  # one line, empty if it passed
    stderr: str  # the last lines that it and its test wrote there

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def run_program(source: str, test: str, limits: Limits) -> Outcome:
    """Run a program and its test, both Python source, in two confined processes: it passes if the test runs to its end.

    An IsolationError if the isolation is not to be had here; the program was not run."""
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
            request = {
                "parent": os.getpid(), "directory": directory, "limits": asdict(limits), **_libraries(),
                "filter": program_filter(process.pid, machine).hex(),
            }  # fmt: skip
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(request | code).encode())
        excess, seconds = _follow(processes, evidence, stderr, directories[0], limits)
    codes = [process.returncode for process in processes]  # -9 if they were killed at the end
    said = "\n".join(stderr.data.decode(errors="replace").splitlines()[-MAX_LINES:])
    missing, passed = (json.loads(line) for line in [*bytes(evidence.data).splitlines(), b"null", b"null"][:2])
    if seconds is None or missing != []:
        silence = "did not start in time" if excess else f"ended with code {codes[0]} and said nothing"
        raise IsolationError(
            "generated code cannot be run safely on this system, and was not run; missing:\n"
            + listing(missing or [said or f"the child process {silence}"])
            + "\nBoth are part of Linux since 5.13; a container may have to permit them. Run this evaluation elsewhere"
        )
    return Outcome(*_verdict(excess, codes, passed, seconds, limits), said)


# ---- processes


@dataclass
class _Stream:
    """A pipe that is read without ever waiting; all is counted, `keep` of it is kept."""

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
    """A program's process and its test's, each waiting for its request, and their directories; the test's evidence, and
    the standard error of both. The processes are dead at the end in any case."""
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


def _libraries() -> dict[str, list[str]]:
    """The directories with packages, and all that Python reads while it runs."""
    found = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    site_packages = [path for path in dict.fromkeys(found) if Path(path).is_dir()]
    python = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")] + [f"{sys.base_prefix}/lib"]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"]
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    return {"site_packages": site_packages, "readable": [*python, *site_packages, *system, *libraries]}


def _follow(
    processes: Sequence[Process], evidence: _Stream, stderr: _Stream, directory: str, limits: Limits
) -> tuple[str | None, float | None]:
    """Watch a trial until its verdict is there, all its processes have ended, or they are to be killed.

    Returns:
        None if it ended by itself, "time", or one line on what it used too much of; seconds since the first line of
        `evidence`, which says that both are confined and nothing was run so far, None if there was none.
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


# ---- system calls, as a seccomp filter (classic BPF)

Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64

# name: (x86-64, 64-bit ARM); None where the architecture has no such call.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # reading, writing, finding files: what may be touched is Landlock's to say
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "lseek": (8, 62), "close": (3, 57),
    "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "getdents64": (217, 61),
    "statfs": (137, 43), "fstatfs": (138, 44), "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83),
    "fadvise64": (221, 223), "flock": (73, 32), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "umask": (95, 166),
    # memory, within the limit on the address space
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "msync": (26, 227), "mincore": (27, 232), "brk": (12, 214), "membarrier": (324, 283),
    # signals and timers of its own
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102),
    "pause": (34, None), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    # asking who and where it is
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "getrusage": (98, 165),
    "getrlimit": (97, 163), "getpriority": (140, 141), "sysinfo": (99, 179), "uname": (63, 160),
    "getcpu": (309, 168), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "sched_getscheduler": (145, 120), "sched_getparam": (143, 121), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    # what the C library needs, waiting, ending
    "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "set_tid_address": (218, 96), "arch_prctl": (158, None), "getrandom": (318, 278), "poll": (7, None),
    "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "eventfd2": (290, 19), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

# Calls that are allowed for some arguments only; see `program_filter`.
RESTRICTED: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None), "openat": (257, 56), "fcntl": (72, 25), "ioctl": (16, 29), "kill": (62, 129),
    "tgkill": (234, 131), "prlimit64": (302, 261),
}  # fmt: skip

# F_DUPFD … F_SETLKW, F_DUPFD_CLOEXEC. Not F_SETOWN and F_SETSIG: they make the kernel signal another process.
FCNTL_COMMANDS = (*range(8), 1030)
# TCGETS (is it a terminal?), TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
IOCTL_COMMANDS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)
O_ACCMODE, O_RDONLY, O_TRUNC = 0o3, 0o0, 0o1000

LOAD, EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data


def _argument(index: int) -> int:
    """Offset of the low 32 bits of a call's argument; the high ones are 4 bytes further."""
    return 16 + 8 * index


ALLOW: Instruction = (RETURN, 0, 0, 0x7FFF0000)
DENY: Instruction = (RETURN, 0, 0, 0x00050000 | 1)  # SECCOMP_RET_ERRNO, EPERM
KILL: Instruction = (RETURN, 0, 0, 0x80000000)  # SECCOMP_RET_KILL_PROCESS


def _one_of(index: int, values: Sequence[int]) -> list[Instruction]:
    """Allow if the low 32 bits of an argument (an int or unsigned int in the kernel) are one of `values`."""
    tests = [(EQUAL, len(values) - position, 0, value) for position, value in enumerate(values)]
    return [(LOAD, 0, 0, _argument(index)), *tests, DENY, ALLOW]


def _null(index: int) -> list[Instruction]:
    """Allow if an argument is the null pointer."""
    low, high = _argument(index), _argument(index) + 4
    return [(LOAD, 0, 0, low), (EQUAL, 0, 2, 0), (LOAD, 0, 0, high), (EQUAL, 1, 0, 0), DENY, ALLOW]


def _open_flags(index: int) -> list[Instruction]:
    """Allow what Landlock judges as it should: its first two versions (Linux before 6.2) let a file that may only be
    read, or that is opened with access mode 3 (neither reading nor writing), be truncated while it is opened."""
    return [
        (LOAD, 0, 0, _argument(index)), (AND, 0, 0, O_TRUNC | O_ACCMODE), (EQUAL, 2, 0, O_TRUNC | O_RDONLY),
        (EQUAL, 1, 0, O_TRUNC | O_ACCMODE), (EQUAL, 0, 1, O_ACCMODE), DENY, ALLOW,
    ]  # fmt: skip


def program_filter(pid: int, machine: str) -> bytes:
    """The filter as an array of struct sock_filter, for process `pid`, which may signal itself and nobody else.

    A call through another architecture's numbers than those of `machine`, one of `ARCHITECTURES`, kills it."""
    column = list(ARCHITECTURES).index(machine)
    rules: dict[str, list[Instruction]] = {name: [ALLOW] for name in ALLOWED} | {
        "open": _open_flags(1),
        "openat": _open_flags(2),
        "fcntl": _one_of(1, FCNTL_COMMANDS),
        "ioctl": _one_of(1, IOCTL_COMMANDS),
        "kill": _one_of(0, (pid,)),
        "tgkill": _one_of(0, (pid,)),
        "prlimit64": _null(2),
    }
    instructions = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, ARCHITECTURES[machine]), KILL, (LOAD, 0, 0, NUMBER)]
    for name, numbers in (ALLOWED | RESTRICTED).items():
        number, rule = numbers[column], rules[name]
        if number is not None:
            instructions += [(EQUAL, 0, len(rule), number), *rule]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in (*instructions, DENY))
