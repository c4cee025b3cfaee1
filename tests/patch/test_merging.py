"""Patches as task vectors, merged by the real mergekit."""

import json

import pytest
import torch
import yaml
from click.testing import CliRunner

from tests.patch_files import bits, loaded, make_patch, same_bits, state_of, stored, values
from tests.tiny_gguf import write_gguf
from tests.tiny_models import build_config, build_model
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.errors import ArtefactError
from trace_transfer.patch.patches import Patch
from trace_transfer.patch.patching import write_task_models
from trace_transfer.patch.records import mergekit_yaml
from trace_transfer.progress import Silent

BF16, F32, F16 = torch.bfloat16, torch.float32, torch.float16
QUERY = "model.layers.1.self_attn.q_proj.weight"
DISJOINT = {
    "math": Mask({"model.layers.0.mlp.down_proj.weight": None, QUERY: Slice(0, ((0, 16),))}),
    "law": Mask({"model.norm.weight": None, QUERY: Slice(0, ((16, 40),))}),
}
OVERLAPPING = {task: Mask({**mask.parts, "model.layers.2.mlp.up_proj.weight": None}) for task, mask in DISJOINT.items()}


def stream(base, tmp_path, masks, save_dtype="stored"):
    """The states of a stream, and its patches."""
    state, files = state_of(base), []
    for seed, (task, mask) in enumerate(masks.items()):
        file = tmp_path / f"{task}.patch.safetensors"
        state = state.apply(make_patch(state, file, mask, seed, task=task, save_dtype=save_dtype))
        files.append(file)
    return state, files


def merge(file, out):
    """`mergekit-yaml FILE OUT`."""
    from mergekit.scripts.run_yaml import main

    done = CliRunner().invoke(main, [str(file), str(out), "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return stored(out)


@pytest.mark.parametrize(
    ("family", "dtype", "method"), [("llama", BF16, "ties"), ("qwen3_moe", F32, "task_arithmetic")]
)
def test_disjoint_tasks_merge_to_the_model_after_both(tiny, tmp_path, family, dtype, method):
    masks, changes = DISJOINT, {}
    if family == "qwen3_moe":  # some neurons of all experts for one task, others for the other
        name, changes = "model.layers.0.mlp.experts.gate_up_proj", {"decoder_sparse_step": 1}  # as mergekit expects
        masks = {"math": Mask({name: Slice(1, ((0, 5),))}), "law": Mask({name: Slice(1, ((5, 20),))})}
    base = tiny(family, dtype=dtype, **changes)
    final, files = stream(base, tmp_path, masks)
    models = write_task_models(str(base), files, tmp_path / "vectors", Silent(), merge_method=method)
    assert [(model.task, model.num_moved_before) for model in models] == [("math", 0), ("law", 0)]
    merge(tmp_path / "vectors/mergekit.yaml", tmp_path / "merged")
    assert same_bits(loaded(tmp_path / "merged"), values(final))


def test_vectors_of_tasks_that_overlap_add_up_to_the_last_state(tiny, tmp_path):
    """Not to the bit: base + (b − a) + (a − base) is rounded."""
    base = tiny("llama")
    final, files = stream(base, tmp_path, OVERLAPPING)
    models = write_task_models(str(base), files, tmp_path / "vectors", Silent())
    assert sorted(path.name for path in (tmp_path / "vectors").iterdir()) == [
        "law", "law.patch.safetensors", "math", "mergekit.yaml"
    ]  # fmt: skip
    state = state_of(base, Patch.open(tmp_path / "vectors/law.patch.safetensors"))
    assert same_bits(stored(tmp_path / "vectors/law"), values(state))
    shared = "model.layers.2.mlp.up_proj.weight"
    assert [model.num_moved_before for model in models] == [0, final.shapes[shared][0] * final.shapes[shared][1]]
    merged = merge(tmp_path / "vectors/mergekit.yaml", tmp_path / "merged")
    for name, value in values(final).items():
        if name == shared:
            assert torch.allclose(merged[name], value, rtol=1e-6, atol=1e-7) and merged[name].dtype == value.dtype
        else:
            assert bits(merged[name]) == bits(value)


@pytest.mark.parametrize(
    ("dtypes", "computed", "stored"), [([BF16], "float32", "bfloat16"), ([F16, BF16], "float64", "float32")]
)
def test_the_file_computes_in_a_type_that_loses_nothing(dtypes, computed, stored):
    assert yaml.safe_load(mergekit_yaml("owner/base@abc", ["/a/math", "/a/law"], "dare_ties", dtypes)) == {
        "merge_method": "dare_ties",
        "base_model": "owner/base@abc",
        "models": [{"model": f"/a/{task}", "parameters": {"weight": 1.0, "density": 0.5}} for task in ("math", "law")],
        "dtype": computed,
        "out_dtype": stored,
    }


def test_a_gguf_base_becomes_a_directory(tmp_path):
    state = state_of(write_gguf(build_model(build_config("llama")), tmp_path / "base.gguf"))
    patch = make_patch(state, tmp_path / "p.patch.safetensors", Mask({"model.norm.weight": None}), 0)
    write_task_models(state.source.name, [patch.path], tmp_path / "vectors", Silent())
    content = yaml.safe_load((tmp_path / "vectors/mergekit.yaml").read_text())
    assert content["base_model"] == str(tmp_path / "vectors/base")
    assert same_bits(stored(tmp_path / "vectors/base"), values(state))
    assert json.loads((tmp_path / "vectors/base/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_what_is_refused_leaves_nothing(tiny, tmp_path):
    base = str(tiny("llama"))
    _, files = stream(base, tmp_path, DISJOINT)
    same = make_patch(state_of(base), tmp_path / "again", DISJOINT["math"], 3, task="math").path
    named = make_patch(state_of(base), tmp_path / "named", DISJOINT["math"], 3, task="base").path
    for model, patches, message in (
        (base, [files[0], same], r"(?s)these are taken:.*math.patch.safetensors: task 'math'.*again: task 'math'"),
        (base, [named], r"named: task 'base'"),
        (str(tiny("qwen2")), files, "patches that are not of"),
    ):
        with pytest.raises(ArtefactError, match=message):
            write_task_models(model, patches, tmp_path / "vectors", Silent())
    assert {path.name for path in tmp_path.iterdir()} == {*(path.name for path in files), "again", "named"}
