"""What goes wrong in `train`, through the real command: one message, exit code 2, before any weight is loaded."""

import errno
import json
import shutil

import pytest
from click.testing import CliRunner

from tests.stream_files import write_stream
from tests.tuned_models import weights
from trace_transfer.cli import main
from trace_transfer.engine import checkpointing
from trace_transfer.engine.loading import BaseModel
from trace_transfer.models import tensors


@pytest.fixture
def training(copy_of, tmp_path, monkeypatch):
    """The command on a tiny model, one thing of it wrong; weights must not be loaded."""
    model = copy_of("llama", num_hidden_layers=2)
    stream = write_stream(tmp_path / "stream", model, 2)

    class Training:
        def __init__(self):
            self.model, self.stream, self.out = model, stream, tmp_path / "out"

        def run(self, *more):
            arguments = ["train", self.model, "--stream", self.stream, "--batch-size", 4, "--epochs", 1, "--zero", 0,
                         "--learning-rate", 1e-3, "--out", self.out, *more]  # fmt: skip
            return CliRunner().invoke(main, [str(one) for one in arguments])

        def refused(self, *more) -> str:
            def load(*_):
                raise AssertionError("weights were loaded")

            with monkeypatch.context() as patch:
                patch.setattr(BaseModel, "load", load)
                result = self.run(*more)
            assert result.exit_code == 2, (result.output, result.exception)
            assert result.stdout == ""
            return " ".join(result.stderr.partition("rror: ")[2].split())

    return Training()


@pytest.fixture
def stopped(training, monkeypatch):
    """It was stopped within its first stage, so that no stream.json tells of it."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "remove", stop)
        patch.setattr("trace_transfer.training.streaming._record", stop)
        assert training.run("--checkpoint-minutes", 0).exit_code == 130
    assert list(training.out.rglob("checkpoint.json"))


def turn(config, theta):
    content = json.loads(config.read_text())
    content["rope_parameters"]["rope_theta"] = theta
    config.write_text(json.dumps(content))


def test_a_config_that_was_changed_in_between(training, stopped):
    """Within a stage, and between two: the weights are the same, and yet it is another model."""
    config = training.model / "config.json"
    turn(config, 5e5)
    assert "model.config_sha256: " in training.refused()
    turn(config, 1e4)
    assert "weight_decay: 0.0 in the checkpoint, 0.5 now" in training.refused("--weight-decay", 0.5)
    assert training.run().exit_code == 0
    turn(config, 5e5)
    message = training.refused()
    assert "holds another stream" in message and f"config of {training.model}" in message
    record = json.loads((training.out / "stream.json").read_text())
    del record["config_sha256"]  # as earlier versions wrote it
    (training.out / "stream.json").write_text(json.dumps(record))
    assert training.run("--dry-run").exit_code == 0
    (training.out / "math.patch.safetensors").unlink()
    assert "math.patch.safetensors: missing" in training.refused()


def test_a_full_disk_while_a_patch_is_written(training, monkeypatch):
    """Nothing of the patch is left; the last checkpoint is good, and the same command goes on to the same end."""
    write = tensors.TensorWriter.add

    def full(self, name, tensor):
        if name.startswith("before/"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, tensor)

    with monkeypatch.context() as patch:
        patch.setattr(tensors.TensorWriter, "add", full)
        result = training.run("--checkpoint-minutes", 0)
    assert result.exit_code == 2 and "the disk is full" in result.stderr
    assert not list(training.out.glob("*.patch.safetensors")) and not list(training.out.rglob("*.part"))
    again = training.run("--checkpoint-minutes", 0)
    assert again.exit_code == 0 and "going on after step 2 of 2" in again.stderr
    after = weights(training.out / "model")
    shutil.rmtree(training.out)
    assert training.run().exit_code == 0
    assert all(bool((value == after[name]).all()) for name, value in weights(training.out / "model").items())
