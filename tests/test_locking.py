"""One process at a time in an output directory, on any file system, whatever became of the one before."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trace_transfer.errors import UserError
from trace_transfer.files import LOCK, held

ROOT = Path(__file__).parents[1]
HOLD = """
import os, sys, time, fcntl
if sys.argv[2] == "without":
    def none(*_): raise OSError(38, "Function not implemented")
    fcntl.flock = none
from trace_transfer.files import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def refuse(*_) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.fixture(params=["with flock", "without"])
def flock(request, monkeypatch) -> str:
    """A file system that has such locks, and one that has none (Lustre as it is mounted commonly)."""
    if request.param == "without":
        monkeypatch.setattr(fcntl, "flock", refuse)
    return request.param


@pytest.fixture
def other(flock):
    """`other(directory)`: another process that holds it."""
    processes = []

    def start(directory: Path, code: str = HOLD) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(directory), flock]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_nothing_is_left_and_it_can_be_held_again(flock, tmp_path):
    for _ in range(2):
        with held(tmp_path / "new" / "out") as directory:
            assert directory == tmp_path / "new" / "out" and (directory / LOCK).is_file()
        assert list(directory.iterdir()) == []


def test_the_second_is_told_who_is_there_and_a_killed_process_holds_nothing(other, tmp_path):
    process = other(tmp_path)
    who = rf"process {process.pid} on {re.escape(socket.gethostname())}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    told, start = rf"another process is at work here \({who}\); wait for it, stop it, or name", time.monotonic()
    with pytest.raises(UserError, match=told), held(tmp_path):
        pass
    assert time.monotonic() - start < 5 and (tmp_path / LOCK).is_file()  # still theirs
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / LOCK).is_file()
    with held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    """Whether a process of another machine still runs cannot be known from here: the message says what to remove."""
    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / LOCK).write_text("12345\nnode-17\n")
    told = rf"process 12345 on node-17.*where that process is gone, remove .*{LOCK}"
    with pytest.raises(UserError, match=told), held(tmp_path):
        pass
    (tmp_path / LOCK).unlink()
    with held(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()}\n{socket.gethostname()}")


def test_it_is_waited_for(tmp_path):
    taken = threading.Event()

    def hold():
        with held(tmp_path, name=".lock"):
            taken.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    with held(tmp_path, patience=20, name=".lock"):
        assert not (tmp_path / LOCK).exists() and (tmp_path / ".lock").is_file()
    thread.join()


def test_what_is_put_there_whole_is_held_beside_it(tmp_path):
    out = tmp_path / "model"
    with held(out, replaced=True):
        assert not out.exists() and [file.name for file in tmp_path.iterdir()] == [".model.lock"]
        with pytest.raises(UserError, match=f"{out}: another process is at work here"), held(out, replaced=True):
            pass
        with held(tmp_path / "other", replaced=True):
            pass
    assert list(tmp_path.iterdir()) == []


def test_the_ranks_of_a_launch_share_one(tmp_path, monkeypatch):
    who = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    with held(tmp_path, shared=True):
        for name, value in who.items():
            monkeypatch.setenv(name, value)
        with held(tmp_path, shared=True) as directory:
            assert directory == tmp_path
        with pytest.raises(UserError, match="another process is at work here"), held(tmp_path):
            pass  # a command that is not launched as several


def test_what_runs_in_a_process_that_was_forked_holds_nothing(other, tmp_path):
    """A child that outlives the holder (a worker that loads data) does not keep the lock."""
    forks = 'child = os.fork()\n    if child: print("held", child, sep="\\n", flush=True)'
    process = other(tmp_path, HOLD.replace('print("held", flush=True)', forks))
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        with held(tmp_path, patience=5):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
