"""The shipped families against transformers: each covers its model, at real sizes, and pairs with each other one."""

from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from tests.tiny_models import REPRESENTATIVES
from trace_transfer.families.application import Anatomy, anatomy_of
from trace_transfer.families.correspondence import build_correspondence
from trace_transfer.families.language import LAYER_COMPONENTS, OUTSIDE_COMPONENTS
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import ModelSource, load_config, part_numel, read_inventory

CONFIGS = Path(__file__).parents[1] / "configs"
REGISTRY = load_families()
MODEL_TYPES = sorted(REGISTRY.by_model_type)

# What a config can switch on or off in the names of a family: each switch once, where most depends on it.
VARIANTS = {
    "llama": [{"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True}],
    "phi3": [{"num_key_value_heads": 8}],
    "gpt2": [{"tie_word_embeddings": False}],
    "gpt_neox": [{"attention_bias": False}, {"use_parallel_residual": False}],
    "qwen2_moe": [{"qkv_bias": False}, {"decoder_sparse_step": 2}],
    "deepseek_v2": [
        {"first_k_dense_replace": 1, "q_lora_rank": None},
        {"first_k_dense_replace": 2, "attention_bias": True, "mlp_bias": True},
    ],
    "deepseek_v3": [{"q_lora_rank": None}, {"first_k_dense_replace": 0}],
    "gpt_oss": [{"attention_bias": False}],
    "phi": [{"qk_layernorm": True}],
    "falcon": [
        {"new_decoder_architecture": True, "num_attention_heads": 64, "hidden_size": 4096, "num_kv_heads": 8},
        {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "bias": True},
        {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
    ],
    "opt": [
        {"word_embed_proj_dim": 512, "do_layer_norm_before": False},
        {"enable_bias": False},
        {"layer_norm_elementwise_affine": False, "tie_word_embeddings": False},
    ],
    "starcoder2": [{"use_bias": False}],
    "gpt_bigcode": [{"multi_query": False}],
    "cohere": [{"use_qk_norm": True, "num_key_value_heads": 8}],
    "stablelm": [{"use_qkv_bias": True}, {"use_parallel_residual": True, "qk_layernorm": True}],
    "seed_oss": [{"attention_bias": False}, {"attention_out_bias": True, "mlp_bias": True}],
    "apertus": [{"attention_bias": True, "hidden_act": "silu"}],
    "ernie4_5": [{"use_bias": True}],
}
CASES = [(kind, {}) for kind in MODEL_TYPES] + [(kind, case) for kind, cases in VARIANTS.items() for case in cases]


# What a default config of transformers lacks for a model to be built from it.
DEFAULTS: dict[str, dict[str, object]] = {
    "nemotron": {"num_key_value_heads": 8},
    "ministral": {"head_dim": 128, "num_key_value_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 128, "num_key_value_heads": 8},
}


def default_config(model_type: str, **settings) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **{**DEFAULTS.get(model_type, {}), **settings})


def anatomy(model_type: str, num_layers: int = 6, **settings) -> Anatomy:
    """The default model, some fields of its config changed, with a few of its layers: of both kinds if it has two."""
    key = model_type, num_layers, str(settings)
    if key not in ANATOMIES:
        config = default_config(model_type, **settings)
        config.get_text_config().num_hidden_layers = num_layers
        ANATOMIES[key] = anatomy_of(read_inventory(config), REGISTRY)
    return ANATOMIES[key]


ANATOMIES: dict[tuple[str, int, str], Anatomy] = {}


@pytest.mark.parametrize(("model_type", "settings"), CASES)
def test_every_family_covers_its_model_once_and_its_layers_are_alike(model_type, settings):
    """The sweep over all: elements are covered once, units in model order, one principal, no role twice."""
    found = anatomy(model_type, **settings)
    shapes, covered = found.inventory.shapes, dict.fromkeys(found.inventory.shapes, 0)
    components: dict[tuple, set[str]] = {}
    members: dict[tuple, dict[str, bool]] = {}  # `{n}` is one member of several tensors
    layers: dict[int, list[tuple]] = {}
    for unit in found.units:
        assert unit.component in (OUTSIDE_COMPONENTS if unit.layer is None else LAYER_COMPONENTS)
        components.setdefault(unit.place, set()).add(unit.component)
        members.setdefault((unit.component, unit.layer), {})[unit.rule + unit.role] = unit.principal
        name = unit.name.removeprefix(f"{found.layer_path}.{unit.layer}.")
        layers.setdefault(unit.layer, []).append((name, unit.component, unit.role, unit.rule))
    for (name, *ranges), several in components.items():
        covered[name] += part_numel(shapes[name], *ranges)
        if name in found.inventory.tied.values():
            assert several == {"embedding", "head"}
        elif len(several) > 1:
            assert several <= SHARED[model_type], name
    for name, reason in found.excluded.items():
        assert reason.endswith(")") and covered[name] == 0
        covered[name] = torch.Size(shapes[name]).numel()
    assert covered == {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    for one in members.values():
        assert [*one.values()].count(True) == 1
        assert len({rule.partition(":")[2].lstrip("0123456789") for rule in one}) == len(one)  # roles
    order = {name: index for index, name in enumerate(shapes)}
    places = [order[unit.name] for unit in found.units]
    assert places == sorted(places) and len(set(found.units)) == len(found.units)
    outside = layers.pop(None)
    assert outside and sorted(layers) == list(range(found.num_layers))
    kinds = {tuple(layer) for layer in layers.values()}
    two = model_type == "deepseek_v3" or not TWO_KINDS.isdisjoint(settings)
    assert len(kinds) == (2 if two and settings.get("first_k_dense_replace") != 0 else 1)
    assert found.num_layers == found.inventory.config.get_text_config().num_hidden_layers


# Components that have a tensor in common.
SHARED = {kind: {"attention.key", "attention.value"} for kind in ("deepseek_v2", "deepseek_v3")}
ONE_NORM = ("phi", "falcon", "cohere", "cohere2", "stablelm", "gptj", "codegen")
SHARED |= {kind: {"norm.pre_attention", "norm.pre_mlp"} for kind in ONE_NORM}
TWO_KINDS = {"mlp_only_layers", "decoder_sparse_step", "first_k_dense_replace"}  # settings that make some layers dense


# Directory of the config → tensors at run time, parts of them, elements, and the published number in billions.
FULL_SIZE = {
    "llama-3-8b": (291, 291, 8_030_261_248, "8.0"),
    "qwen2.5-14b": (579, 579, 14_770_033_664, "14.8"),
    "qwen3-32b": (707, 707, 32_762_123_264, "32.8"),
    "mixtral-8x7b": (291, 323, 46_702_792_704, "46.7"),
    "qwen1.5-moe-a2.7b": (387, 411, 14_315_784_192, "14.3"),
    "qwen3-30b-a3b": (531, 579, 30_532_122_624, "30.5"),
    "deepseek-v2-lite": (351, 431, 15_706_484_224, "15.7"),
    "deepseek-v3": (909, 1089, 671_026_404_352, "671"),
    "gpt-oss-20b": (411, 459, 20_914_757_184, "20.9"),
    "granite-3.0-1b-a400m": (218, 242, 1_334_628_352, "1.3"),
    "olmoe-1b-7b": (179, 195, 6_919_161_856, "6.9"),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_models(name):
    found = anatomy_of(read_inventory(load_config(ModelSource.parse(CONFIGS / name))), REGISTRY)
    parts = {unit.place: unit.num_elements for unit in found.units}
    tensors, num_parts, elements, published = FULL_SIZE[name]
    assert (len(found.inventory.shapes), len(parts)) == (tensors, num_parts)
    assert sum(parts.values()) == found.inventory.num_elements == elements
    digits = len(published.partition(".")[2])
    assert f"{elements / 1e9:.{digits}f}" == published


def test_pairs_of_families_are_total():
    """Of all families with those that stand for a structure each, both ways."""
    known, chosen = ([anatomy(kind, num_layers=4) for kind in kinds] for kinds in (MODEL_TYPES, REPRESENTATIVES))
    for source, target in [*product(known, chosen), *product(chosen, known)]:
        graph = build_correspondence(source, target, [(0, 0), (1, 3), (3, 3)])  # layers without a partner on both sides
        for units, without, edges in (
            (source.units, graph.dropped, graph.targets_of),
            (target.units, graph.unreached, graph.sources_of),
        ):
            for unit in units:
                assert bool(edges(unit)) != (unit in without), (source.family, target.family, unit)
                assert unit.layer != 2 or unit in without
