"""The graph between two tiny models of different families: rules of carrying, totality, and the file's contents."""

from pathlib import Path

from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, Phi3Config, Qwen2Config, Qwen3Config

from tests.tiny_models import build_config
from trace_transfer.families.application import Anatomy, anatomy_of
from trace_transfer.families.correspondence import Correspondence, build_correspondence
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import read_inventory

BASE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 50}
GATED = {**BASE, "intermediate_size": 96, "num_key_value_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**GATED),
    "llama_tied": LlamaConfig(**GATED, tie_word_embeddings=True),
    "llama_bias": LlamaConfig(**GATED, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**GATED),
    "qwen3": Qwen3Config(**{**GATED, "num_hidden_layers": 3}, head_dim=16),
    "gemma3": Gemma3TextConfig(**GATED, head_dim=16),
    "phi3": Phi3Config(**GATED, pad_token_id=0),
    "gpt2": GPT2Config(n_embd=64, n_head=4, n_layer=2, vocab_size=50, n_positions=32),
    **{
        name: build_config(name)
        for name in ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss")
    },
}
LAYER = "model.layers.{}."


def anatomy(name: str, rules: Path | None = None) -> Anatomy:
    return anatomy_of(read_inventory(CONFIGS[name]), load_families(rules))


def between(source: str, target: str, pairs=((0, 0), (1, 1)), rules: Path | None = None) -> Correspondence:
    return build_correspondence(anatomy(source, rules), anatomy(target, rules), pairs)


def carried(graph: Correspondence, name: str) -> list[str]:
    return [target.label for unit in graph.source.units_of(name) for target, _ in graph.targets_of(unit)]


def test_principal_carries_to_all_members():
    to_qwen3, to_qwen2 = between("llama", "qwen3", [(0, 0), (1, 2)]), between("llama", "qwen2")
    (query,) = to_qwen3.source.units_of("model.layers.1.self_attn.q_proj.weight")
    assert [(target.name, rule) for target, rule in to_qwen3.targets_of(query)] == [
        ("model.layers.2.self_attn.q_proj.weight", "llama.yaml:8 → qwen3.yaml:7"),
        ("model.layers.2.self_attn.q_norm.weight", "llama.yaml:8 → qwen3.yaml:7 (expand)"),
    ]
    assert carried(to_qwen2, "model.layers.0.self_attn.q_proj.weight") == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
    ]
    assert carried(to_qwen2, "model.layers.0.self_attn.o_proj.weight") == ["model.layers.0.self_attn.o_proj.weight"]


def test_satellite_carries_to_the_same_satellite_or_is_dropped():
    graph = between("qwen2", "llama_bias")
    assert carried(graph, "model.layers.0.self_attn.q_proj.bias") == ["model.layers.0.self_attn.q_proj.bias"]
    (bias,) = graph.target.units_of("model.layers.0.self_attn.q_proj.bias")
    assert [(source.name, rule) for source, rule in graph.sources_of(bias)] == [
        ("model.layers.0.self_attn.q_proj.weight", "qwen2.yaml:7 → llama.yaml:8 (expand)"),
        ("model.layers.0.self_attn.q_proj.bias", "qwen2.yaml:7 → llama.yaml:8"),
    ]
    graph = between("qwen3", "qwen2", [(0, 0), (1, 1)])
    (norm,) = graph.source.units_of("model.layers.0.self_attn.q_norm.weight")
    assert graph.targets_of(norm) == [] and graph.dropped[norm] == "attention.query of qwen2 has no 'norm'"


def test_expansion_can_be_switched_off_by_either_family(tmp_path):
    members = "attention.query: {members: [self_attn.q_proj.weight, %s], expand: false}\n"
    for family, satellite in (("qwen2", "self_attn.q_proj.bias"), ("llama", '"self_attn.q_proj.bias?"')):
        path = tmp_path / f"{family}.yaml"
        head = f"family: {family}\nmodel_types: [{family}]\nextends: {family}\ncomponents:\n  "
        path.write_text(head + members % satellite, encoding="utf-8")
        graph = between("llama", "qwen2", rules=path)
        query, key = LAYER.format(0) + "self_attn.q_proj.", LAYER.format(0) + "self_attn.k_proj."
        assert carried(graph, query + "weight") == [query + "weight"]
        assert carried(graph, key + "weight") == [key + "weight", key + "bias"]
        (bias,) = graph.target.units_of(query + "bias")
        expected = "attention.query of llama has no 'bias', and expansion is switched off"
        assert graph.unreached[bias] == expected
        assert carried(between("qwen2", "llama_bias", rules=path), query + "bias") == [query + "bias"]


def test_tied_head():
    graph = between("llama", "llama_tied")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert carried(graph, name) == ["model.embed_tokens.weight"]
    assert [unit.component for unit in graph.target.units_of("lm_head.weight")] == ["embedding", "head"]
    back = between("llama_tied", "llama")
    assert carried(back, "model.embed_tokens.weight") == ["model.embed_tokens.weight", "lm_head.weight"]
    first = back.to_payload()["parameters"][0]
    assert (first["name"], first["components"]) == ("model.embed_tokens.weight", ["embedding", "head"])
    assert [target["name"] for target in first["targets"]] == ["model.embed_tokens.weight", "lm_head.weight"]
    (once,) = between("llama_tied", "llama_tied").to_payload()["parameters"][0]["targets"]
    assert once == {
        "name": "model.embed_tokens.weight",
        "rule": "llama.yaml:17 → llama.yaml:17; llama.yaml:19 → llama.yaml:19",
    }


def short(labels: list[str]) -> list[str]:
    return [label.partition("layers.")[2].partition(".")[2] for label in labels]


def test_a_dense_mlp_meets_all_experts_and_the_shared_one():
    graph = between("llama", "qwen2_moe", [(0, 0), (1, 1)])  # layer 1 of that one is dense
    gate = "model.layers.{}.mlp.gate_proj.weight"
    assert short(carried(graph, gate.format(0))) == [
        "mlp.experts.gate_up_proj[:, 0:24]",
        "mlp.shared_expert.gate_proj.weight",
    ]
    assert short(carried(graph, gate.format(1))) == ["mlp.gate_proj.weight"]
    back = between("qwen2_moe", "llama", [(0, 0), (1, 1)])
    assert short(carried(back, "model.layers.0.mlp.experts.gate_up_proj")) == [
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
    ]
    (shared,) = back.source.units_of("model.layers.0.mlp.shared_expert.gate_proj.weight")
    (router,) = back.source.units_of("model.layers.0.mlp.gate.weight")
    assert back.dropped[shared] == "mlp.gate of llama has no 'shared'"
    assert back.dropped[router] == "llama has no mlp.router"
