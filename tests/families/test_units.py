"""Heads and neurons: what a model computes shows that the cuts are where its heads and neurons are."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_models import build_config
from trace_transfer.errors import ModelError
from trace_transfer.families.anatomy import splits_of, transposed_names, unit_kinds, unit_parts
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import build_meta_model, inventory_of, part_numel

REGISTRY = load_families()
FAMILIES = ["llama", "mistral", "qwen2", "olmo2", "phi3", "gpt2", "gpt_neox"]  # grouped, one key, fused, transposed
EXPERTS = ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss"]
SMALL = {"vocab_size": 50, "num_hidden_layers": 2}


def cut(config, transposed=None):
    """Anatomy and splits of a config, and which weights are stored [in, out]."""
    model = build_meta_model(config)
    names = transposed_names(model) if transposed is None else transposed
    anatomy = anatomy_of(inventory_of(model), REGISTRY)
    return anatomy, splits_of(anatomy, config, names.__contains__)


def units_by_component(anatomy, splits, layer):
    """Component → the k-th list holds its k-th unit in each of the layer's split tensors: (name, rows, columns)."""
    found = {}
    for name, split in splits.items():
        unit = anatomy.units_of(name)[0]
        residual = unit.component in ("attention.output", "mlp.down") and len(unit.shape) == 1
        if unit.layer != layer or unit.role == "norm" or residual:
            continue
        seen = {}
        kinds = unit_kinds(anatomy, name, split)
        for kind, (rows, columns) in zip(kinds, unit_parts(anatomy.inventory.shapes[name], split), strict=True):
            index = seen[kind] = seen.get(kind, -1) + 1
            units = found.setdefault(kind, [])
            units.extend([] for _ in range(index + 1 - len(units)))
            units[index].append((name, rows, columns))
    return found


def logits_without(model, units):
    """What the model says when these units are zero; the model is left as it was."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name, _, _ in units}
    with torch.no_grad():
        for name, rows, columns in units:
            for start, stop in rows or columns:
                where = slice(start, stop) if rows else (slice(None), slice(start, stop))
                parameters[name][where] = 0
        found = model(torch.arange(1, 13)[None]).logits
        for name, values in before.items():
            parameters[name].copy_(values)
    return found


def opened(directory, layer):
    """A tiny model in float64, and the units of one of its layers by component."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    anatomy, splits = cut(model.config)
    return model, units_by_component(anatomy, splits, layer % anatomy.num_layers)


@pytest.fixture(params=FAMILIES)
def case(request, tiny):
    return request.param, *opened(tiny(request.param), 1)


@pytest.fixture(params=EXPERTS)
def expert_case(request, tiny):
    return request.param, *opened(tiny(request.param), -1)  # the last layer has experts in all of them


def whole_key_value_heads(found, model, component):
    """Units of queries or outputs by the key-value head that they share; a single key-value head is not cut."""
    heads = found[component]
    groups = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    size = len(heads) // groups
    return [[unit for head in heads[g * size : (g + 1) * size] for unit in head] for g in range(groups)]


def check_values(family, model, found):
    outputs = whole_key_value_heads(found, model, "attention.output")
    assert len(found["attention.output"]) == model.config.num_attention_heads
    if family == "mistral":
        assert "attention.value" not in found
        return
    assert len(found["attention.value"]) == len(outputs)
    usual = logits_without(model, [])
    for values, output in zip(found["attention.value"], outputs, strict=True):
        without = logits_without(model, values)
        assert torch.allclose(without, logits_without(model, output), atol=1e-9)
        assert not torch.allclose(without, usual, atol=1e-3)


def test_a_head_without_values_is_a_head_that_nobody_reads(case):
    check_values(*case)


def test_so_it_is_beside_experts_and_with_latent_attention(expert_case):
    check_values(*expert_case)


def test_an_expert_without_gate_and_up_is_one_that_nobody_reads(expert_case):
    _, model, found = expert_case
    fused = [[unit for unit in units if ".experts." in unit[0]] for units in found["mlp.gate+mlp.up"]]
    downs = [[unit for unit in units if ".experts." in unit[0]] for units in found["mlp.down"] if units]
    assert len(fused) == len(found["mlp.router"])
    usual = logits_without(model, [])
    changed = []
    for expert, units in enumerate(fused):
        biases = [unit for unit in downs[expert] if unit[0].endswith("_bias")]
        without = logits_without(model, [*units, *biases])
        assert torch.allclose(without, logits_without(model, downs[expert]), atol=1e-9)
        changed.append(not torch.allclose(without, usual, atol=1e-6))
    assert any(changed)


def test_a_neuron_without_inputs_is_a_neuron_that_nobody_reads(case):
    _, model, found = case
    assert len(found["mlp.up"]) == len(found["mlp.down"])
    for neuron in (0, 7, len(found["mlp.up"]) - 1):
        without = logits_without(model, found["mlp.up"][neuron])
        assert torch.allclose(without, logits_without(model, found["mlp.down"][neuron]), atol=1e-9)
        if "mlp.gate" in found:
            assert torch.allclose(without, logits_without(model, found["mlp.gate"][neuron]), atol=1e-9)


@pytest.mark.parametrize("family", [*FAMILIES, *EXPERTS])
def test_units_tile_their_tensor_and_never_cross_a_component(family, tiny):
    anatomy, splits = cut(AutoConfig.from_pretrained(tiny(family)))
    for name, split in splits.items():
        shape = anatomy.inventory.shapes[name]
        parts = unit_parts(shape, split)
        touched = torch.zeros(shape, dtype=torch.int)
        for rows, columns in parts:
            assert (rows is None) != (columns is None)
            ((start, stop),) = rows or columns
            touched[slice(start, stop) if rows else (slice(None), slice(start, stop))] += 1
        assert (touched == 1).all()
        assert len(parts) > 1
        elements = dict.fromkeys(unit_kinds(anatomy, name, split), 0)
        for kind, (rows, columns) in zip(unit_kinds(anatomy, name, split), parts, strict=True):
            elements[kind] += part_numel(shape, rows, columns)
        units = anatomy.units_of(name)
        if len(units) > 1 and all(unit.dim is None for unit in units):  # tied or shared
            assert elements == {"+".join(unit.component for unit in units): torch.Size(shape).numel()}
        elif all(unit.dim in (None, split.dim) for unit in units):
            assert elements == {unit.component: unit.num_elements for unit in units}
        else:  # experts, each with gate and up
            assert elements == {"mlp.gate+mlp.up": torch.Size(shape).numel()}


def test_heads_of_keys_and_values_of_two_sizes_are_refused():
    expected = r"layers\.0\.self_attn\.kv_b_proj\.weight: its parts \(attention\.key\+attention\.value\) are cut"
    with pytest.raises(ModelError, match=expected):
        cut(build_config("deepseek_v3", v_head_dim=16))
