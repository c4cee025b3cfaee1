"""A command that is killed or interrupted leaves no file by halves; the same command then ends with the same bytes."""

import json
import os
import random
import shutil
import signal

import pytest

from tests.core_files import write_core
from tests.interrupted_runs import RepeatedRuns, Server
from tests.stream_files import write_stream
from tests.task_files import write_tasks
from tests.tiny_models import TEXTS
from trace_transfer.formats import read_any

KILLS, INTERRUPTIONS = 4, 2


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


def runs_of_map(server, tiny, directory):
    """With a cache."""
    probe = directory / "texts.jsonl"
    probe.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    source, cache = tiny("llama"), directory / "cache"
    given = {
        "src": source, "dst": tiny("qwen3"), "probe": probe, "out": directory / "out", "cache": cache,
        "core": write_core(source, directory / "math.core.json"),
    }  # fmt: skip
    arguments = ["map", *(part for name, value in given.items() for part in (f"--{name}", value))]
    return RepeatedRuns(server, arguments, directory / "out", [cache])


def runs_of_identify(server, tiny, directory):
    arguments = [
        "identify", tiny("llama", num_hidden_layers=2), "--tasks", write_tasks(directory, {"math": 8, "code": 6}),
        "--batch-size", 2, "--learning-rate", 1e-3, "--checkpoint-minutes", 0, "--ratio", 0.2,
        "--out", directory / "out",
    ]  # fmt: skip
    return RepeatedRuns(server, arguments, directory / "out", growing=("checkpoint/", "loss.csv"))


def runs_of_train(server, tiny, directory):
    model = tiny("llama", num_hidden_layers=2)
    arguments = [
        "train", model, "--stream", write_stream(directory / "stream", model, 2), "--batch-size", 4, "--epochs", 2,
        "--learning-rate", 1e-3, "--weight-decay", 0.1, "--zero", 0, "--checkpoint-minutes", 0,
        "--out", directory / "out",
    ]  # fmt: skip
    growing = ("checkpoint/", "loss.csv", "stream.json", "model/")
    return RepeatedRuns(server, arguments, directory / "out", growing=growing)


COMMANDS = {"map": runs_of_map, "identify": runs_of_identify, "train": runs_of_train}


@pytest.fixture(scope="module")
def prepared(server, tiny, tmp_path_factory):
    """`prepared(command)`: its runs, from nothing."""
    made = {}

    def get(command):
        if command not in made:
            made[command] = COMMANDS[command](server, tiny, tmp_path_factory.mktemp(command))
        made[command].clear()
        return made[command]

    return get


# ---- every command


@pytest.mark.parametrize("command", COMMANDS)
def test_kills_between_operations_on_files(prepared, command):
    """Of a first run, and of runs that go on where the one before was killed; then the same bytes."""
    runs, drawn = prepared(command), random.Random(command)
    for number in range(KILLS):
        if number < KILLS // 2:
            runs.clear()
        if not runs.kill_at(drawn.randint(1, runs.undisturbed["events"])):
            assert number >= KILLS // 2  # what is finished by now needs fewer operations
            runs.clear()
    runs.check_it_finishes()


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c(prepared, command):
    runs, drawn = prepared(command), random.Random(command)
    for _ in range(INTERRUPTIONS):
        runs.clear()
        runs.interrupt(at_event=drawn.randint(1, runs.undisturbed["events"] - 1))
    runs.interrupt(after=drawn.uniform(0.1, runs.undisturbed["seconds"]))
    runs.check_it_finishes()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_fifty_kills(prepared, command):
    """At any operation on files and at any moment, of first runs and of those that go on."""
    runs, drawn, killed = prepared(command), random.Random(3), 0
    while killed < 50:
        if drawn.random() < 0.3:
            runs.clear()
        at = {"at_event": drawn.randint(1, runs.undisturbed["events"])}
        after = {"after": drawn.uniform(0.03, runs.undisturbed["seconds"])}
        done = runs.run(signal=drawn.choice([signal.SIGKILL, signal.SIGINT]), **drawn.choice([at, after]))
        killed += done["returncode"] != 0
        runs.check_nothing_is_half()
        if done["returncode"] == 0:
            assert runs.files() == runs.expected
            runs.clear()
    runs.check_it_finishes()


# ---- single commands


def test_sigterm_saves_and_ends_with_0(prepared):
    runs, drawn, stops = prepared("train"), random.Random(1), []
    for _ in range(4):
        done = runs.run(signal=signal.SIGTERM, at_event=drawn.randint(20, 150))
        assert done["returncode"] == 0, done["stderr"]
        runs.check_nothing_is_half()
        if "stopped by SIGTERM" not in done["stderr"]:  # it was too late
            break
        assert done["stdout"] == ""
        stops.append(done["stderr"])
    assert len(stops) >= 2 and any("after step" in said for said in stops)
    runs.check_it_finishes()
    record = read_any(runs.out / "stream.json")
    assert record.complete and [stage.label for stage in record.stages] == ["math", "code"]


@pytest.fixture
def runs(prepared):
    return prepared("map")


def test_the_same_bits_from_the_cache_of_one_model_or_of_both(runs):
    """As a run leaves it that is killed between the two models; leftovers there are removed when they are old."""
    cache = runs.watch[1]
    cache.mkdir()
    old, new = cache / ".a.safetensors.x.part", cache / ".b.safetensors.x.part"
    for file in (old, new):
        file.touch()
    os.utime(old, (0, 0))
    runs.check_it_finishes()
    assert not old.exists() and new.exists()  # another run may be writing it now
    files = sorted(cache.glob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        file.unlink()
        shutil.rmtree(runs.out)
        runs.check_it_finishes()


def test_a_damaged_cache_is_made_again_and_told(runs):
    runs.check_it_finishes()
    one, other = runs.watch[1].glob("*.safetensors")
    one.write_bytes(one.read_bytes()[:-8])
    other.write_bytes(b"")
    again = runs.run()
    assert again["stderr"].count("is damaged and is made again") == 2
    assert runs.files() == runs.expected
