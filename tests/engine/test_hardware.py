"""Arithmetic of a training against what torch counts operation by operation; peaks by name, never by likeness."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny_models import build_config, build_model
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.engine.estimates import flops_per_token, lowest_layer, peak_flops
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import inventory_of

FAMILIES = ["llama", "gemma3_text", "phi3", "gpt2"]
REGISTRY = load_families()
LENGTH = 24


def opened(family: str):
    model = build_model(build_config(family, attn_implementation="eager")).train()
    return model, anatomy_of(inventory_of(model), REGISTRY)


def counted(model, trained) -> float:
    """Operations per token, as torch counts them."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    ids_bt = torch.ones(2, LENGTH, dtype=torch.int64)
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=ids_bt, use_cache=False).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return (forward.get_total_flops() + backward.get_total_flops()) / ids_bt.numel()


def masks(anatomy) -> dict[str, Mask]:
    """Everything; and whole components, in layers that leave some below."""

    def of(*components: str, layers: tuple[int | None, ...]) -> Mask:
        return Mask({u.name: None for u in anatomy.units if u.component in components and u.layer in layers})

    return {
        "full": Mask.everything(anatomy.inventory.shapes),
        "down": of("mlp.down", layers=(1,)),
        "attention": of("attention.query", "attention.key", "attention.value", layers=(2,)),
        "scattered": of("mlp.up", "attention.output", layers=(1, 2)),
        "norms": of("norm.pre_mlp", "norm.post_mlp", "norm.final", layers=(1, 2, None)),
        "embedding": of("embedding", layers=(None,)),
        "head": of("head", layers=(None,)),
    }


@pytest.mark.parametrize("kind", ["full", "down", "attention", "scattered", "norms", "embedding", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_as_torch_counts(family, kind):
    """Where only some of a layer is trained, at most the lowest layer is counted too much."""
    model, anatomy = opened(family)
    mask = masks(anatomy)[kind]
    expected = counted(model, mask.parts)
    found = flops_per_token(anatomy, mask, LENGTH)
    layer = sum(2 * u.num_elements for u in anatomy.units if u.layer == 1 and len(u.shape) > 1) + 8 * LENGTH * 192
    assert 0.996 * expected <= found <= 1.004 * expected + (0 if kind in ("full", "embedding", "head") else layer)


def test_full_fine_tuning_is_six_per_weight():
    _, anatomy = opened("llama")
    mask = Mask.everything(anatomy.inventory.shapes)
    weights = sum(u.num_elements for u in anatomy.units if len(u.shape) == 2 and u.component != "embedding")
    assert flops_per_token(anatomy, mask, 10) == 6 * weights + 12 * 10 * 96 * 4


def test_of_experts_those_count_that_a_token_is_given_to():
    model, anatomy = opened("qwen3_moe")
    active = 0.0
    for name, weight in model.named_parameters():
        if weight.dim() == 3:
            active += weight.numel() * 3 / 6
        elif weight.dim() == 2 and "embed" not in name:
            active += weight.numel()
    mask = Mask.everything(anatomy.inventory.shapes)
    assert flops_per_token(anatomy, mask, 10) == pytest.approx(6 * active + 12 * 10 * 96 * 4)


def test_latent_queries_are_as_wide_as_their_heads():
    _, anatomy = opened("deepseek_v3")
    mask = Mask.everything(anatomy.inventory.shapes)
    long, short = (flops_per_token(anatomy, mask, length) for length in (11, 10))
    assert long - short == pytest.approx(12 * 4 * 6 * (12 + 8))  # layers, heads, width of a head


def test_a_slice_costs_what_its_tensor_costs():
    _, anatomy = opened("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    assert flops_per_token(anatomy, Mask({name: Slice(0, ((0, 3),))}), 8) == flops_per_token(
        anatomy, Mask({name: None}), 8
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_where_the_backward_pass_ends(family):
    _, anatomy = opened(family)
    top = anatomy.num_layers
    for kind, layer in (("full", -1), ("down", 1), ("attention", 2), ("embedding", -1)):
        assert lowest_layer(anatomy, masks(anatomy)[kind]) == layer
    assert lowest_layer(anatomy, masks(anatomy)["head"]) == (-1 if anatomy.inventory.tied else top)
    assert lowest_layer(anatomy, Mask({"not.placed": None})) == -1


@pytest.mark.parametrize(
    ("name", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5, 67), ("NVIDIA H100 PCIe", 756, 51), ("NVIDIA H100 NVL", 835.5, 60),
        ("NVIDIA H200", 989.5, 67), ("NVIDIA B200", 2250, 75), ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100-PCIE-40GB", 312, 19.5), ("NVIDIA A100 80GB PCIe", 312, 19.5), ("NVIDIA A10G", 70, 35),
        ("NVIDIA A10", 125, 31.2), ("NVIDIA L4", 121, 30.3), ("NVIDIA L40S", 362.05, 91.6), ("Tesla T4", None, 8.1),
        ("Tesla V100-SXM2-16GB", None, 15.7), ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA RTX 6000 Ada Generation", 364.2, 91.1), ("NVIDIA GH200 480GB", 989.5, 67),
        ("AMD Instinct MI300X", 1307.4, 163.4), ("NVIDIA H100 PCIe MIG 1g.10gb", None, None),
        # never a guess
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None), ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None, None),
        ("NVIDIA L400", None, None), ("NVIDIA GeForce RTX 4080 SUPER", None, None), ("H1000", None, None),
        ("cpu", None, None), ("", None, None),
    ],
)  # fmt: skip
def test_peaks(name, bfloat16, float32):
    for precision, number in (("bfloat16", bfloat16), ("float32", float32)):
        assert peak_flops(name, precision) == (None if number is None else pytest.approx(number * 1e12))
