"""Processes that train together: they know who they are, end together, and the one that failed is heard."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from trace_transfer import launching
from trace_transfer.cli import INTERRUPTED, main
from trace_transfer.errors import UserError
from trace_transfer.launching import (
    Place,
    check_processes,
    excess_of,
    launcher_variables,
    place_among_ranks,
    run_processes,
)

ROOT = Path(__file__).parents[1]
RANK = "import os, signal, sys, time\nrank = int(os.environ['RANK'])\n"
SLEEP_OR_SAVE = """
from pathlib import Path
place = Path(sys.argv[1])
def save(number, frame):
    (place / f'saved-{rank}-{number}').touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
(place / f'ready-{rank}').write_text(str(os.getpid()))
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def run(code: str, *arguments: str, count: int = 2, **options: object) -> int:
    return run_processes(count, arguments, command=(sys.executable, "-c", RANK + code), **options)


@pytest.fixture
def launched(tmp_path):
    """`launched(code)`: a process that launches two, and where they write; once both are ready."""
    processes = []

    def start(code: str, grace: float = 5.0) -> subprocess.Popen[str]:
        call = f"run_processes(2, [{str(tmp_path)!r}], command=[sys.executable, '-c', {RANK + code!r}], grace={grace})"
        program = f"import sys\nfrom trace_transfer.launching import run_processes\nsys.exit({call})"
        process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        wait_for(lambda: len([file for file in tmp_path.glob("ready-*") if file.read_text()]) == 2)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_everyone_knows_who_it_is(tmp_path):
    code = "import json\nopen(f'{sys.argv[1]}/{rank}', 'w').write(json.dumps([sys.argv[2:], dict(os.environ)]))"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    assert run(code, str(tmp_path), "--x", "y", count=3, environment={**environment, "MINE": "1"}) == 0
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    ports = {one["MASTER_PORT"] for _, one in found}
    assert len(ports) == 1 and 1024 <= int(ports.pop()) < 65536
    threads = str(max(1, len(os.sched_getaffinity(0)) // 3))
    for rank, (arguments, one) in enumerate(found):
        assert arguments == ["--x", "y"]
        assert [one[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")] == [
            str(rank), str(rank), "3", "3", "127.0.0.1",
        ]  # fmt: skip
        assert (one["MINE"], one["OMP_NUM_THREADS"]) == ("1", threads)


def test_by_default_it_is_this_program(capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run_processes(2, ["--version"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("trace-transfer, version") and out.count("\n") == 1
    assert err == ""


def test_only_the_first_one_speaks(capfd):
    assert run("print(rank)\nprint(-rank, file=sys.stderr)") == 0
    assert capfd.readouterr() == ("0\n", "0\n")


def test_they_meet_as_ranks_of_torch(tmp_path):
    code = """
import torch
torch.distributed.init_process_group('gloo')
total = torch.tensor([float(rank + 1)])
torch.distributed.all_reduce(total)
open(f'{sys.argv[1]}/{rank}', 'w').write(str(total.item()))
torch.distributed.destroy_process_group()
"""
    assert run(code, str(tmp_path)) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["3.0", "3.0"]


def test_one_that_fails_ends_all_and_is_heard(capfd):
    start = time.monotonic()
    assert run("if rank == 1: sys.exit('no such thing')\ntime.sleep(60)", grace=3.0) == 1
    assert time.monotonic() - start < 10
    err = capfd.readouterr().err
    said, _, file = err.strip().rpartition("; what it said is in ")
    assert said == "rank 1 said:\nno such thing\nrank 1 ended with exit code 1"
    assert Path(file).read_text() == "no such thing\n"


def test_one_that_was_killed_is_named(capfd):
    assert run("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)", grace=0.5) == 137
    assert capfd.readouterr().err == "rank 1 ended with signal 9 (was it out of memory?)\n"


def test_the_cause_is_told_beside_what_followed_from_it(capfd):
    code = """
print(['connection lost', 'the cause'][rank], file=sys.stderr)
time.sleep(0.3 - 0.3 * rank)
sys.exit(1 + rank)
"""
    assert run(code) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[:-1] == ["connection lost", "rank 1 said:", "the cause"]
    assert lines[-1].startswith("rank 1 ended with exit code 2; what it said is in ")


def test_a_traceback_of_the_first_one_does_not_bury_the_cause(capfd):
    """Rank 0 fails because rank 1 was killed: the last line speaks of rank 1."""
    code = "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(0.5)\nraise RuntimeError('peer is gone')"
    assert run(code) == 1
    lines = capfd.readouterr().err.splitlines()
    assert "RuntimeError: peer is gone" in lines
    assert lines[-1] == "rank 1 ended with signal 9 (was it out of memory?)"


def test_nothing_is_kept_of_a_launch_that_ended_well(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run("print(rank)") == 0
    assert list(tmp_path.iterdir()) == []


def test_one_that_will_not_stop_is_killed(capfd):
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(0.5)\nif rank == 0: sys.exit(3)\ntime.sleep(60)"
    start = time.monotonic()
    assert run(code, grace=0.5) == 3
    assert time.monotonic() - start < 10


def test_sigterm_leaves_them_the_time_they_need(launched, tmp_path):
    code = SLEEP_OR_SAVE.replace("    (place / f'saved", "    time.sleep(1.0)\n    (place / f'saved")
    process = launched(code, grace=0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_ctrl_c(launched, tmp_path):
    process = launched(
        SLEEP_OR_SAVE.replace("time.sleep(60)", "try: time.sleep(60)\nexcept KeyboardInterrupt: exit(130)")
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.communicate() == ("", "")


def test_ctrl_c_on_one_that_will_not_hear(launched, tmp_path):
    process = launched("signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SLEEP_OR_SAVE, grace=0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert list(tmp_path.glob("saved-*")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_none_outlives_a_launcher_that_is_killed(launched, tmp_path):
    process = launched(SLEEP_OR_SAVE)
    pids = [int((tmp_path / f"ready-{rank}").read_text()) for rank in range(2)]
    assert not any(map(gone, pids))
    process.kill()
    wait_for(lambda: all(map(gone, pids)))


def test_more_than_the_machine_has(monkeypatch):
    monkeypatch.setattr(launching, "num_gpus", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    check_processes(3)
    assert excess_of(3) is None
    assert excess_of(4) == "one needs a core each, and this process may use 3"  # what a plan says, for another machine
    with pytest.raises(UserError, match=r"--processes 4: one needs a core each, and this process may use 3"):
        check_processes(4)
    monkeypatch.setattr(launching, "num_gpus", lambda: 2)
    check_processes(2)
    with pytest.raises(UserError, match=r"--processes 3: one needs a GPU each, and this machine has 2"):
        check_processes(3)
    with pytest.raises(UserError, match=r"--processes 0: at least 1"):
        check_processes(0)
    for name, value in (WHO | {"RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"--processes 2: a launcher .* started this process already \(as 1 of 2\)"):
        check_processes(2)


WHO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_who_this_process_is():
    assert place_among_ranks({}) == Place(0, 1, 0, launched=False)
    assert (
        place_among_ranks({"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"}) == Place()
    )  # some clusters always set them
    assert place_among_ranks(WHO | {"RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == Place(1, 2, 1, True)


TASK = {
    "SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "gpu[03-05,9],head",
}  # fmt: skip
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "123456"}


def test_a_task_of_srun(monkeypatch):
    """As `srun env` shows it (SLURM 22.05). In a batch script and in a shell of one task there is none."""
    assert place_among_ranks(TASK) == Place(9, 16, 1, launched=True)
    found = launcher_variables(TASK)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("gpu03", str(20000 + 123458 % 20000))
    assert launcher_variables(TASK | {"MASTER_PORT": "7"})["MASTER_PORT"] == "7"
    assert place_among_ranks(TASK | {"SLURM_GPUS_PER_TASK": "1"}).local_rank == 0
    assert place_among_ranks(BATCH_SCRIPT) == place_among_ranks(TASK | {"SLURM_STEP_NUM_TASKS": "1"}) == Place()
    assert place_among_ranks(TASK | WHO) == Place(0, 2, 0, launched=True)
    for nodes, first in (("n1", "n1"), ("a,b", "a"), ("rack[1-2]node[07,9]", "rack1node07"), ("x[2]", "x2")):
        assert launcher_variables(TASK | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"--processes 2: a launcher .* started this process already \(as 9 of 16\)"):
        check_processes(2)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"RANK": "2"}, "RANK is 2, expected less than WORLD_SIZE, which is 2"),
        ({"RANK": "-1"}, "RANK is -1, expected 0 or more"),
        ({"RANK": None}, "RANK is not set, and WORLD_SIZE is"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0, expected 1 or more"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set, and RANK is"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK is 2, expected less than WORLD_SIZE, which is 2"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set, and RANK and WORLD_SIZE are"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT is 65536, expected 65535 or less"),
    ],
)
def test_what_a_launcher_cannot_have_meant(changes, problem):
    environment = {name: value for name, value in (WHO | changes).items() if value is not None}
    with pytest.raises(UserError, match=r"what a launcher has set cannot be used.* for one process alone:\n") as raised:
        place_among_ranks(environment)
    assert problem in str(raised.value)


@pytest.mark.parametrize("command", ["train", "warm-start", "identify"])
def test_a_command_refuses_it_before_anything(command, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    option = "--stream" if command == "train" else "--tasks"
    done = CliRunner().invoke(main, [command, "no-model", option, "none.yaml", "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "RANK is 5, expected less than WORLD_SIZE, which is 2" in done.stderr
    assert "MASTER_ADDR is not set" in done.stderr and not (tmp_path / "out").exists()


MEET = """
import os, pathlib, sys
import click
from trace_transfer.cli import Commands
from trace_transfer.engine import distributed as meeting
endable = meeting.endable
def noted(call, what):
    pathlib.Path(sys.argv[1]).touch()
    return endable(call, what)
meeting.endable = noted
def body():
    with meeting.open_ranks():
        print('met')
class One(Commands):
    def get_command(self, ctx, name):
        return click.Command('meet', callback=body)
One('main')(['meet'])
"""


@pytest.mark.parametrize("rank, number, code", [("0", signal.SIGTERM, 0), ("1", signal.SIGINT, 130)])
def test_a_wait_for_others_that_never_come_is_ended_by_a_signal(tmp_path, rank, number, code):
    environment = {**os.environ, **WHO, "RANK": rank, "MASTER_PORT": str(launching._free_port())}
    process = subprocess.Popen(
        [sys.executable, "-c", MEET, str(tmp_path / "waits")], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for((tmp_path / "waits").is_file, 120)
        time.sleep(1.0)  # until it waits inside the library
        start = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (code, "")
    assert time.monotonic() - start < 20
    stopped = f"stopped by SIGTERM while it waited for the other processes (rank {rank} of 2"
    assert err.startswith(INTERRUPTED if number == signal.SIGINT else stopped) and err.count("\n") == 1
