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


@pytest.mark.parametrize(
    ("family", "stored", "save_dtype"), [("llama", BF16, "stored"), ("qwen2", BF16, "float32"), ("gpt2", F32, "stored")]
)
def test_it_is_the_written_model(tiny, tmp_path, family, stored, save_dtype):
    state = state_after_two(tiny(family, dtype=stored), tmp_path, save_dtype)
    write_model(state, tmp_path / "model", Silent())
    ours, theirs = PatchedModel(state), BaseModel(ModelSource.parse(tmp_path / "model"))
    assert ours.identity["names_sha256"] == theirs.identity["names_sha256"]
    names = list(state.shapes)
    for dtype in (F32, BF16):
        expected = dict(theirs.load(dtype).named_parameters())
        assert same_bits(dict(ours.load(dtype).named_parameters()), expected)
        found = list(ours.values(names[::-1], dtype))
        assert [name for name, _ in found] == names[::-1]
        assert same_bits(dict(found), expected)
