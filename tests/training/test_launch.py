"""`train` on several processes: with `--processes`, and under the usual launchers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.stream_files import write_stream
from tests.tuned_models import weights
from trace_transfer.cli import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LAUNCHERS = {
    "processes": ([sys.executable, "-m", "trace_transfer"], ["--processes", "2"]),
    "torchrun": ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                  "trace_transfer"], []),
    "accelerate": ([sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
                    "--num_processes", "2", "--mixed_precision", "no", "--dynamo_backend", "no", "-m",
                    "trace_transfer"], []),
    "deepspeed": ([str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--module", "trace_transfer"],
                  []),
}  # fmt: skip


@pytest.fixture(scope="module")
def command(tiny, tmp_path_factory):
    model = tiny("qwen2", num_hidden_layers=2)
    stream = write_stream(tmp_path_factory.mktemp("stream"), model, 2)
    return [
        "train", str(model), "--stream", str(stream), "--batch-size", "4", "--micro-batch-size", "1", "--epochs", "1",
        "--learning-rate", "1e-3", "--weight-decay", "0.1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    done = CliRunner().invoke(main, [*command, "--zero", "0", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return weights(out / "model")


@pytest.mark.parametrize(
    "launcher",
    ["processes", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torchrun", "accelerate", "deepspeed"))],
)
def test_two_processes_train_what_one_trains(command, alone, tmp_path, launcher):
    before, after = LAUNCHERS[launcher]
    done = subprocess.run([*before, *command, "--zero", "3", "--out", str(tmp_path), *after],
                          capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bit-identical") == 1
    for name, value in weights(tmp_path / "model").items():
        assert float((value - alone[name]).abs().max()) < 2e-5, name  # of 1e-3 a step
