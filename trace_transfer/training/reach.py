"""How far down a backward pass goes: gradients stop at the lowest trained parameter, in the order of the data flow."""

from __future__ import annotations

from typing import Any

from trace_transfer.anatomy import Anatomy, Unit
from trace_transfer.masks import Mask

Place = tuple[int, float]  # the layer, −1 below all and their number above; within it the order of the data flow

BELOW: Place = (-1, 0)
ATTENTION, MLP = 1, 5  # where queries, keys and values, gate and up read their input
# Component → its place within the layer; what reads the same input stands at the same place.
WITHIN = {
    "norm.pre_attention": 0, "attention.query": ATTENTION, "attention.key": ATTENTION, "attention.value": ATTENTION,
    "attention.output": 2, "norm.post_attention": 3, "norm.pre_mlp": 4, "mlp.gate": MLP, "mlp.up": MLP,
    "mlp.router": MLP, "mlp.down": 6, "norm.post_mlp": 7,
}  # fmt: skip
ABOVE = {"norm.final": 0, "head": 1}


def place_of(unit: Unit, num_layers: int) -> Place:
    """Where a unit stands; what is not known to be higher stands below all."""
    if unit.layer is not None:
        return unit.layer, WITHIN.get(unit.component, 0)
    return (num_layers, ABOVE[unit.component]) if unit.component in ABOVE else BELOW


def lowest_trained(anatomy: Anatomy, mask: Mask) -> Place:
    """Where the backward pass ends. A tied head is as low as the embedding; so is what no rule places."""
    places = [
        min((place_of(unit, anatomy.num_layers) for unit in anatomy.units_of(name)), default=BELOW)
        for name in mask.parts
    ]
    return min(places, default=(anatomy.num_layers, len(ABOVE)))


def active_share(unit: Unit, config: Any) -> float:
    """Which share of a weight a token is multiplied with: of fused experts [experts, …] those that it is given to.

    Args:
        config: the text model's.
    """
    chosen = getattr(config, "num_experts_per_tok", None)
    return min(1.0, chosen / unit.shape[0]) if chosen and len(unit.shape) > 2 else 1.0
