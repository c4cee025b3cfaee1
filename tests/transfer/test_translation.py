"""Core sets carried between families, on configs alone."""

from pathlib import Path

import pytest
from transformers import AutoConfig

from tests.tiny_models import build_config
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.selection import select
from trace_transfer.errors import ArtefactError
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.families.registry import load_families
from trace_transfer.formats import read_any
from trace_transfer.models.sources import ModelSource, read_inventory
from trace_transfer.records import to_json
from trace_transfer.transfer.policies import depth_pairs
from trace_transfer.transfer.records import LayerPair
from trace_transfer.transfer.translation import Carrier, open_cores

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
    "tie_word_embeddings": False,
}  # fmt: skip


def opened(config):
    kind = config.model_type
    return OpenModel(ModelSource(kind, Path(kind)), config, anatomy_of(read_inventory(config), load_families()))


def model(kind, layers, **more):
    return opened(AutoConfig.for_model(kind, num_hidden_layers=layers, **{**SIZES, **more}))


def tiny(kind):
    return opened(build_config(kind))


@pytest.fixture(scope="module")
def llama():
    return model("llama", 2, pad_token_id=0)


def core_file(source, scores, ratio=0.1, unit="tensors", **rows):
    """A core file in which the named tensors have these scores and all others 0."""
    entries = [
        CoreTensor(name=name, shape=shape, score=float(scores.get(name, 0)), rows=rows.get(name))
        for name, shape in source.anatomy.inventory.shapes.items()
    ]
    return CoreFile(
        task="math", model=source.identity, method={"name": "made-up", "ratio": ratio, "unit": unit},
        parameters=select(entries, ratio, unit),
    )  # fmt: skip


def carried(core, source, target, pairs=None, how="core", ratio=None, similarity=None):
    pairs = pairs or depth_pairs((source.anatomy.num_layers, target.anatomy.num_layers), by_target=False)
    matched = tuple(LayerPair(source=s, target=t, similarity=(similarity or {}).get((s, t))) for s, t in pairs)
    return Carrier(source, target, matched, "1" * 64).carry(core, "0" * 64, how, ratio)


def core_of(result):
    return {p.name: p.sources for p in result.core.core}


def test_a_fused_target_gets_the_rows_of_the_component_and_a_fused_source_gives_them(llama):
    phi = model("phi3", 2, pad_token_id=0)
    key, fused = "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.qkv_proj.weight"
    result = carried(core_file(llama, {key: 1.0}, 0.05), llama, phi)
    (entry,) = result.core.core
    assert (entry.name, entry.rows, entry.component, entry.layer) == (fused, ((32, 48),), "attention.key", 0)
    assert result.core.ratio_of_elements == pytest.approx(16 * 32 / phi.anatomy.inventory.num_elements, rel=1e-12)
    whole = carried(core_file(phi, {fused: 1.0}, 0.05), phi, llama)
    assert set(core_of(whole)) == {f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"}
    key_only = carried(core_file(phi, {fused: 1.0}, 0.05, **{fused: [(32, 48)]}), phi, llama)
    assert set(core_of(key_only)) == {key}


def test_rows_that_are_only_part_of_a_component_do_not_come_across_and_are_told(llama):
    phi = model("phi3", 2, pad_token_id=0)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    result = carried(core_file(phi, {name: 1.0}, 0.05, **{name: [(0, 40)]}), phi, llama)
    assert set(core_of(result)) == {"model.layers.0.self_attn.q_proj.weight"}
    (reason,) = [why for dropped, why in result.dropped.items() if "[32:48]" in dropped]
    assert "only 50% of its parameters are core" in reason


def test_what_has_no_counterpart_is_dropped_with_the_reason(llama):
    gpt2 = model("gpt2", 2)
    gate, up = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    result = carried(core_file(llama, {gate: 1.0, up: 0.9}, 0.1), llama, gpt2)
    assert "no mlp.gate" in result.dropped[gate]
    assert set(core_of(result)) == {"transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_fc.bias"}
    with pytest.raises(ArtefactError, match=r"nothing of it has a counterpart(.|\n)*gate_proj"):
        carried(core_file(llama, {gate: 1.0}, 0.05), llama, gpt2)


def test_scores_keep_the_budget_where_core_loses_it(llama):
    deep = model("qwen3", 8, head_dim=8)
    scores = {name: 1.0 / (index + 1) for index, name in enumerate(llama.anatomy.inventory.shapes)}
    core = core_file(llama, scores, 0.2)
    onto = tuple((t // 4, t) for t in range(8))
    by_name = carried(core, llama, deep)
    by_score = carried(core, llama, deep, pairs=onto, how="scores")
    count = len(deep.anatomy.inventory.shapes)
    assert len(by_score.core.core) == int(0.2 * count)
    assert len(by_name.core.core) < 0.6 * int(0.2 * count)
    assert by_score.core.transferred_from.carry == "scores"


def test_ties_in_score_go_to_the_better_matched_layer(llama):
    core = core_file(llama, {"model.layers.0.mlp.up_proj.weight": 1.0}, 0.05)
    for best in (0, 1):
        similarity = {(0, t): 0.9 if t == best else 0.1 for t in range(2)}
        result = carried(
            core, llama, model("llama", 2, pad_token_id=0), pairs=[(0, 0), (0, 1)], how="scores", similarity=similarity
        )
        assert next(iter(core_of(result))) == f"model.layers.{best}.mlp.up_proj.weight"


def listed(source, entries, unit="tensors"):
    """A core file of these entries, all of them core."""
    shapes = source.anatomy.inventory.shapes
    found = [CoreTensor(shape=shapes[entry["name"]], score=1.0, core=True, **entry) for entry in entries]
    method = {"name": "made-up", "ratio": 0.5, "unit": unit}
    return CoreFile(task="math", model=source.identity, method=method, parameters=tuple(found))


EXPERTS = "model.layers.1.mlp.experts.gate_up_proj"


def test_experts_are_carried_together_whatever_their_numbers(tmp_path):
    """A gate of all experts becomes the gate of all experts, part of another dimension; the file keeps it."""
    mixtral, oss = tiny("mixtral"), tiny("gpt_oss")
    result = carried(listed(mixtral, [{"name": EXPERTS, "columns": ((0, 80),)}]), mixtral, oss)
    gate = tuple((index, index + 1) for index in range(0, 160, 2))
    assert [(p.name, p.columns, p.depth) for p in result.core.core] == [
        (EXPERTS, None, gate),
        (EXPERTS + "_bias", gate, None),
    ]
    assert [p.num_elements for p in result.core.core] == [4 * 48 * 80, 4 * 80]
    path = tmp_path / "math.core.json"
    path.write_text(to_json(result.core), encoding="utf-8")
    assert read_any(path, CoreFile) == result.core
    back = carried(result.core, oss, mixtral)
    assert [(p.name, p.columns) for p in back.core.core] == [(EXPERTS, ((0, 80),))]
    assert not result.dropped
    bias = EXPERTS + "_bias[:, 0:1 of every 2]"
    assert back.dropped == {bias: "mlp.gate of mixtral has no 'bias'"}, "its other half is not core"


def test_some_experts_are_not_carried_and_are_told():
    """Experts do not correspond from one model to another; all of them, one by one, are as good as the whole."""
    qwen, mixtral = tiny("qwen3_moe"), tiny("mixtral")
    every = [{"name": EXPERTS, "rows": ((expert, expert + 1),)} for expert in range(6)]
    norm = {"name": "model.norm.weight"}
    some = carried(listed(qwen, [norm, *every[:2], every[4]], "rows"), qwen, mixtral)
    assert set(core_of(some)) == {"model.norm.weight"}
    reason = "only 50% of its parameters are core, and experts do not correspond from one model to another"
    assert some.dropped == {f"{EXPERTS}[:, 0:20]": reason, f"{EXPERTS}[:, 20:40]": reason}
    whole = carried(listed(qwen, every, "rows"), qwen, mixtral)
    assert [(p.name, p.columns) for p in whole.core.core] == [(EXPERTS, ((0, 80),)), (EXPERTS, ((80, 160),))]


def test_ratio_is_taken_on_the_source_with_core_and_on_the_target_with_scores(llama):
    twin = model("llama", 2, pad_token_id=0)
    scores = {name: float(index) for index, name in enumerate(llama.anatomy.inventory.shapes)}
    core = core_file(llama, scores, 0.05)
    for how in ("core", "scores"):
        result = carried(core, llama, twin, how=how, ratio=0.5)
        assert len(result.core.core) == int(0.5 * len(twin.anatomy.inventory.shapes))
        assert result.core.method.ratio == 0.5


def test_a_tied_embedding_meets_embedding_and_head_and_is_listed_once(llama):
    tied = model("llama", 2, pad_token_id=0, tie_word_embeddings=True)
    to_tied = carried(core_file(llama, {"lm_head.weight": 1.0}, 0.05), llama, tied)
    assert core_of(to_tied) == {"model.embed_tokens.weight": ("lm_head.weight",)}
    assert len([p for p in to_tied.core.parameters if p.name == "model.embed_tokens.weight"]) == 1
    back = carried(core_file(tied, {"model.embed_tokens.weight": 1.0}, 0.05), tied, llama)
    assert set(core_of(back)) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_core_file_of_another_model_is_refused_with_both_hashes(llama, tmp_path):
    other = model("llama", 3, pad_token_id=0)
    hashes = [one.identity.names_sha256[:12] for one in (other, llama)]
    (file := tmp_path / "math.core.json").write_text(to_json(core_file(other, {})), encoding="utf-8")
    with pytest.raises(ArtefactError, match=f"made for another model.*{hashes[0]}.*{hashes[1]}[^;]*$"):
        open_cores([file], llama)
