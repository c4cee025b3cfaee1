"""A stage begins with exactly what base and patches give anyone who loads them."""

import pytest
import torch

from tests.patch_files import make_patch, mask_of, same_bits, state_of
from trace_transfer.engine.loading import BaseModel
from trace_transfer.models.sources import ModelSource
from trace_transfer.patch.model_state import PatchedModel, write_model
from trace_transfer.progress import Silent

BF16, F32 = torch.bfloat16, torch.float32


def state_after_two(base, tmp_path, save_dtype="stored"):
    state = state_of(base)
    for seed in range(2):
        patch = make_patch(state, tmp_path / f"{seed}", mask_of(state, seed=seed), seed, save_dtype=save_dtype)
        state = state.apply(patch)
    return state


@pytest.mark.parametrize("save_dtype", ["stored", "float32"])
@pytest.mark.parametrize(("family", "stored"), [("llama", BF16), ("qwen2", F32), ("gemma3_text", BF16), ("gpt2", F32)])
def test_it_is_the_written_model(tiny, tmp_path, family, stored, save_dtype):
    state = state_after_two(tiny(family, dtype=stored), tmp_path, save_dtype)
    write_model(state, tmp_path / "model", Silent())
    ours, theirs = PatchedModel(state), BaseModel(ModelSource.parse(tmp_path / "model"))
    assert ours.names_sha256 == theirs.names_sha256
    names = list(state.shapes)
    for dtype in (F32, BF16):
        expected = dict(theirs.load(dtype).named_parameters())
        assert same_bits(dict(ours.load(dtype).named_parameters()), expected)
        found = list(ours.values(names[::-1], dtype))
        assert [name for name, _ in found] == names[::-1]
        assert same_bits(dict(found), expected)


def test_without_patches_it_is_the_base(tiny):
    ours, base = PatchedModel(state_of(tiny("llama"))), BaseModel(ModelSource.parse(tiny("llama")))
    assert ours.fingerprint == base.fingerprint
    assert same_bits(dict(ours.load(BF16).named_parameters()), dict(base.load(BF16).named_parameters()))
    assert all(parameter.is_meta for parameter in ours.skeleton(F32).parameters())
