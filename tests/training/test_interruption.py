"""`train`, killed or interrupted anywhere and started again, ends with the same weights, bit for bit."""

import json
import random
import signal

import pytest
from safetensors import safe_open

from tests.repeated_runs import RepeatedRuns
from tests.stream_files import write_stream
from trace_transfer.formats import read_any

WHILE_TRAINING = ("/checkpoint/", "loss.csv", "stream.json", "model/")


@pytest.fixture(scope="module")
def all_runs(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("train")
    model = tiny("llama", num_hidden_layers=2)
    out = directory / "out"
    runs = RepeatedRuns(
        ["train", model, "--stream", write_stream(directory / "stream", model, 2), "--batch-size", 4, "--epochs", 2,
         "--learning-rate", 1e-3, "--weight-decay", 0.1, "--zero", 0, "--checkpoint-minutes", 0, "--out", out],
        out,
    )  # fmt: skip
    yield runs
    runs.close()


@pytest.fixture
def runs(all_runs):
    all_runs.clear()
    return all_runs


def check_nothing_is_half(runs):
    """What has its final name is whole: it is as an undisturbed run leaves it, or grows while training."""
    for name, content in runs.files().items():
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if name.endswith(".safetensors"):
            with safe_open(runs.out / name, framework="pt") as file:
                assert file.keys()
        if name.endswith(".json"):
            json.loads(content)
        if not any(part in name for part in WHILE_TRAINING):
            assert content == runs.expected[name], name


def test_two_runs_write_the_same_bytes(runs):
    runs.check_it_finishes()
    runs.check_it_finishes()


def test_a_kill_at_drawn_operations(runs):
    """Of a first run, and then without clearing in between."""
    drawn = random.Random(0)
    runs.kill_at([drawn.randint(1, runs.undisturbed["events"])], check_nothing_is_half)
    runs.check_it_finishes()
    runs.clear()
    runs.kill_at([drawn.randint(10, 120) for _ in range(4)], check_nothing_is_half)
    runs.check_it_finishes()


def told_to_stop(runs, **when):
    done = runs.run(signal=signal.SIGTERM, **when)
    assert done["returncode"] == 0, done["stderr"]
    if "stopped by SIGTERM" not in done["stderr"]:  # it was too late
        return None
    assert done["stdout"] == ""
    check_nothing_is_half(runs)
    return done["stderr"]


def test_sigterm_saves_and_ends_with_0(runs):
    drawn, stops = random.Random(1), []
    for _ in range(4):
        said = told_to_stop(runs, at_event=drawn.randint(20, 150))
        if said is None:
            break
        stops.append(said)
    assert len(stops) >= 2
    assert any("after step" in said for said in stops)
    runs.check_it_finishes()


@pytest.mark.slow
def test_twenty_kills_at_drawn_moments(runs):
    """The same run, killed again and again within its first half, and from nothing."""
    drawn, kills = random.Random(4), 0
    while kills < 24:
        if drawn.random() < 0.3:
            runs.clear()
        killed = runs.run(signal=signal.SIGKILL, after=drawn.uniform(0.2, runs.undisturbed["seconds"]))
        check_nothing_is_half(runs)
        kills += killed["returncode"] != 0
        if killed["returncode"] == 0:
            assert runs.files() == runs.expected
            runs.clear()
    runs.check_it_finishes()
    print(f"killed {kills} times")


def test_the_record_says_what_was_done(runs):
    runs.check_it_finishes()
    record = read_any(runs.out / "stream.json")
    assert record.complete and [stage.label for stage in record.stages] == ["math", "code"]
