"""Generated code: what it can do, what it cannot, and that the test of it can fail."""

import ctypes
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.evaluation.hostile import ATTACKS, SECRET
from trace_transfer.evaluation.sandbox import programs
from trace_transfer.evaluation.sandbox.programs import (
    DEFAULT_LIMITS,
    IsolationError,
    Limits,
    Outcome,
    require_isolation,
    run_program,
    run_programs,
)
from trace_transfer.evaluation.sandbox.system_calls import ALLOW, ALLOWED, ARCHITECTURES, RESTRICTED, program_filter

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
        for name, listener, receive in (
            ("tcp", self.tcp, lambda: self.tcp.accept()[0].close()),
            ("udp", self.udp, lambda: self.udp.recv(9)),
            ("unix", self.unix, lambda: self.unix.accept()[0].close()),
        ):
            listener.setblocking(False)
            try:
                receive()
                found.append(name)
            except BlockingIOError:
                continue
        return found


def copied(directory: Path) -> Path:
    """The script of the two processes, with what it imports."""
    shutil.copy(programs.TRIAL.with_name("confinement.py"), directory)
    return Path(shutil.copy(programs.TRIAL, directory))


def run_to_end(source: str, limits: Limits = DEFAULT_LIMITS, namespaces: bool = True) -> Outcome:
    """Passes if the program, which is not one that fakes, ends."""
    ended = "\ndef ended():\n    return True\n"
    return run_program(source + ended, "assert __program__.ended() is True", limits, namespaces=namespaces)


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
        monkeypatch.setattr(programs, "TRIAL", copied(Path(root)))
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
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text in line:
            found.append(line)
    return found


@needs_landlock
@pytest.mark.parametrize(
    ("name", "namespaces"),
    [(name, False) for name in ATTACKS]
    + [(name, True) for name, attack in ATTACKS.items() if not attack.needs_stopping],
)
def test_an_attack_harms_nothing_and_fails(surroundings, name, namespaces):
    before = surroundings.state()
    outcome = run_to_end(ATTACKS[name].program(**surroundings.places), SHORT, namespaces=namespaces)
    assert outcome.status != "passed"
    assert outcome.reason
    assert SECRET not in outcome.stderr
    assert surroundings.state() == before
    assert surroundings.contacts() == []
    assert list(surroundings.work.iterdir()) == []
    assert processes_naming(str(programs.TRIAL)) == []
    assert outcome.seconds < SHORT.wall_seconds + 2


@pytest.mark.skipif(sys.platform != "linux", reason="attacks on Linux")
@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.works_unconfined])
def test_the_same_attack_works_where_nothing_confines_it(surroundings, name):
    program = ATTACKS[name].program(**surroundings.places)
    done = subprocess.run([sys.executable, "-c", program], cwd=surroundings.work, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


STATUSES = {
    "endless loop": ("timed out", "used more than 1 s of processor time"),
    "sleep": ("timed out", "ran for more than 2 s"),
    "print errors forever": ("killed", "wrote more than 1,048,576 bytes to standard error"),
    "report forever": ("failed", "its test failed"),
    "read address 0": ("killed", "ended by signal 11"),
    "overflow the stack": ("killed", "ended by signal 11"),
    "ten gigabytes": ("failed", "ended with code 1"),
    "fork": ("failed", "ended with code 1"),
    "os._exit(0)": ("failed", "ended with code 0 before the end of its test"),
}


@needs_landlock
@pytest.mark.parametrize("name", STATUSES)
def test_how_it_failed_is_said(surroundings, name):
    limits = Limits(wall_seconds=2 if name == "sleep" else 30, cpu_seconds=1)
    outcome = run_to_end(ATTACKS[name].program(**surroundings.places), limits)
    assert (outcome.status, outcome.reason) == STATUSES[name], outcome


@needs_landlock
@pytest.mark.parametrize("namespaces", [True, False], ids=["all-layers", "minimum"])
@pytest.mark.parametrize(
    "source",
    [
        "",
        "assert sum(range(5)) == 10",
        "import collections, dataclasses, decimal, heapq, itertools, json, math, random, re, typing, unittest",
        "import hashlib\nassert hashlib.md5(b'Hello world').hexdigest().startswith('3e25')",
        "import numpy\nassert (numpy.eye(2) @ numpy.eye(2)).sum() == 2",
        "import os, tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'a')\n"
        "with open('a', 'w') as f: f.write('a')\nassert open('a').read() == 'a'\nassert 'a' in os.listdir()",
        "import zoneinfo, locale, time\ntime.localtime()",
        "import os\nassert os.environ['HOME'] == os.getcwd() and not os.listdir()",
        "import signal\nsignal.raise_signal(signal.SIGCHLD)\nsignal.alarm(0)",
        "try: open('/etc/passwd')\nexcept PermissionError: pass",
        "if __name__ == '__main__': raise SystemExit('no script')",
        "print('x' * 1000)\nprint('ü')",
        "import sys\nsys.setrecursionlimit(10000)\nf = lambda n: n and f(n - 1)\nf(5000)",
        "import os\nassert os.read(0, 1) == b''",
    ],
)
def test_an_honest_program_passes(source, namespaces):
    outcome = run_to_end(source, namespaces=namespaces)
    assert (outcome.status, outcome.reason, outcome.stderr) == ("passed", "", "")


@needs_landlock
def test_an_error_is_shown_by_its_last_lines():
    outcome = run_to_end("import sys\nfor i in range(99): print(i, file=sys.stderr)\nassert 1 == 2, 'not equal'")
    assert outcome.status == "failed"
    assert outcome.reason == "ended with code 1"
    assert outcome.stderr.endswith("AssertionError: not equal")
    assert len(outcome.stderr.splitlines()) == programs.MAX_LINES


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
@pytest.mark.parametrize("namespaces", [True, False], ids=["all-layers", "minimum"])
def test_each_limit_holds_and_is_what_stops_it(source, limits, namespaces):
    assert not run_to_end(source, limits, namespaces=namespaces).passed
    assert run_to_end(source, namespaces=namespaces).passed


@needs_landlock
def test_many_programs_keep_their_order():
    sources = [f"x = lambda: {i}" for i in range(12)]
    outcomes = run_programs(sources, "assert __program__.x() % 3", jobs=4)
    assert [outcome.passed for outcome in outcomes] == [i % 3 != 0 for i in range(12)]
    assert run_programs([], "") == []


@needs_landlock
def test_isolation_is_tried_out():
    layers = require_isolation()
    assert layers[-3:] == ("no capabilities", f"landlock {LANDLOCK_VERSION}", "seccomp")


@needs_landlock
def test_a_filter_that_lets_everything_through_is_found_out(monkeypatch):
    monkeypatch.setattr(programs, "program_filter", lambda pid, machine: struct.pack("=HBBI", *ALLOW))
    with pytest.raises(IsolationError, match=r"(?s)trial program was failed.*open_socket.*start_process.*start_thread"):
        require_isolation()


@needs_landlock
def test_a_secret_that_could_be_read_is_found_out(monkeypatch):
    monkeypatch.setattr(programs, "_readable", lambda site_packages: ["/"])
    with pytest.raises(IsolationError, match=r"(?s)trial program was failed.*'read', 'list_directory'"):
        require_isolation()


def crippled(tmp_path: Path, old: str, new: str) -> Path:
    """The children's script with a change that makes one of its layers fail."""
    script = copied(tmp_path)
    confinement = script.with_name("confinement.py")
    text = confinement.read_text()
    assert text.count(old) == 1
    confinement.write_text(text.replace(old, new))
    return script


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
    monkeypatch.setattr(programs, "TRIAL", crippled(tmp_path, *change))
    mark = tmp_path / "ran"
    with pytest.raises(IsolationError, match=r"(?s)cannot be run safely on this system, and was not run.*" + message):
        run_to_end(f"open({str(mark)!r}, 'w')")
    assert not mark.exists()
    with pytest.raises(IsolationError, match="cannot be run safely"):
        require_isolation()


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("linux", "riscv64"), ("win32", "AMD64")])
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
