"""Estimates against what is really held: by autograd, tensor for tensor, and by DeepSpeed, byte for byte."""

import gc

import pytest
import torch

from tests.engine.made_up import make_task, settings
from tests.tiny_models import build_config, build_model
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.data.examples import Example, TaskData
from trace_transfer.engine.distributed import collect_garbage, open_ranks
from trace_transfer.engine.engine import open_engine
from trace_transfer.engine.estimates import activations, estimate
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.optimizers import treatments
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.registry import load_families
from trace_transfer.models.sources import ModelSource, inventory_of, numel

NO_DROPOUT = {"gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}}
FAMILIES = {  # gates, post-norms, fused weights, no gate
    "llama": "bfloat16", "gemma3_text": "float32", "olmo2": "bfloat16", "gpt2": "float32",
}  # fmt: skip
REGISTRY = load_families()
DOWN = "model.layers.2.mlp.down_proj.weight"
BYTES = {"float32": 4, "bfloat16": 2}


def opened(family: str, **changes: object):
    model = build_model(build_config(family, **{**NO_DROPOUT.get(family, {}), **changes})).train()
    return model, anatomy_of(inventory_of(model), REGISTRY)


def mask_of(anatomy, *components: str, layers: tuple[int | None, ...]) -> Mask:
    return Mask({u.name: None for u in anatomy.units if u.component in components and u.layer in layers})


def texts(number: int, length: int, supervised: int) -> TaskData:
    """Of one length, of which the last so many tokens are learned from."""
    ids = tuple(range(1, length + 1))
    labels = (-100,) * (length - supervised) + ids[length - supervised :]
    return TaskData("t", tuple(Example(f"t:{n}", ids, labels) for n in range(number)), number, 0, 0, "plain", "")


def kept_by_autograd(model, ids_bt) -> int:
    """Bytes of all storages, but for parameters, that autograd holds for the backward pass."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(input_ids=ids_bt, use_cache=False).logits.float().flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))
    return sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in parameters)


@pytest.mark.parametrize(("family", "precision"), FAMILIES.items())
def test_activations_are_about_what_autograd_keeps(family, precision):
    """Of a mask, each layer from the lowest trained one on counts as if it were trained whole."""
    model, anatomy = opened(family)
    model, itemsize = model.to(getattr(torch, precision)), BYTES[precision]
    masks = {
        "full": Mask.everything(anatomy.inventory.shapes),
        "down": mask_of(anatomy, "mlp.down", layers=(1,)),
        "attention": mask_of(anatomy, "attention.query", "attention.value", layers=(2,)),
        "norms": mask_of(anatomy, "norm.pre_mlp", "norm.post_mlp", "norm.final", layers=(1, 2, None)),
        "head": mask_of(anatomy, "head", layers=(None,)),
    }
    for kind, mask in masks.items():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(mask.trains(name))
        counted = kept_by_autograd(model, torch.ones(3, 32, dtype=torch.int64)) - 512 * 96 * 4
        found = activations(anatomy, mask, settings(), texts(3, 32, 1), itemsize) - 3 * 512 * {4: 8, 2: 10}[itemsize]
        if kind == "head" and not anatomy.inventory.tied:
            assert found == 0  # only what enters the head is kept
        else:
            assert 0.8 <= found / counted <= (1.35 if kind == "full" else 3), (kind, found / counted)


def held_on_cpu() -> int:
    """Bytes of all tensors, but for those on the meta device, which all claim one place.

    Python knows a gradient only if somebody has asked for it: so all are asked for.
    """
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter) and one.is_cpu]
    tensors += [one.grad for one in tensors if one.is_leaf and one.grad is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def by_hand(mask: Mask, anatomy, zero: int, precision: str, num_ranks: int = 1, **options: object):
    return estimate(
        anatomy, mask, settings(zero=zero, **options), make_task(21), num_ranks=num_ranks, precision=precision,
        describe=anatomy.describe, patch_itemsize=2 + 4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("zero", "precision", "kind"),
    [(0, "float32", "part"), (1, "bfloat16", "full"), (2, "float32", "slice"), (3, "bfloat16", "part")],
)
def test_memory_is_what_deepspeed_holds(tiny, zero, precision, kind):
    place = tiny("llama", hidden_size=96, intermediate_size=384)
    before = held_on_cpu()
    with open_ranks() as ranks:
        model = BaseModel(ModelSource.parse(place)).load(getattr(torch, precision))
        anatomy = anatomy_of(inventory_of(model), REGISTRY)
        shapes = anatomy.inventory.shapes
        mask = {
            "full": Mask.everything(shapes),
            "part": Mask({name: None for name in shapes if "down_proj" in name}),
            "slice": Mask({DOWN: Slice(0, ((0, 40), (50, 60)))}),
        }[kind]
        found = by_hand(mask, anatomy, zero, precision)
        treated = treatments(mask.trained_shapes(shapes), settings())
        with open_engine(model, settings(zero=zero), ranks, mask, treated) as built:
            for _ in range(2):  # the first has no moments yet
                built.backward(built.loss(make_task().examples[:1]), True)
                held = held_on_cpu() - before
                built.step(1e-3)
        del model, built
    collect_garbage()
    expected = found.parameters + found.gradients + found.optimizer
    lowest = expected + found.buffers if zero == 3 else expected  # there they are kept all the time
    assert 0.99 * lowest <= held <= 1.01 * (expected + found.buffers)


def test_what_ranks_share_and_what_lies_on_the_host():
    """Measured with two ranks on DeepSpeed 0.19.8: 8·T from ZeRO 2 on, beside the parameters."""
    _, anatomy = opened("llama")
    mask = mask_of(anatomy, "mlp.up", "attention.output", layers=(1, 2))
    trained, whole = mask.numel(anatomy.inventory.shapes), anatomy.inventory.num_elements
    for zero, gradients, optimizer in ((1, 6, 3), (2, 1, 3), (3, 1, 3)):
        found = by_hand(mask, anatomy, zero, "bfloat16", 4)
        assert (found.gradients, found.optimizer) == (gradients * trained, optimizer * trained)
        assert found.parameters == 2 * whole  # with ZeRO 3, too: all of a tiny model's are small ones
    json = {"zero_optimization": {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": "auto"}}
    found = by_hand(mask, anatomy, 3, "bfloat16", 4, deepspeed=json)
    assert found.parameters == pytest.approx(whole / 2, rel=1e-3)
    assert found.buffers == 4 * trained + 2 * whole
    json["zero_optimization"] |= {"stage3_max_live_parameters": 1000, "reduce_bucket_size": 50}
    largest = max(map(numel, anatomy.inventory.shapes.values()))
    assert by_hand(mask, anatomy, 3, "bfloat16", 4, deepspeed=json).buffers == 4 * 50 + 2 * largest
    offloads = ("none", "optimizer", "parameters")
    plain, optimizer, both = (by_hand(mask, anatomy, 3, "float32", 2, offload=offload) for offload in offloads)
    assert (plain.num_parameters, plain.num_elements, plain.num_steps) == (4, trained, 3)
    assert (plain.checkpoint, plain.patch) == (12 * trained, (2 + 4) * trained)
    assert (plain.host, optimizer.optimizer, optimizer.gradients) == (0, 0, 0)
    assert optimizer.host == plain.optimizer + plain.gradients
    assert (both.host, both.parameters) == (optimizer.host + plain.parameters, 0)
