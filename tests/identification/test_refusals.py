"""What goes wrong in `identify`, through the real commands: one message, exit code 2, no traceback, nothing lost."""

import shutil

import pytest
import torch

from tests.commands import done, refused
from tests.task_files import write_tasks
from tests.tuned_models import tuned_copy

SIZES = {"math": 8, "code": 8}
FAST = ("--batch-size", 4)


@pytest.fixture
def tasks(tmp_path):
    return write_tasks(tmp_path / "tasks", SIZES)


@pytest.fixture
def command(tiny, tasks, tmp_path):
    return ("identify", tiny("llama"), "--tasks", tasks, *FAST, "--out", tmp_path / "out")


def message(*arguments):
    return " ".join(refused(*arguments).split())


# ---- before anything is begun

WRONG = {
    "a single task": (["--method", "cs", "--tasks", "{alone}"], "cs compares tasks and needs at least 2"),
    "no replicates": (["--method", "cs", "--cosine", "corrected"], "of two replicates of every task: --replicates 2"),
    "DeepSpeed": (["--deepspeed", "{zero3}", "--dry-run"], "zero_optimization.stage: 3 there, 0 by the options"),
    "no GPU": (["--device", "cuda", "--dry-run"], "--device cuda: not available here ("),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_identified_is_told_and_nothing_is_written(wrong, command, tmp_path):
    if "GPU" in wrong and torch.cuda.is_available():
        pytest.skip("there is one")
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    places = {"zero3": tmp_path / "ds.json", "alone": tmp_path / "alone.yaml"}
    places["alone"].write_text("tasks:\n- {name: math, data: tasks/math.jsonl}\n")
    more, told = WRONG[wrong]
    assert told in message(*command, *(text.format(**places) for text in more))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_scored(tiny, tasks, tmp_path):
    base, wider = tiny("llama"), tiny("llama", intermediate_size=64)
    out = ("--out", tmp_path / "out")
    assert "holds no finished warm start" in message("score", base, "--method", "l2", *out)
    tuned = ("--tuned", f"law={tuned_copy(base, tmp_path / 'law', 1)}", "--tuned", f"math={base}")
    assert "lf needs each task's examples" in message("score", base, *tuned, *out)
    assert "lacks tasks to be scored: - law" in message("score", base, *tuned, "--tasks", tasks, *out)
    others = ("--tuned", f"math={tiny('qwen2')}", "--tuned", f"law={wider}")
    told = message("score", base, *others, "--method", "cs", *out)
    assert "looks like another model: qwen2 with 5 layers (62 tensors), the base is llama with 4 (39)" in told
    assert "law: model.layers.0.mlp.gate_proj.weight is (64, 48), in the base (80, 48)" in told


# ---- what was there before


def test_what_was_finished_is_kept_and_used_for_nothing_else(tiny, tasks, tmp_path):
    base, out = tiny("llama"), tmp_path / "out"
    done("warm-start", base, "--tasks", tasks, *FAST, "--out", out)
    finished = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    told = message("warm-start", base, "--tasks", tasks, *FAST, "--epochs", 2, "--learning-rate", 1e30, "--out", out)
    assert "holds warm starts that were made otherwise" in told
    assert "math: epochs 1 there, 2 now" in told and "math: learning_rate 2e-05 there, 1e+30 now" in told
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == finished
    write_tasks(tmp_path / "tasks", {**SIZES, "code": 5})
    told = message("score", base, "--tasks", tasks, "--out", out)
    assert "code: other examples in" in told and "math: other" not in told
    shard = out / "warm_start" / "math" / "delta-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    told = message("score", base, "--tasks", tasks, "--out", out)
    assert "delta-00001.safetensors: missing, cut short or damaged" in told


# ---- training


def test_a_loss_that_is_not_finite_stops_with_step_and_examples(command, tmp_path):
    told = message(*command, "--learning-rate", 1e30, "--warmup", 0, "--max-grad-norm", 0)
    assert "task 'math', step 2 of 2" in told and "NaN or infinite" in told and "math:" in told
    assert not list((tmp_path / "out").rglob("warm_start.json"))


def test_a_disk_without_room_is_refused_before_training(command, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "1,000 bytes are free, but the deltas of 2 warm starts need" in message(*command)
