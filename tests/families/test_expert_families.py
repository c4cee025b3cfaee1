"""Families with experts or latent attention: what a model computes shows that the parts are what they are called."""

import importlib

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import build_config
from trace_transfer.families.anatomy import Anatomy, Unit
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import inventory_of

REGISTRY = load_families()
EXPERTS = ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "granitemoe"]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
FLOAT32 = {"rtol": 1e-4, "atol": 1e-6}  # the norm of a latent is computed in float32


def opened(model_type: str, **settings) -> tuple[torch.nn.Module, Anatomy]:
    """The family's tiny model in float64, every tensor random, the plain code for attention and experts."""
    torch.manual_seed(0)
    config = build_config(model_type, **settings)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model, anatomy_of(inventory_of(model), REGISTRY)


def of_layer(anatomy: Anatomy, layer: int, component: str, inside: str = "") -> list[Unit]:
    return [u for u in anatomy.units if (u.layer, u.component) == (layer, component) and inside in u.name]


def scaled(model: torch.nn.Module, unit: Unit, factor: float) -> None:
    """Multiply what the unit says is its own, in place."""
    along = model.get_parameter(unit.name).data.movedim(unit.dim or 0, 0)
    for start, stop in unit.ranges or ((0, len(along)),):
        along[start:stop] *= factor


@pytest.mark.parametrize("model_type", EXPERTS)
def test_gate_and_up_of_experts(model_type):
    """What an expert gives is activation(gate) × (up, or up + 1): affine in up and not in gate, zero where gate is."""
    model, anatomy = opened(model_type)
    last = anatomy.num_layers - 1
    parts = {name: of_layer(anatomy, last, name, ".experts.") for name in ("mlp.gate", "mlp.up", "mlp.down")}
    assert [units[0].principal for units in parts.values()] == [True] * 3
    experts = model.get_submodule(parts["mlp.down"][0].name.rpartition(".")[0])
    states, weights = torch.randn(7, 48, dtype=torch.float64) / 4, torch.rand(7, 2, dtype=torch.float64)
    chosen = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3], [2, 0]])
    for unit in parts["mlp.down"]:
        if unit.role == "bias":
            scaled(model, unit, 0)

    def outputs(component: str) -> list[torch.Tensor]:
        """With the weights and biases of a component as they are, twice and three times as large."""
        found = []
        with torch.no_grad():
            for factor in (1, 2, 3 / 2):
                for unit in parts[component]:
                    scaled(model, unit, factor)
                found.append(experts(states, chosen, weights))
            for unit in parts[component]:
                scaled(model, unit, 1 / 3)
        return found

    once, twice, thrice = outputs("mlp.up")
    torch.testing.assert_close(twice - once, thrice - twice, **CLOSE)
    assert (twice - once).abs().min() > 1e-6
    once, twice, thrice = outputs("mlp.gate")
    assert not torch.allclose(twice - once, thrice - twice, rtol=1e-2)
    for unit in parts["mlp.gate"]:
        scaled(model, unit, 0)
    assert experts(states, chosen, weights).abs().max() == 0


@pytest.mark.parametrize("model_type", ["qwen2_moe", "deepseek_v2", "deepseek_v3"])
def test_shared_experts_are_asked_by_every_token(model_type):
    """Where all experts give nothing, the MLP gives what the shared one gives: nothing without any of its parts."""
    model, anatomy = opened(model_type)
    last, given = anatomy.num_layers - 1, []
    model.get_submodule(f"model.layers.{last}.mlp").register_forward_hook(lambda _, args, out: given.append(out))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        for unit in of_layer(anatomy, last, "mlp.down", ".experts."):
            scaled(model, unit, 0)
        model(ids)
        for component in ("mlp.gate", "mlp.up", "mlp.down"):
            (shared,) = [unit for unit in of_layer(anatomy, last, component) if unit.role == "shared"]
            before = model.get_parameter(shared.name).data.clone()
            scaled(model, shared, 0)
            model(ids)
            model.get_parameter(shared.name).data.copy_(before)
    assert given[0].abs().amax(dim=-1).min() > 1e-6
    assert all(output.abs().max() == 0 for output in given[1:])


LATENT = {
    "deepseek_v2": {"qk_nope_head_dim": 10, "v_head_dim": 14, "attention_bias": True},  # queries without a latent
    "deepseek_v3": {"qk_nope_head_dim": 10, "v_head_dim": 14, "rope_interleave": False},
}


@pytest.mark.parametrize("model_type", LATENT)
def test_latent_parts_make_query_key_and_value(model_type, monkeypatch):
    """At position 0 rotation is the identity, so what enters attention there can be made from the parts."""
    modelling = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    seen, inputs = [], []
    original = modelling.eager_attention_forward

    def spy(module, query, key, value, *args, **kwargs):
        seen.append(
            {"attention.query": query[0, :, 0], "attention.key": key[0, :, 0], "attention.value": value[0, :, 0]}
        )
        return original(module, query, key, value, *args, **kwargs)

    monkeypatch.setattr(modelling, "eager_attention_forward", spy)
    model, anatomy = opened(model_type, **LATENT[model_type])
    attention = model.model.layers[1].self_attn
    attention.kv_a_proj_with_mqa.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0, 0]))
    with torch.no_grad():
        model(torch.tensor([[3, 1, 4, 1, 5]]))

    def cut(component: str, role: str) -> torch.Tensor:
        (unit,) = [unit for unit in of_layer(anatomy, 1, component) if unit.role == role]
        tensor = model.get_parameter(unit.name).detach()
        return torch.cat([tensor[start:stop] for start, stop in unit.ranges or ((0, len(tensor)),)])

    def normalised(vector: torch.Tensor, component: str) -> torch.Tensor:
        scale = (vector.square().mean() + attention.kv_a_layernorm.variance_epsilon).rsqrt()
        return cut(component, "latent_norm") * vector * scale

    def projected(role: str, component: str) -> torch.Tensor:
        return cut(component, role) @ inputs[0] + (cut(component, f"{role}_bias") if model_type == "deepseek_v2" else 0)

    for component in ("attention.key", "attention.value"):
        latent = normalised(projected("latent", component), component)
        heads = (cut(component, "weight") @ latent).unflatten(0, (6, -1))
        if component == "attention.key":
            heads = torch.cat([heads, projected("rotated", component).expand(6, -1)], dim=1)
        torch.testing.assert_close(seen[1][component], heads, **FLOAT32)
    source = inputs[0]
    if model_type == "deepseek_v3":
        source = normalised(cut("attention.query", "latent") @ source, "attention.query")
    queries = (cut("attention.query", "weight") @ source).unflatten(0, (6, -1))
    torch.testing.assert_close(seen[1]["attention.query"], queries, **FLOAT32)
