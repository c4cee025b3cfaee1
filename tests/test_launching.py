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

from tests.commands import refused
from trace_transfer import launching
from trace_transfer.cli import INTERRUPTED
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


def test_only_the_first_one_speaks_and_nothing_is_kept_of_a_good_end(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run("print(rank)\nprint(-rank, file=sys.stderr)") == 0
    assert capfd.readouterr() == ("0\n", "0\n")
    monkeypatch.chdir(ROOT)
    assert run_processes(2, ["--version"]) == 0  # by default it is this program
    out, err = capfd.readouterr()
    assert out.startswith("trace-transfer, version") and out.count("\n") == 1 and err == ""
    assert list(tmp_path.iterdir()) == []


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KEPT = "; what it said is in "


@pytest.mark.parametrize(
    "code, ended, said",
    [
        ("if rank == 1: sys.exit('no such thing')\ntime.sleep(60)", 1,
         ["rank 1 said:", "no such thing", f"rank 1 ended with exit code 1{KEPT}"]),
        (f"if rank == 1: {KILL}\ntime.sleep(60)", 137, ["rank 1 ended with signal 9 (was it out of memory?)"]),
        # A traceback of rank 0, which fails because rank 1 was killed, does not bury the cause.
        (f"{KILL} if rank else time.sleep(1.5)\nsys.exit('peer is gone')", 1,
         ["peer is gone", "rank 1 ended with signal 9 (was it out of memory?)"]),
        # One that will not stop is killed.
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(0.5)\nif rank == 0: sys.exit(3)\ntime.sleep(60)", 3,
         ["rank 0 ended with exit code 3"]),
    ],
)  # fmt: skip
def test_one_that_fails_ends_all_and_is_heard(capfd, code, ended, said):
    start = time.monotonic()
    assert run(code, grace=3.0) == ended
    assert time.monotonic() - start < 20
    found, kept, file = capfd.readouterr().err.strip().partition(KEPT)
    assert (found + kept).splitlines() == said
    assert not kept or Path(file).read_text().strip() == said[-2]


@pytest.mark.parametrize(
    "code, grace, number, ended, saved",
    [
        # SIGTERM leaves them the time that they need.
        (SLEEP_OR_SAVE.replace("    (place / f'saved", "    time.sleep(1.0)\n    (place / f'saved"), 0.1,
         signal.SIGTERM, 0, 2),
        (SLEEP_OR_SAVE.replace("time.sleep(60)", "try: time.sleep(60)\nexcept KeyboardInterrupt: exit(130)"), 5.0,
         signal.SIGINT, 130, 0),
        # Ctrl-C on one that will not hear.
        ("signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + SLEEP_OR_SAVE, 0.5, signal.SIGINT, 130, 0),
    ],
)  # fmt: skip
def test_signals_are_handed_on(launched, tmp_path, code, grace, number, ended, saved):
    process = launched(code, grace)
    process.send_signal(number)
    assert process.wait(20) == ended and process.communicate() == ("", "")
    assert len(list(tmp_path.glob("saved-*"))) == saved


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_none_outlives_a_launcher_that_is_killed(launched, tmp_path):
    process = launched(SLEEP_OR_SAVE)
    pids = [int((tmp_path / f"ready-{rank}").read_text()) for rank in range(2)]
    assert not any(map(gone, pids))
    process.kill()
    wait_for(lambda: all(map(gone, pids)))


WHO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_more_than_the_machine_has(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    for gpus, most, told in (
        (0, 3, "one needs a core each, and this process may use 3"),
        (2, 2, "one needs a GPU each, and this machine has 2"),
    ):
        monkeypatch.setattr(launching, "num_gpus", lambda gpus=gpus: gpus)
        check_processes(most)
        assert excess_of(most) is None and excess_of(most + 1) == told
        with pytest.raises(UserError, match=f"--processes {most + 1}: {told}"):
            check_processes(most + 1)


TASK = {
    "SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "gpu[03-05,9],head",
}  # fmt: skip
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "123456"}


def test_who_this_process_is():
    """As `srun env` shows it (SLURM 22.05). In a batch script and in a shell of one task there is none."""
    assert place_among_ranks({}) == Place(0, 1, 0, launched=False)
    assert place_among_ranks({"MASTER_ADDR": "node-1", "MASTER_PORT": "29500"}) == Place()  # some clusters set them
    assert place_among_ranks(WHO | {"RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == Place(1, 2, 1, True)
    assert place_among_ranks(TASK) == Place(9, 16, 1, launched=True)
    found = launcher_variables(TASK)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("gpu03", str(20000 + 123458 % 20000))
    assert launcher_variables(TASK | {"MASTER_PORT": "7"})["MASTER_PORT"] == "7"
    assert place_among_ranks(TASK | {"SLURM_GPUS_PER_TASK": "1"}).local_rank == 0
    assert place_among_ranks(BATCH_SCRIPT) == place_among_ranks(TASK | {"SLURM_STEP_NUM_TASKS": "1"}) == Place()
    assert place_among_ranks(TASK | WHO) == Place(0, 2, 0, launched=True)
    for nodes, first in (("n1", "n1"), ("a,b", "a"), ("rack[1-2]node[07,9]", "rack1node07"), ("x[2]", "x2")):
        assert launcher_variables(TASK | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"RANK": "2"}, "RANK is 2, WORLD_SIZE is 2,"), ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is not set"), ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
    ],
)  # fmt: skip
def test_what_a_launcher_cannot_have_meant(changes, problem):
    with pytest.raises(UserError, match="what a launcher has set cannot be used: ") as raised:
        place_among_ranks(WHO | changes)
    assert problem in str(raised.value)


def test_a_command_refuses_it_before_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command, option in (("train", "--stream"), ("warm-start", "--tasks"), ("identify", "--tasks")):
        told = refused(command, "no-model", option, "none.yaml", "--out", tmp_path / "out")
        assert "RANK is 5, WORLD_SIZE is 2" in told and "MASTER_ADDR is not set" in told
        assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize(
    "rank, number, code", [("0", signal.SIGTERM, 0), pytest.param("1", signal.SIGINT, 130, marks=pytest.mark.slow)]
)
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
