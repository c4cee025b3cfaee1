"""What goes wrong in `identify`, through the real command: one message, exit code 2, no traceback, nothing lost."""

import json
import subprocess

import pytest
import torch
from click.testing import CliRunner

from tests.task_files import write_tasks
from trace_transfer.cli import main
from trace_transfer.files import DiskFullError
from trace_transfer.formats import read_any
from trace_transfer.identification import deltas
from trace_transfer.identification.records import WarmStartFile


@pytest.fixture
def tasks(tmp_path):
    return write_tasks(tmp_path / "tasks", {"math": 8, "code": 8})


class Identifying:
    """The command on a tiny model, one thing of it wrong."""

    def __init__(self, model, tasks, out):
        self.arguments = ["identify", model, "--tasks", tasks, "--batch-size", 4, "--out", out]
        self.out = out

    def run(self, *more):
        return CliRunner().invoke(main, [str(one) for one in (*self.arguments, *more)])

    def refused(self, *more) -> str:
        result = self.run(*more)
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert result.stderr.lower().count("error: ") == 1
        assert not self.out.is_dir() or not list(self.out.rglob("*.part"))
        return " ".join(result.stderr.partition("rror: ")[2].split())


@pytest.fixture
def identifying(tiny, tasks, tmp_path) -> Identifying:
    return Identifying(tiny("llama"), tasks, tmp_path / "out")


def nothing_was_written(identifying):
    return not identifying.out.exists()


# ---- tasks


def test_a_single_task_with_cs(identifying, tasks):
    tasks.write_text("tasks:\n- {name: math, data: math.jsonl}\n")
    assert "cs compares tasks and needs at least 2, found 1: math" in identifying.refused("--method", "cs")
    assert nothing_was_written(identifying)


def test_a_tokenizer_of_another_model(identifying, copy_of, tasks, tmp_path):
    from tests.tiny_models import build_tokenizer

    model = copy_of("llama", vocab_size=300)
    build_tokenizer("prose").save_pretrained(model)
    message = Identifying(model, tasks, tmp_path / "out").refused()
    assert "the tokenizer belongs to another model" in message


def test_examples_longer_than_the_model_can_read(identifying, tiny, tasks, tmp_path):
    short = tiny("llama", max_position_embeddings=16)
    message = Identifying(short, tasks, tmp_path / "out").refused()
    assert "longer than the 16 tokens which llama was made for; give --max-length 16" in message
    assert "math: " in message


# ---- training


def test_a_loss_that_is_not_finite_stops_with_step_and_examples(identifying):
    message = identifying.refused("--learning-rate", 1e30, "--warmup", 0, "--max-grad-norm", 0)
    assert "task 'math', step 2 of 2" in message
    assert "NaN or infinite" in message
    assert "math:" in message
    assert "--learning-rate" in message or "smaller learning rate" in message
    assert not list(identifying.out.rglob("warm_start.json"))


def test_what_was_finished_before_is_kept(identifying):
    assert identifying.run().exit_code == 0
    finished = {file: file.read_bytes() for file in identifying.out.rglob("warm_start.json")}
    message = identifying.refused("--learning-rate", 1e30)
    assert "holds warm starts that were made otherwise" in message
    assert {file: file.read_bytes() for file in identifying.out.rglob("warm_start.json")} == finished


# ---- a full disk


def test_a_full_disk_while_deltas_are_written(identifying, monkeypatch):
    """From the second file on."""
    real, written = deltas.write_tensors, []

    def full(path, *rest):
        if len(written) == 1:
            raise DiskFullError.writing(path)
        written.append(path)
        real(path, *rest)

    monkeypatch.setattr(deltas, "write_tensors", full)
    message = identifying.refused()
    assert "the disk is full" in message
    assert "what was written before is whole" in message
    monkeypatch.undo()
    (kept,) = identifying.out.rglob("warm_start.json")
    assert read_any(kept, WarmStartFile).task == "math"
    again = identifying.run()
    assert again.exit_code == 0, again.output
    assert "math: warm-started before" in again.stderr


@pytest.mark.parametrize("size", ["400k", pytest.param("700k", marks=pytest.mark.slow), "1000k"])
def test_a_disk_that_is_really_full(tiny, tasks, tmp_path, size):
    """A file system of its own that is too small, with checkpoints on it; afterwards there is room, and it goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        identifying = Identifying(tiny("llama"), tasks, disk / "out")
        message = identifying.refused("--checkpoint-minutes", 0)
        assert "full" in message or "bytes are free" in message
        for file in identifying.out.rglob("*.json"):
            assert json.loads(file.read_text())
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        again = identifying.run("--checkpoint-minutes", 0)
        assert again.exit_code == 0, again.output
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_device_that_is_not_there_is_refused_before_the_warm_starts(identifying, more):
    assert "--device cuda: not available here (" in identifying.refused("--device", "cuda", *more)
    assert nothing_was_written(identifying)


def test_settings_of_a_training_that_cannot_be_used(identifying, tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    message = identifying.refused("--deepspeed", tmp_path / "ds.json", "--dry-run")
    assert "zero_optimization.stage: 3 there, 0 by --zero" in message
    assert "tensorbord: no tracker of this name; did you mean tensorboard?" in identifying.refused(
        "--track", "tensorbord"
    )
    assert nothing_was_written(identifying)


def test_an_output_that_is_the_model(tasks, copy_of):
    model = copy_of("llama")
    files = sorted(model.iterdir())
    assert f"{model}: is an input as well; name another --out" in Identifying(model, tasks, model).refused()
    assert sorted(model.iterdir()) == files
