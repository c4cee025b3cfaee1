"""`identify`, killed or interrupted anywhere and started again, gives the same files byte for byte."""

import random
import signal

import pytest

from tests.repeated_runs import RepeatedRuns
from tests.task_files import write_tasks
from trace_transfer.formats import read_any

INTERRUPTED = "interrupted; nothing half-written was left, and the same command goes on from what is finished\n"
CHECKPOINTS = ("/checkpoint/", "loss.csv")  # what there is only until a warm start is finished


@pytest.fixture(scope="module")
def all_runs(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("identify")
    tasks = write_tasks(directory, {"math": 8, "code": 6})
    out = directory / "out"
    runs = RepeatedRuns(
        ["identify", tiny("llama", num_hidden_layers=2), "--tasks", tasks, "--batch-size", 2, "--learning-rate", 1e-3,
         "--checkpoint-minutes", 0, "--ratio", 0.2, "--out", out],
        out,
    )  # fmt: skip
    yield runs
    runs.close()


@pytest.fixture
def runs(all_runs):
    all_runs.clear()
    return all_runs


def check_nothing_is_half(runs):
    """What has its final name is whole: it is as an undisturbed run leaves it, or belongs to a checkpoint."""
    for name, content in runs.files().items():
        if name.rpartition("/")[2].startswith(".") or any(part in name for part in CHECKPOINTS):
            continue
        assert content == runs.expected[name], name
        if name.endswith(".json"):
            read_any(runs.out / name)


def test_two_runs_write_the_same_bytes(runs):
    runs.check_it_finishes()
    runs.check_it_finishes()


def test_a_kill_in_a_write_of_fisher_information(runs):
    """Its half-written file lies in a directory of its own."""
    runs.check_it_finishes()
    (left := runs.out / "fisher" / "math" / ".fisher.json.left.part").write_text("{")
    (left.parent / "fisher.json").unlink()
    runs.check_it_finishes()


def test_a_kill_at_drawn_operations(runs):
    """Of a first run, and then without clearing in between: each run goes on where the one before was killed."""
    drawn = random.Random(0)
    runs.kill_at([drawn.randint(1, runs.undisturbed["events"])], check_nothing_is_half)
    runs.check_it_finishes()
    runs.clear()
    runs.kill_at([drawn.randint(5, 60) for _ in range(4)], check_nothing_is_half)
    runs.check_it_finishes()


def test_ctrl_c_leaves_nothing_by_halves(runs):
    drawn = random.Random(2)
    for _ in range(2):
        done = runs.run(signal=signal.SIGINT, after=drawn.uniform(0.2, runs.undisturbed["seconds"]))
        if done["returncode"] != 0:  # it may have been too late
            assert done["returncode"] == 130, done["stderr"]
            assert done["stdout"] == ""
            assert done["stderr"].endswith(INTERRUPTED)
            assert "Traceback" not in done["stderr"]
            assert not [name for name in runs.files() if name.endswith(".part")]
        check_nothing_is_half(runs)
    runs.check_it_finishes()


@pytest.mark.slow
def test_fifty_kills(runs):
    """At any operation on a file or moment, of first runs and of those that go on."""
    drawn = random.Random(3)
    killed = 0
    while killed < 50:
        if drawn.random() < 0.3:
            runs.clear()
        when = {"at_event": drawn.randint(1, runs.undisturbed["events"])}
        if drawn.random() < 0.3:
            when = {"after": drawn.uniform(0.2, runs.undisturbed["seconds"])}
        done = runs.run(signal=signal.SIGKILL, **when)
        killed += done["returncode"] == -signal.SIGKILL
        check_nothing_is_half(runs)
        if done["returncode"] == 0:
            assert runs.files() == runs.expected
            runs.clear()
    runs.check_it_finishes()
