"""NaN and Inf, in weights, patches and logits: refused where they are read, and no score is made of them."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests import commands
from tests.commands import refused
from tests.evaluation_files import CHOICE_FIELDS, CHOICES, loaded, run, suite_of, write_suite
from tests.patch_files import make_patch, mask_of, state_of
from tests.tuned_models import damage
from trace_transfer.engine.loading import BaseModel
from trace_transfer.errors import ModelError, NumericalError
from trace_transfer.evaluation.backends import finite_logits
from trace_transfer.identification.deltas import ShardWriter
from trace_transfer.models.checkpoints import SafetensorsCheckpoint
from trace_transfer.models.sources import ModelSource, build_meta_model, load_config
from trace_transfer.models.tensors import all_finite
from trace_transfer.patch.model_state import record_patch

BAD = "model.layers.1.mlp.up_proj.weight"
VALUES = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", VALUES)
def test_one_of_many(dtype, value):
    values = torch.full((300, 300), 6e4, dtype=dtype)  # whose sum does not fit float16
    assert all_finite(values) and all_finite(values[:0]) and all_finite(values.long())
    values[299, 299] = value
    assert not all_finite(values)
    values[0, 0] = -value  # with Inf, their sum is NaN
    assert not all_finite(values)
    assert not all_finite(torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn))


def read_all(directory):
    """Each way in which weights are read: name of the way → a function that reads the bad tensor."""
    source = ModelSource.parse(directory)
    state = state_of(directory)
    model = build_meta_model(load_config(source))
    base = BaseModel(source)
    return {
        "rows of one": lambda: list(state.chunks(BAD)),
        "whole": lambda: state.value(BAD),
        "into a model": lambda: SafetensorsCheckpoint(directory).load(model, BAD.__eq__, "cpu", torch.float32),
        "some rows": lambda: SafetensorsCheckpoint(directory).rows(model, BAD, torch.tensor([0]), torch.float32),
        "one by one": lambda: list(base.values([BAD], torch.float32)),
        "by transformers": lambda: base.load(torch.bfloat16),
    }


@pytest.mark.parametrize("value", VALUES)
def test_every_way_of_reading_weights_refuses_it(copy_of, value):
    directory = copy_of("llama")
    for read in read_all(directory).values():
        read()  # it is good so far
    damage(directory, BAD, value)
    for way, read in read_all(directory).items():
        with pytest.raises(ModelError, match=rf"NaN or Inf in 1 tensor; .* diverged:\n  - {BAD}"):
            read()
            pytest.fail(f"{way}: took it")


@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("value", VALUES)
def test_a_patch_with_it_is_not_applied(tiny, tmp_path, kind, value):
    state, out = state_of(tiny("llama")), tmp_path / "out"
    file = make_patch(state, tmp_path / "math.patch.safetensors", mask_of(state), 1).path
    with safe_open(file, framework="pt") as patch:
        metadata, tensors = patch.metadata(), load_file(file)
    key = next(key for key in tensors if key.startswith(f"{kind}/"))
    tensors[key].view(-1)[0] = value
    save_file(tensors, file, metadata)
    told = refused("patch", "apply", tiny("llama"), file, "--out", out)
    assert f"{file}: NaN or Inf in 1 tensor" in told and f"  - {key}" in told and not out.exists()


@pytest.mark.parametrize("kind", ["loss", "multiple-choice", "exact-match"])
def test_no_score_of_logits_that_are_not_finite(copy_of, tmp_path, kind):
    """Of a model whose weights are finite."""
    directory = copy_of("llama")
    damage(directory, "model.norm.weight", 3e38)
    given = {"fields": CHOICE_FIELDS, "kind": kind}
    if kind != "multiple-choice":
        given = {"fields": {"prompt": "q", "completion": "a"}, "kind": kind}
    records = [{**one, "a": "an answer"} for one in CHOICES]
    with pytest.raises(NumericalError, match="its logits are NaN or infinite, so they give no score"):
        run(*loaded(directory), suite_of(tmp_path, records, **given))
    if kind == "loss":
        command = ("evaluate", directory, "--suite", write_suite(tmp_path / "suite"), "--out", tmp_path / "scores")
        done = commands.run(*command)
        assert done.exit_code == 1 and "its logits are NaN or infinite, so" in done.output
        assert list((tmp_path / "scores/finished").iterdir()) == []


def test_tokens_that_a_model_never_writes():
    logits_bv = torch.tensor([[1.0, float("-inf")], [0.0, 1.0]])
    assert finite_logits(torch.zeros(2, 1), logits_bv) is logits_bv
    logits_bv[1, 1] = float("nan")
    with pytest.raises(NumericalError, match="its logits are NaN"):
        finite_logits(torch.zeros(2, 1), logits_bv)


def test_nothing_that_was_trained_to_it_is_kept(tiny, tmp_path):
    state = state_of(tiny("llama"))
    mask = mask_of(state)
    trained = ((name, torch.full(state.shapes[name], float("nan"))) for name in mask.parts)
    with pytest.raises(NumericalError, match="NaN or Inf in the trained values; no patch can hold them"):
        record_patch(tmp_path / "x.patch.safetensors", state, mask, trained, task="x", method="trace")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NumericalError, match=r"NaN or Inf in a\.weight; nothing of it was kept"):
        ShardWriter(tmp_path).add("a.weight", torch.tensor([1.0, float("inf")]))
