"""Generated code: what it can do, what it cannot, and that the test of it can fail."""

import contextlib
import ctypes
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.evaluation.hostile import ATTACKS, SECRET, WORK_UNCONFINED, program
from trace_transfer.evaluation.paper_tasks import LIMITS
from trace_transfer.evaluation.sandbox import programs
from trace_transfer.evaluation.sandbox.programs import (
    ALLOWED,
    ARCHITECTURES,
    RESTRICTED,
    IsolationError,
    Limits,
    Outcome,
    program_filter,
    run_program,
)

LANDLOCK_VERSION = ctypes.CDLL(None).syscall(444, None, 0, 1) if sys.platform == "linux" else -1
needs_landlock = pytest.mark.skipif(LANDLOCK_VERSION < 1, reason="this system has no Landlock")
SHORT = Limits(wall_seconds=1, cpu_seconds=1, memory_bytes=1 << 29)


@dataclass(frozen=True)
class Surroundings:
    """What a program may not touch, and the directory in which the working directories are made."""

    secret: Path
    victim: Path
    work: Path
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket

    @property
    def places(self) -> dict[str, object]:
        port, name = self.tcp.getsockname()[1], self.unix.getsockname()
        return {"secret": self.secret, "victim": self.victim, "port": port, "socket": name}

    def state(self) -> tuple[object, ...]:
        stat = self.secret.stat()
        files = {path.name: path.read_text() for path in self.victim.iterdir()}
        return self.secret.read_text(), stat.st_mode, stat.st_mtime_ns, stat.st_uid, stat.st_nlink, files

    def contacts(self) -> list[str]:
        """Who called."""
        found = []
        for name, listener in (("tcp", self.tcp), ("udp", self.udp), ("unix", self.unix)):
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                listener.recv(9) if name == "udp" else listener.accept()[0].close()
                found.append(name)
        return found


def run_to_end(source: str, limits: Limits = LIMITS) -> Outcome:
    """Passes if the program, which is not one that fakes, ends."""
    ended = "\ndef ended():\n    return True\n"
    return run_program(source + ended, "assert __program__.ended() is True", limits)


@pytest.fixture
def surroundings(monkeypatch):
    # A short path: the name of a Unix socket has at most 107 characters.
    with tempfile.TemporaryDirectory() as root:
        home = Path(root, "home")
        (home / "victim").mkdir(parents=True)
        (home / "victim" / "file").write_text("kept")
        (home / "secret").write_text(SECRET)
        work = Path(root, "work")
        work.mkdir()
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("A_TOKEN", SECRET)
        monkeypatch.setattr(tempfile, "tempdir", str(work))
        # Under a name of its own, so that what it leaves behind would be found among the processes.
        monkeypatch.setattr(programs, "TRIAL", Path(shutil.copy(programs.TRIAL, root)))
        with (
            socket.create_server(("127.0.0.1", 0)) as tcp,
            socket.socket(type=socket.SOCK_DGRAM) as udp,
            socket.socket(socket.AF_UNIX) as unix,
        ):
            udp.bind(tcp.getsockname())
            unix.bind(f"{root}/socket")
            unix.listen()
            yield Surroundings(home / "secret", home / "victim", work, tcp, udp, unix)


def processes_naming(text: str) -> list[str]:
    """Command lines in which a text stands."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if text in line]


@needs_landlock
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_harms_nothing_and_fails(surroundings, name):
    before, begun = surroundings.state(), time.monotonic()
    outcome = run_to_end(program(name, **surroundings.places), SHORT)
    assert time.monotonic() - begun < programs.START_SECONDS + SHORT.wall_seconds
    assert outcome.status != "passed"
    assert outcome.reason and SECRET not in outcome.stderr
    assert surroundings.state() == before
    assert surroundings.contacts() == []
    assert list(surroundings.work.iterdir()) == []
    assert processes_naming(str(programs.TRIAL)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="attacks on Linux")
@pytest.mark.parametrize("name", WORK_UNCONFINED)
def test_the_same_attack_works_where_nothing_confines_it(surroundings, name):
    command = [sys.executable, "-c", program(name, **surroundings.places)]
    done = subprocess.run(command, cwd=surroundings.work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_landlock
@pytest.mark.parametrize(
    "source",
    [
        "",
        "import collections, hashlib, heapq, itertools, json, math, random, re, typing\nassert sum(range(5)) == 10",
        "import numpy\nassert (numpy.eye(2) @ numpy.eye(2)).sum() == 2",
        "import os, tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'a')\n"
        "with open('a', 'w') as f: f.write('a')\nassert open('a').read() == 'a'\nassert 'a' in os.listdir()",
        "if __name__ == '__main__': raise SystemExit('no script')",
        "print('x' * 1000)\nprint('ü')",
        "import sys\nsys.setrecursionlimit(10000)\nf = lambda n: n and f(n - 1)\nf(5000)",
    ],
)
def test_an_honest_program_passes(source):
    outcome = run_to_end(source)
    assert (outcome.status, outcome.reason, outcome.stderr) == ("passed", "", "")


@needs_landlock
@pytest.mark.parametrize(
    ("source", "limits"),
    [
        ("b = bytearray(300 << 20)", Limits(memory_bytes=200 << 20)),
        ("open('a', 'wb').write(bytes(3 << 20))", Limits(disk_bytes=2 << 20)),
        ("files = [open(str(i), 'w') for i in range(20)]\nimport time\ntime.sleep(1)", Limits(num_files=10)),
        ("f = [open('/dev/null') for _ in range(30)]", Limits(open_files=20)),
        ("import time\ntime.sleep(1)", Limits(wall_seconds=0.5)),
        ("import time\nt = time.process_time()\nwhile time.process_time() < t + 1.2: pass", Limits(cpu_seconds=1)),
        (
            "import sys, time\nsys.stderr.write('x' * 3000)\nsys.stderr.flush()\ntime.sleep(1)",
            Limits(output_bytes=2000),
        ),
    ],
    ids=["memory", "disk", "files", "open files", "wall", "cpu", "output"],
)
def test_each_limit_holds_and_is_what_stops_it(source, limits):
    assert not run_to_end(source, limits).passed
    assert run_to_end(source).passed


NO_LANDLOCK = ("CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444,", "CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 9999,")
NO_SECCOMP = ('call("prctl", PR_SET_SECCOMP, 2,', 'call("prctl", PR_SET_SECCOMP, 77,')
NO_START = ("import resource\n", "import no_such_module\n")


@needs_landlock
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (NO_LANDLOCK, r"- Landlock, in Linux since 5\.13 \(syscall: Function not implemented\)"),
        (NO_SECCOMP, r"- seccomp filters \(prctl: Invalid argument\)"),
        (NO_START, "No module named 'no_such_module'"),
    ],
    ids=["landlock", "seccomp", "python"],
)
def test_without_a_layer_of_the_minimum_nothing_runs(monkeypatch, tmp_path, change, message):
    text = programs.TRIAL.read_text()
    assert text.count(change[0]) == 1
    script = tmp_path / "trial.py"
    script.write_text(text.replace(*change))
    monkeypatch.setattr(programs, "TRIAL", script)
    mark = tmp_path / "ran"
    with pytest.raises(IsolationError, match=r"(?s)cannot be run safely on this system, and was not run.*" + message):
        run_to_end(f"open({str(mark)!r}, 'w')")
    assert not mark.exists()


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_other_systems_are_refused(monkeypatch, system, machine):
    monkeypatch.setattr(programs.sys, "platform", system)
    monkeypatch.setattr(programs.platform, "machine", lambda: machine)
    with pytest.raises(IsolationError, match=f"64-bit Linux only .x86_64, aarch64., found {system} on {machine}"):
        run_to_end("x = 1")


# The kernel's own tables, where the C library's headers are installed.
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_of_system_calls_are_the_kernels(machine):
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers here")
    text = HEADERS[machine].read_text()
    kernel = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", text)}
    kernel |= {"newfstatat": kernel["fstatat"]} if machine == "aarch64" else {}
    column = list(ARCHITECTURES).index(machine)
    ours = {name: numbers[column] for name, numbers in (ALLOWED | RESTRICTED).items()}
    # What is None in our table is absent or superseded on that architecture.
    assert {name: number for name, number in ours.items() if number is not None} == {
        name: kernel[name] for name, number in ours.items() if number is not None
    }
    assert [name for name, number in ours.items() if number is None and machine == "x86_64"] == []


def verdict(filter_bytes: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> str:
    """A slow interpreter of the filter, one instruction after the other: what the kernel would answer."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments, *(0,) * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("=HBBI", filter_bytes))
    position = accumulator = 0
    while True:
        operation, if_true, if_false, operand = instructions[position]
        position += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("=I", data, operand)[0]
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x15:
            position += if_true if accumulator == operand else if_false
        else:
            assert operation == 0x06
            return {0x7FFF0000: "allow", 0x00050001: "refuse", 0x80000000: "kill"}[operand]


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_allows_what_is_listed_and_nothing_else(machine):
    column, pid = list(ARCHITECTURES).index(machine), 4321
    made = program_filter(pid, machine)

    def asked(call: str | int, *arguments: int) -> str:
        number = call if isinstance(call, int) else RESTRICTED[call][column]
        assert number is not None
        return verdict(made, ARCHITECTURES[machine], number, arguments)

    allowed = {numbers[column] for numbers in ALLOWED.values()} - {None}
    restricted = {numbers[column] for numbers in RESTRICTED.values()} - {None}
    for number in set(range(600)) - restricted:
        assert asked(number) == ("allow" if number in allowed else "refuse"), number
    assert asked(0x40000000 + 1) == "refuse"  # x32
    assert verdict(made, 0x40000003, 1) == "kill"  # 32-bit x86
    for call in ("kill", "tgkill"):
        assert [asked(call, who) for who in (pid, 1, 0, 2**32 - 1, pid + 1)] == ["allow", *["refuse"] * 4]
    for command, answer in ((0, "allow"), (7, "allow"), (1030, "allow"), (8, "refuse"), (10, "refuse"), (15, "refuse")):
        assert asked("fcntl", 3, command) == answer
    for command, answer in ((0x5401, "allow"), (0x5412, "refuse"), (0x8901, "refuse")):
        assert asked("ioctl", 3, command) == answer
    assert [asked("prlimit64", 0, 9, new) for new in (0, 1, 1 << 32)] == ["allow", "refuse", "refuse"]
    for flags in range(4):
        assert asked("openat", 0, 0, flags) == ("refuse" if flags == 3 else "allow")
        assert asked("openat", 0, 0, flags | os.O_TRUNC) == ("allow" if flags in (1, 2) else "refuse")
        assert asked("openat", 0, 0, flags | os.O_CREAT | 0o2000000) == ("refuse" if flags == 3 else "allow")
