"""A run that is killed or interrupted leaves no file by halves, and the same command then finishes the work."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

from tests.core_files import write_core
from tests.repeated_runs import RepeatedRuns
from tests.tiny_models import TEXTS
from trace_transfer.formats import read_any

INTERRUPTED = "interrupted; nothing half-written was left, and the same command goes on from what is finished\n"


class Runs(RepeatedRuns):
    """`trace-transfer map`, with a cache."""

    def __init__(self, source, target, directory):
        out, self.cache = directory / "out", directory / "cache"
        probe = directory / "texts.jsonl"
        probe.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        core = write_core(source, directory / "math.core.json")
        given = {"src": source, "dst": target, "probe": probe, "core": core, "out": out, "cache": self.cache}
        super().__init__(
            ["map", *(part for name, value in given.items() for part in (f"--{name}", value))], out, (self.cache,)
        )
        assert len(self.expected) == 6

    def check_nothing_is_half(self) -> None:
        """Each file is the whole one; what is not yet whole has a hidden name."""
        for file in [*self.out.glob("*"), *self.cache.glob("*")]:
            if file.name.startswith("."):
                assert file.suffix in (".part", ".lock")
            elif file.suffix == ".json":
                read_any(file)
            elif file.suffix == ".safetensors":
                assert load_file(file)
            if file.parent == self.out and not file.name.startswith("."):
                assert file.read_bytes() == self.expected[file.name], file.name


@pytest.fixture(scope="module")
def all_runs(tiny, tmp_path_factory):
    runs = Runs(tiny("llama"), tiny("qwen3"), tmp_path_factory.mktemp("runs"))
    yield runs
    runs.close()


@pytest.fixture
def runs(all_runs):
    all_runs.clear()
    return all_runs


def test_two_runs_write_the_same_bytes(runs):
    runs.check_it_finishes()
    runs.check_it_finishes()  # from the cache


def kill_again_and_again(runs, events):
    """Without clearing in between: each run finds what the one before left."""
    for event in events:
        killed = runs.run(signal=signal.SIGKILL, at_event=event)
        runs.check_nothing_is_half()
        if killed["returncode"] == 0:  # what is cached by now needs fewer operations
            break
        assert killed["returncode"] == -signal.SIGKILL
    runs.check_it_finishes()


def test_a_kill_at_drawn_operations(runs):
    """Of first runs, and of those that go on."""
    drawn, most = random.Random(0), runs.undisturbed["events"]
    for _ in range(2):
        runs.clear()
        kill_again_and_again(runs, sorted(drawn.sample(range(1, most), 3)))


@pytest.mark.slow
def test_a_kill_at_any_operation_and_at_drawn_moments(runs):
    kill_again_and_again(runs, range(1, runs.undisturbed["events"] + 1))
    drawn = random.Random(1)
    for _ in range(20):
        runs.clear()
        runs.run(signal=signal.SIGKILL, after=drawn.uniform(0, runs.undisturbed["seconds"]))
        runs.check_nothing_is_half()
    runs.check_it_finishes()


def test_the_same_bits_from_the_cache_of_one_model_or_of_both(runs):
    """As a run leaves it that is killed between the two models."""
    runs.check_it_finishes()
    files = sorted(runs.cache.glob("*.safetensors"))
    assert len(files) == 2
    for gone in ([files[0]], [files[1]], files, []):
        for file in gone:
            file.unlink()
        shutil.rmtree(runs.out)
        runs.check_it_finishes()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors: tensors.pop("stream"), "expected stream, stream.largest, update, update.largest"),
        (lambda tensors: tensors["stream"].view(-1)[-1:].fill_(math.nan), "stream holds NaN or Inf"),
    ],
)
def test_a_damaged_cache_is_made_again_and_told(runs, damage, said):
    runs.check_it_finishes()
    for file in runs.cache.glob("*.safetensors"):
        tensors = load_file(file)
        damage(tensors)
        save_file(tensors, file)
    again = runs.run()
    assert again["stderr"].count("is damaged (") == 2
    assert said in again["stderr"]
    assert runs.files() == runs.expected


def assert_interrupted(done: dict, runs: Runs) -> None:
    assert done["returncode"] == 130, done["stderr"]
    assert done["stdout"] == ""
    assert done["stderr"].endswith(INTERRUPTED)
    assert "Traceback" not in done["stderr"]
    assert not [file for directory in (runs.out, runs.cache) for file in directory.glob(".*")]
    runs.check_nothing_is_half()


def ctrl_c(runs, **when):
    done = runs.run(signal=signal.SIGINT, **when)
    if done["returncode"] != 0:  # it may have been too late
        assert_interrupted(done, runs)


def test_ctrl_c_leaves_nothing_not_even_a_hidden_file(runs):
    drawn = random.Random(2)
    for event in sorted(drawn.sample(range(1, runs.undisturbed["events"]), 3)):
        ctrl_c(runs, at_event=event)
    for _ in range(2):
        runs.clear()
        ctrl_c(runs, after=drawn.uniform(0.03, runs.undisturbed["seconds"]))
    runs.check_it_finishes()


@pytest.mark.slow
def test_ctrl_c_at_any_operation_and_at_drawn_moments(runs):
    drawn = random.Random(3)
    for event in range(1, runs.undisturbed["events"]):
        ctrl_c(runs, at_event=event)
    for _ in range(20):
        runs.clear()
        ctrl_c(runs, after=drawn.uniform(0.03, runs.undisturbed["seconds"]))
    runs.check_it_finishes()


def interrupted_import(runs, stderr, seconds) -> dict:
    """An ordinary process, interrupted while it imports torch and transformers for some seconds."""
    with stderr.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "trace_transfer", *runs.arguments],
            stdout=subprocess.PIPE, stderr=stream, text=True,
        )  # fmt: skip
        while " trace_transfer.cli\n" not in stderr.read_text():  # before that it is Python that is interrupted
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
    # Interrupted within an `exec` of some library, CPython ends by the signal itself, which a shell shows as 130 too.
    code = 128 + signal.SIGINT if process.returncode == -signal.SIGINT else process.returncode
    message = "".join(line for line in stderr.read_text().splitlines(True) if not line.startswith("import time:"))
    return {"returncode": code, "stdout": stdout, "stderr": message}


@pytest.mark.parametrize("seconds", [0.6, *(pytest.param(seconds, marks=pytest.mark.slow) for seconds in (0.1, 1.2))])
def test_ctrl_c_while_libraries_are_imported(runs, tmp_path, seconds):
    for _ in range(5):
        done = interrupted_import(runs, tmp_path / "stderr", seconds)
        # In some moments of its import torch's C++ cannot pass an interruption on, and aborts: then once more.
        if not (done["returncode"] == -signal.SIGABRT and "pybind11::error_already_set" in done["stderr"]):
            break
    assert_interrupted(done, runs)


def test_another_run_finds_a_damaged_cache(runs):
    """A disk that lost data: what is cached is made again."""
    runs.check_it_finishes()
    for file in runs.cache.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-10])
    again = runs.run()
    assert again["returncode"] == 0, again["stderr"]
    assert "cached" not in again["stderr"]
    assert runs.files() == runs.expected


def test_leftovers_in_the_cache_are_removed_when_they_are_old(runs):
    runs.cache.mkdir()
    old, new = runs.cache / ".a.safetensors.x.part", runs.cache / ".b.safetensors.x.part"
    for file in (old, new):
        file.touch()
    os.utime(old, (0, 0))
    runs.check_it_finishes()
    assert not old.exists()
    assert new.exists()  # another run may be writing it now


def test_the_progress_is_on_stderr_and_the_result_on_stdout(runs):
    done = runs.run()
    assert re.search(r"reading llama: step 4 of 4", done["stderr"])
    assert done["stdout"].count("heatmap.html") == 1
    assert "reading" not in done["stdout"]
