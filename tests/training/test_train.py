"""`train` from stream to tuned model, by every method: what moved, what did not, and what lies on the disk."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.stream_files import core_sets, write_stream
from tests.tuned_models import weights
from trace_transfer.cli import main
from trace_transfer.formats import read_any

TASKS = {"math": 8, "code": 6, "law": 6}
OPTIONS = ("--epochs", 2, "--learning-rate", 1e-3, "--weight-decay", 0.1, "--zero", 0)


def command(model, stream, out, *more, code=0):
    """Run `train` in batches of 4."""
    arguments = ["train", model, "--stream", stream, "--batch-size", 4, "--out", out, *more]
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == code, result.stderr
    return result


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def stream(model, tmp_path_factory):
    return write_stream(tmp_path_factory.mktemp("stream"), model, 3, TASKS)


@pytest.fixture(scope="module")
def train(model, stream, tmp_path_factory):
    """`train(method, …)`: the output directory, trained once for each set of options."""
    made = {}

    def run(*options):
        if options not in made:
            made[options] = tmp_path_factory.mktemp("out")
            command(model, stream, made[options], *OPTIONS, *options)
        return made[options]

    return run


def moved(model, out):
    """Names of the tensors whose bits differ."""
    before, after = weights(model), weights(out / "model")
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name].view(torch.int32), after[name].view(torch.int32))}


def test_trace_moves_the_core_sets_alone(train, model):
    out = train("--method", "trace")
    assert moved(model, out) == {name for core in core_sets(3).values() for name in core}
    before, after = weights(model), weights(out / "model")
    rows = torch.ones(before["model.layers.2.mlp.up_proj.weight"].shape[0], dtype=torch.bool)
    rows[[0, 1, 2, 8]] = False
    for one, frozen in ((rows, True), (~rows, False)):
        same = before["model.layers.2.mlp.up_proj.weight"][one] == after["model.layers.2.mlp.up_proj.weight"][one]
        assert bool(same.all() if frozen else not same.all(dim=1).any())


def test_each_patch_holds_what_its_task_changed(train):
    out = train("--method", "trace")
    for task, core in core_sets(3).items():
        tensors = load_file(out / f"{task}.patch.safetensors")
        assert {name.partition("/")[2] for name in tensors} == core.keys()
        for name in core:
            assert not torch.equal(tensors[f"before/{name}"], tensors[f"after/{name}"])
    # A tensor of two core sets begins the second task where it ended the first.
    shared = "model.layers.2.mlp.down_proj.weight"
    first, last = (load_file(out / f"{task}.patch.safetensors") for task in ("math", "law"))
    assert torch.equal(first[f"after/{shared}"], last[f"before/{shared}"])
    assert torch.equal(last[f"after/{shared}"], weights(out / "model")[shared])


def test_the_tuned_model_loads_and_is_what_was_trained(train, model):
    out = train("--method", "trace")
    tuned = AutoModelForCausalLM.from_pretrained(out / "model")
    for name, value in weights(out / "model").items():
        assert torch.equal(tuned.get_parameter(name), value)
    record = read_any(out / "stream.json")
    assert record.complete and [stage.label for stage in record.stages] == list(TASKS)
    assert [stage.num_steps for stage in record.stages] == [4, 4, 4]
    assert read_any(out / "verification.json").ok
    assert not list(out.rglob("checkpoint")) and not list(out.rglob(".*"))
    for file, words in (("stream.json", "Stages (trace)"), ("verification.json", "no frozen tensor moved")):
        assert words in CliRunner().invoke(main, ["inspect", str(out / file)]).stdout


@pytest.mark.parametrize(("method", "labels"), [("joint", ["joint"]), ("dmt", ["multi-task", "law"]), ("first", None)])
def test_every_method_moves_what_it_says(train, model, method, labels):
    out, labels = train("--method", method), labels or list(TASKS)
    everything = set(weights(model))
    first = {name for name in everything if name.startswith("model.layers.0.")}
    assert moved(model, out) == (first if method == "first" else everything)
    assert [stage.label for stage in read_any(out / "stream.json").stages] == labels


@pytest.mark.parametrize("adapter", ["carry", "merge"])
def test_lora_ends_as_peft_merges_it(train, model, adapter):
    out = train("--method", "lora", "--adapter", adapter)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for task in TASKS if adapter == "merge" else ["law"]:
        base = PeftModel.from_pretrained(base, out / f"{task}.adapter").merge_and_unload()
    for name, value in weights(out / "model").items():
        torch.testing.assert_close(value, base.get_parameter(name).detach(), rtol=1e-5, atol=1e-7)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in moved(model, out)} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_values_can_be_saved_in_float32(tmp_path, tiny):
    half = tiny("llama", num_hidden_layers=2, dtype=torch.bfloat16)
    stream = write_stream(tmp_path / "stream", half, 2)
    for save, expected in (("stored", torch.bfloat16), ("float32", torch.float32)):
        command(half, stream, tmp_path / save, "--zero", 1, "--epochs", 1, "--save-dtype", save)
        found = weights(tmp_path / save / "model")
        assert {found[name].dtype for name in core_sets(2)["math"]} == {expected}
        assert found["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_a_dry_run_says_what_would_train_and_writes_nothing(train, model, stream, tmp_path):
    planned = command(model, stream, tmp_path / "out", "--epochs", 2, "--dry-run").stdout
    assert "math:0 as the model reads it" in planned and "⟦It is 0" in planned
    for stage in read_any(train("--method", "trace") / "stream.json").stages:
        (row,) = [line.split() for line in planned.splitlines() if line.startswith(f"{stage.label} ") and "%" in line]
        assert row[1:4] == [f"{stage.num_examples:,}", f"{stage.tokens:,}", f"{stage.num_steps:,}"]
    told = command(model, stream, tmp_path / "out", "--batch-size", 4096, "--dry-run", "--processes", 4096).stdout
    assert "here it would be refused" in " ".join(told.split())
    assert not (tmp_path / "out").exists()


def test_the_record_of_an_earlier_version_is_gone_on_from(train, model, stream, tmp_path):
    """It has a setting that is no more, and that changed no result; the command does not know it."""
    out = shutil.copytree(train("--method", "trace"), tmp_path / "out")
    record = json.loads((out / "stream.json").read_text())
    record["settings"]["cache_prefix"] = "auto"
    (out / "stream.json").write_text(json.dumps(record))
    assert "trained before" in command(model, stream, out, *OPTIONS).stderr
    assert "seed: 0 there, 7 now" in command(model, stream, out, *OPTIONS, "--seed", 7, code=2).stderr
