"""Experts that are fused when they are loaded: read, changed and written under the names that they have on disk."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.patch_files import bits, loaded, make_patch, same_bits, state_of, stored
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.errors import ModelError
from trace_transfer.models import model_directory
from trace_transfer.models import sources as models
from trace_transfer.patch.model_state import write_model
from trace_transfer.progress import Silent

BF16 = torch.bfloat16
FUSED = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")
AS_THEY_ARE = ("gemma3_text", "gpt2", "gpt_oss", "granitemoe", "olmoe")


def experts(state):
    return [name for name in state.shapes if ".experts." in name]


@pytest.mark.parametrize("family", (*FUSED, *AS_THEY_ARE))
def test_a_model_is_written_as_transformers_writes_it(tiny, tmp_path, family):
    write_model(state_of(tiny(family)), tmp_path / "model", Silent())
    assert same_bits(stored(tmp_path / "model"), stored(tiny(family)))
    assert same_bits(loaded(tmp_path / "model"), loaded(tiny(family)))


@pytest.mark.parametrize("elements", [1 << 18, 1])
@pytest.mark.parametrize("family", FUSED)
def test_every_tensor_is_read_as_transformers_loads_it(tiny, monkeypatch, family, elements):
    monkeypatch.setattr(models, "ELEMENTS_AT_ONCE", elements)
    state = state_of(tiny(family, dtype=BF16))
    expected = loaded(tiny(family, dtype=BF16))
    assert experts(state) and same_bits({name: state.value(name) for name in state.shapes}, expected)
    name = experts(state)[0]
    blocks = list(state.chunks(name))
    assert len(blocks) == (1 if elements == 1 << 18 else state.shapes[name][0])
    assert bits(torch.cat(blocks)) == bits(expected[name].flatten())


@pytest.mark.parametrize("family", FUSED)
def test_only_some_experts_are_in_memory(tiny, monkeypatch, family):
    state = state_of(tiny(family))
    name = experts(state)[0]
    monkeypatch.setattr(models, "ELEMENTS_AT_ONCE", 1)
    chunks = state.chunks(name)
    before = state.base.weights.bytes_read
    first = next(chunks)
    assert state.base.weights.bytes_read - before == first.nbytes


@pytest.mark.parametrize(("family", "shard_bytes"), [("mixtral", 1), ("deepseek_v3", 20_000), ("deepseek_v3", 10**9)])
def test_a_patched_model_loads_as_what_was_patched(tiny, tmp_path, monkeypatch, family, shard_bytes):
    monkeypatch.setattr(model_directory, "SHARD_BYTES", shard_bytes)
    base = state_of(tiny(family, dtype=BF16))
    gate_up, down, *others = experts(base)
    num_experts, wide, _ = base.shapes[gate_up]
    mask = Mask(
        {
            gate_up: Slice(1, ((0, 3), (wide // 2, wide // 2 + 2))),  # of all experts, some neurons
            down: Slice(2, ((1, 2), (base.shapes[down][2] - 1, base.shapes[down][2]))),
            others[0]: Slice(0, ((1, num_experts),)),  # all experts but the first
            "model.norm.weight": None,
        }
    )
    patch = make_patch(base, tmp_path / "p", mask, 1)
    expected = loaded(tiny(family, dtype=BF16))
    for name, part in mask.parts.items():
        index = (slice(None),) * (part.dim if part else 0) + ((part.indices if part else slice(None)),)
        expected[name][index] = patch.after(name)
    write_model(base.apply(patch), tmp_path / "model", Silent())
    assert same_bits(loaded(tmp_path / "model"), expected)
    assert stored(tmp_path / "model").keys() == stored(tiny(family)).keys()
    write_model(state_of(tmp_path / "model", patch.inverse), tmp_path / "back", Silent())
    assert same_bits(stored(tmp_path / "back"), stored(tiny(family, dtype=BF16)))


def test_a_model_that_was_saved_fused_is_read_as_it_is(tiny, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny("qwen3_moe"))
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    state = state_of(tmp_path / "fused")
    assert set(experts(state)) <= stored(tmp_path / "fused").keys()
    assert same_bits({name: state.value(name) for name in state.shapes}, loaded(tiny("qwen3_moe")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, key: tensors.pop(key), r"gate_up_proj: Sizes of tensors"),
        (
            lambda tensors, key: tensors.update({key: tensors[key].bfloat16()}),
            r"gate_up_proj, .*: types bfloat16, float32 on disk, expected",
        ),
    ],
)
def test_experts_that_do_not_fit_together(copy_of, change, message):
    directory = copy_of("qwen3_moe")
    name = min(key for key in stored(directory) if key.endswith(".experts.1.up_proj.weight"))
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            change(tensors, name)
            save_file(tensors, file, {"format": "pt"})
    state = state_of(directory)
    with pytest.raises(ModelError, match=message):
        state.require_readable(state.shapes)
