"""`trace-transfer patch`: a model goes to any state of a stream and back, bit for bit."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import commands
from tests.patch_files import loaded, make_patch, mask_of, same_bits, state_of, stored
from trace_transfer.core_sets.masks import Mask
from trace_transfer.patch.patches import Patch

done = partial(commands.done, "patch")
refused = partial(commands.refused, "patch")

NORM = "model.norm.weight"


def stream(base, tmp_path, save_dtype="stored", **masks):
    state = state_of(base)
    files = []
    for seed, task in enumerate(("math", "law")):
        mask = masks.get(task) or Mask({**mask_of(state, seed=seed).parts, NORM: None})
        patch = make_patch(state, tmp_path / f"{task}.patch.safetensors", mask, seed, task=task, save_dtype=save_dtype)
        state, files = state.apply(patch), [*files, patch.path]
    return state, files


@pytest.mark.parametrize(
    ("family", "dtype", "save_dtype"), [("qwen3", torch.float32, "stored"), ("qwen2", torch.bfloat16, "float32")]
)
def test_there_and_back(tiny, tmp_path, family, dtype, save_dtype):
    base = tiny(family, dtype=dtype)
    final, (one, two) = stream(base, tmp_path, save_dtype)
    done("apply", base, one, "--out", tmp_path / "first")
    done("apply", tmp_path / "first", two, "--out", tmp_path / "steps")
    done("apply", base, one, two, "--out", tmp_path / "final")
    assert same_bits(stored(tmp_path / "final"), stored(tmp_path / "steps"))
    assert same_bits(stored(tmp_path / "final"), {name: final.value(name) for name in final.shapes})
    told = done("revert", tmp_path / "final", two, "--out", tmp_path / "back").stdout
    assert "with 1 patch reverted, " in told
    assert same_bits(stored(tmp_path / "back"), stored(tmp_path / "first"))
    done("revert", tmp_path / "back", one, "--out", tmp_path / "again")
    done("revert", tmp_path / "final", one, two, "--out", tmp_path / "at_once")
    for directory in ("again", "at_once"):
        assert same_bits(loaded(tmp_path / directory), loaded(base))
        assert {t.dtype for t in stored(tmp_path / directory).values()} == {dtype}
    assert not same_bits(loaded(tmp_path / "final"), loaded(tmp_path / "first"))


def test_a_model_in_another_state(tiny, tmp_path):
    base = tiny("llama")
    _, (one, two) = stream(base, tmp_path)
    for command, patches, message in (
        ("apply", [two, one], "begins with; 1 of its "),
        ("revert", [one], "none that was reverted before"),
    ):
        assert message in refused(command, base, *patches, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_what_is_refused_before_anything_is_read(tiny, copy_of, tmp_path):
    base, copy = tiny("llama"), copy_of("llama")
    _, (one, _) = stream(base, tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    out = tmp_path / "out"
    for arguments, message in (
        (("apply", tiny("qwen2"), one, "--out", out), "patches that are not of"),
        (("apply", base, one, "--out", tmp_path / "used"), "used: not empty; name another --out, or remove it"),
        (("diff", base, tiny("olmo2"), "--out", out), "not of the names and shapes"),
        (("diff", copy, base, "--out", copy / "config.json"), "config.json: is an input as well; name another --out"),
    ):
        assert message in refused(*arguments)
    assert not out.exists() and [file.name for file in (tmp_path / "used").iterdir()] == ["file"]


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16])
def test_the_patch_between_two_models(tiny, tmp_path, other):
    base = tiny("qwen2")
    final, files = stream(base, tmp_path)
    done("apply", base, *files, "--out", tmp_path / "final")
    if other == torch.bfloat16:
        for file in (tmp_path / "final").glob("*.safetensors"):
            tensors = {name: t.bfloat16() if "mlp" in name else t for name, t in load_file(file).items()}
            save_file(tensors, file, {"format": "pt"})
    told = done("diff", base, tmp_path / "final", "--out", tmp_path / "diff", "--task", "both").stdout
    patch = Patch.open(tmp_path / "diff")
    assert (patch.task, patch.method) == ("both", "diff")
    mlp = {name for name in final.shapes if "mlp" in name} if other == torch.bfloat16 else set()
    assert set(patch.by_name) == set(final.patched) | mlp
    assert f"{len(patch.entries)} of {len(final.shapes)} tensors differ" in told
    assert NORM in told and "60 of 60" in told
    done("apply", base, tmp_path / "diff", "--out", tmp_path / "there")
    done("revert", tmp_path / "final", tmp_path / "diff", "--out", tmp_path / "back")
    assert same_bits(stored(tmp_path / "there"), stored(tmp_path / "final"))
    assert same_bits(loaded(tmp_path / "back"), loaded(base))


def test_a_bit_is_a_difference_and_equal_models_have_none(tiny, copy_of, tmp_path):
    base, other = tiny("llama"), copy_of("llama")
    told = done("diff", base, other, "--out", tmp_path / "diff").stdout
    assert "0 of 39 tensors differ\nnothing was written" in told
    assert not (tmp_path / "diff").exists()
    file = next(file for file in other.glob("*.safetensors") if NORM in load_file(file))
    tensors = load_file(file)
    tensors[NORM][5] *= -1
    tensors[NORM].view(torch.int32)[7] ^= 1
    save_file(tensors, file, {"format": "pt"})
    assert "2 of 48" in done("diff", base, other, "--out", tmp_path / "diff").stdout
    assert set(Patch.open(tmp_path / "diff").by_name) == {NORM}


def test_what_patches_hold(tiny, tmp_path):
    _, files = stream(tiny("llama", dtype=torch.bfloat16), tmp_path, "float32")
    told = done("show", *files).stdout
    assert "\ntask math, method trace: 14 tensors" in told and "\ntask law, method trace: " in told
    assert " rows " in told and " columns " in told and "bfloat16" in told and "float32" in told
