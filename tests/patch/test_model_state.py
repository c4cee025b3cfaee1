"""The states of a stream: base and patches, read and written bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.patch_files import bits, loaded, make_patch, mask_of, same_bits, state_of, stored, values
from tests.tiny_gguf import write_gguf
from tests.tiny_models import build_config, build_model
from trace_transfer.core_sets.masks import Chosen, Mask, Slice
from trace_transfer.models import sources as models
from trace_transfer.patch.model_state import ModelState, StateError, write_model
from trace_transfer.progress import Silent

BF16, F32, F16 = torch.bfloat16, torch.float32, torch.float16


def by_hand(state):
    """The slow twin: every tensor whole, one patch after another."""
    found = {}
    base = ModelState(state.source)
    for name in state.shapes:
        value = base.value(name)
        for patch in state.patches:
            if name in patch.by_name:
                part, after = patch.by_name[name].part, patch.after(name)
                if part is None:
                    value = after
                else:
                    value = value.to(after.dtype).clone()
                    if isinstance(part, Chosen):
                        value.view(-1)[torch.from_numpy(part.indices)] = after
                    else:
                        value[(slice(None),) * part.dim + (part.indices,)] = after
        found[name] = value
    return found


def stream(base, tmp_path, save_dtype="stored", tasks=("math", "law")):
    """A base and the states after each of some stages, whose core sets overlap."""
    states = [state_of(base)]
    for seed, task in enumerate(tasks):
        mask = Mask({**mask_of(states[0], seed=seed).parts, **dict(list(mask_of(states[0]).parts.items())[:3])})
        file = tmp_path / f"{task}.patch.safetensors"
        states.append(states[-1].apply(make_patch(states[-1], file, mask, seed, task=task, save_dtype=save_dtype)))
    return states


def mixed(directory):
    """Norms in float32, everything else in bfloat16."""
    for file in directory.glob("*.safetensors"):
        tensors = {name: t if t.dim() == 1 else t.bfloat16() for name, t in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    return directory


@pytest.mark.parametrize(
    ("family", "dtype", "save_dtype", "rows"),
    [
        ("llama", BF16, "stored", 1 << 18), ("llama", BF16, "float32", 200), ("qwen2", F32, "stored", 200),
        ("gemma3_text", F16, "float32", 1 << 18), ("gpt2", BF16, "stored", 200), ("gpt_neox", F32, "float32", 1 << 18),
    ],
)  # fmt: skip
def test_a_state_is_what_patches_make_of_the_base(tiny, tmp_path, monkeypatch, family, dtype, save_dtype, rows):
    monkeypatch.setattr(models, "ELEMENTS_AT_ONCE", rows)
    states = stream(tiny(family, dtype=dtype), tmp_path, save_dtype)
    for state in states:
        found = values(state)
        assert same_bits(found, by_hand(state))
        for name in state.shapes:
            assert found[name].dtype == state.dtype(name)
            assert bits(torch.cat(list(state.chunks(name)))) == bits(found[name].flatten())
        state.check(Silent())
    assert not same_bits(values(states[0]), values(states[1])) and len({state.fingerprint for state in states}) == 3
    trained = set(states[2].patched)
    assert 0 < len(trained) < len(states[0].shapes)
    assert {states[2].dtype(name) for name in trained} == {F32 if save_dtype == "float32" else dtype}
    assert {states[2].dtype(name) for name in states[2].shapes.keys() - trained} == {dtype}


@pytest.mark.parametrize("save_dtype", ["stored", "float32"])
def test_back_through_the_patches(copy_of, tmp_path, save_dtype):
    """Written, opened as a model of its own, and reverted stage by stage."""
    base = mixed(copy_of("gemma3_text"))
    states = stream(base, tmp_path, save_dtype)
    write_model(states[2], tmp_path / "final", Silent())
    one, two = (patch.inverse for patch in states[2].patches)
    for back, expected in (((two,), states[1]), ((two, one), states[0])):
        reverted = state_of(tmp_path / "final", *back)
        reverted.check(Silent())
        assert same_bits(values(reverted), values(expected))


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2"])
def test_written_models_are_loaded_by_transformers(tiny, tmp_path, family):
    base = tiny(family, dtype=BF16)
    wide = stream(base, tmp_path, "float32")[2]
    write_model(wide, tmp_path / "wide", Silent())
    assert {tensor.dtype for tensor in stored(tmp_path / "wide").values()} == {BF16, F32}
    assert all(torch.equal(value, wide.value(name).float()) for name, value in loaded(tmp_path / "wide").items())
    final = stream(base, tmp_path)[2]
    write_model(final, tmp_path / "model", Silent())
    assert same_bits(loaded(tmp_path / "model"), values(final))
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "bfloat16"
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "model" / file).read_bytes() == (base / file).read_bytes()
    assert same_bits(values(state_of(tmp_path / "model")), values(final))


def test_a_gguf_file_as_a_base(tmp_path):
    model = build_model(build_config("llama"))
    state = state_of(write_gguf(model, tmp_path / "tiny.gguf"))
    patch = make_patch(state, tmp_path / "p", Mask({"model.norm.weight": Slice(0, ((3, 9),))}), 1)
    write_model(state.apply(patch), tmp_path / "model", Silent())
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expected["model.norm.weight"][3:9] = patch.after("model.norm.weight")
    assert same_bits(loaded(tmp_path / "model"), expected)
    assert (tmp_path / "model/tokenizer.json").is_file()


def test_patches_in_another_order(tiny, tmp_path):
    base = tiny("llama")
    one, two = stream(base, tmp_path)[2].patches
    shared = [name for name in two.by_name if name in one.by_name]
    with pytest.raises(StateError, match=r"not in the state that .*law.patch.* \(task 'law'\) begins with") as caught:
        state_of(base, two, one).check(Silent())
    assert all(f"  - {name}: " in str(caught.value) for name in shared)
    for wrong in ((one, one), (one.inverse,), (one, two, one.inverse)):
        with pytest.raises(StateError, match=r"not in the state that .* (begins|ends) with"):
            state_of(base, *wrong).check(Silent())
    state_of(base, one, two, two.inverse, one.inverse, one).check(Silent())


def test_a_patch_that_was_applied_before(tiny, tmp_path):
    state = stream(tiny("llama"), tmp_path)[1]
    with pytest.raises(StateError, match=r"ends with; .*(?s:.*) none that was reverted before\.$"):
        state_of(tiny("llama"), state.patches[0].inverse).check(Silent())
    with pytest.raises(StateError, match=r"\(bfloat16 there, float32 in the patch\)"):
        state_of(tiny("llama", dtype=BF16), *state.patches).check(Silent())


def test_one_bit_beside_what_a_patch_begins_with(copy_of, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "ELEMENTS_AT_ONCE", 200)
    base = copy_of("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    state = state_of(base)
    patch = make_patch(state, tmp_path / "p", Mask({name: Slice(0, ((2, 5), (7, 9)))}), 1)
    file = next(file for file in base.glob("*.safetensors") if name in load_file(file))
    tensors = load_file(file)
    tensors[name].view(torch.int32)[8, -1] ^= 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(StateError, match=rf"1 of its 1 tensors differ:\n  - {name}: 1 of 240 parameters\n"):
        state_of(base, patch).check(Silent())
    tensors[name].view(torch.int32)[8, -1] ^= 1
    tensors[name][5:7] += 1  # rows that are not the patch's
    save_file(tensors, file, {"format": "pt"})
    state_of(base, patch).check(Silent())


def test_rows_beside_a_slice_must_fit_its_type(copy_of, tmp_path):
    """Back to bfloat16 with the trained rows, when another row has got a value that bfloat16 does not hold."""
    base = copy_of("llama", dtype=BF16)
    name = "model.layers.0.self_attn.q_proj.weight"
    patch = make_patch(state_of(base), tmp_path / "p", Mask({name: Slice(1, ((0, 3),))}), 1, save_dtype="float32")
    write_model(state_of(base, patch), tmp_path / "model", Silent())
    (file,) = (tmp_path / "model").glob("*.safetensors")
    tensors = load_file(file)
    tensors[name][0, 5] = 1.001
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(StateError, match=rf"p: stores {name} as bfloat16, which does not hold the values that"):
        write_model(state_of(tmp_path / "model", patch.inverse), tmp_path / "back", Silent())
    assert not (tmp_path / "back").exists()
