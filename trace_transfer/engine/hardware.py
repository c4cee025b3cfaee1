"""How much arithmetic a training takes, and how much a device can do at most.

A forward pass takes 2 operations (multiply, add) for each weight of a matrix product and token, and 4·s·d for the
attention of a layer over a text of s tokens with queries d wide (scores and weighted values; whole, as it is counted
commonly, although causal attention needs half). Looking up embeddings takes none, a head takes its product whether it
is tied or not. The backward pass takes as much again for the gradient of what enters a product, from the lowest layer
on in which something is trained, twice as much for attention, and as much again for the gradient of each trained
weight. All of it for full fine-tuning: 6 per weight and token plus 12·s·d per layer (Kaplan et al., 2020, section 2.1;
Chowdhery et al., 2022, PaLM, appendix B). What is computed twice (gradient checkpointing) counts once.

Of a layer's experts those count that a token is given to: `num_experts_per_tok` of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trace_transfer.core_sets.masks import Mask
from trace_transfer.families.anatomy import Anatomy, Unit

# Device name without its maker, memory and form → TFLOP/s in (bfloat16, float32) of dense matrix products, from the
# vendors' data sheets; bfloat16 accumulates in float32, float32 is not TF32. None where there is no native bfloat16.
PEAKS: Mapping[str, tuple[float | None, float]] = {
    "B200": (2250, 75), "GB200": (2500, 80),
    "H200": (989.5, 67), "H200 NVL": (835.5, 60),
    "H100": (989.5, 67), "H100 PCIe": (756, 51), "H100 NVL": (835.5, 60), "GH200": (989.5, 67),
    "H20": (148, 44),
    "A100": (312, 19.5), "A800": (312, 19.5), "A40": (149.7, 37.4), "A30": (165, 10.3), "A10": (125, 31.2),
    "A10G": (70, 35), "L40S": (362.05, 91.6), "L40": (181.05, 90.5), "L4": (121, 30.3),
    "V100": (None, 15.7), "T4": (None, 8.1),
    "RTX 6000 Ada Generation": (364.2, 91.1), "RTX A6000": (154.8, 38.7), "RTX A5000": (111.1, 27.8),
    "RTX A4000": (76.7, 19.2),
    "GeForce RTX 5090": (209.5, 104.8), "GeForce RTX 5080": (112.6, 56.3),
    "GeForce RTX 4090": (165.2, 82.6), "GeForce RTX 4080": (97.5, 48.7), "GeForce RTX 3090": (71, 35.6),
    "GeForce RTX 3090 Ti": (80, 40),
    "MI300X": (1307.4, 163.4), "MI325X": (1307.4, 163.4), "MI210": (181, 45.3),
}  # fmt: skip
_AROUND = re.compile(r"^(NVIDIA|AMD Instinct|Tesla)[ ]|[ -](SXM\d*|OAM|HBM\de?|\d+ ?GB)(?=[ -]|$)")
_PCIE = re.compile(r"[ -]PCIE?(?=[ -]|$)", re.IGNORECASE)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Operations per second of dense matrix products at most, by the vendor's data sheet; None where it is not known.

    Args:
        device_name: as `torch.cuda.get_device_name()` says it; `cpu` is not known.
        precision: `bfloat16` or `float32`.
    """
    name = device_name.strip()
    while (shorter := _AROUND.sub("", name)) != name:  # NVIDIA Tesla …
        name = shorter
    model = _PCIE.sub("", name)
    found = PEAKS.get(f"{model} PCIe") if model != name else None
    found = found or PEAKS.get(model)
    number = None if found is None else found[("bfloat16", "float32").index(precision)]
    return None if number is None else number * 1e12


def lowest_layer(anatomy: Anatomy, mask: Mask) -> int:
    """The lowest layer that a backward pass enters; -1 where it goes below them, their number where it ends above.

    A tied head is as low as the embedding; so is what no rule places.
    """
    above = ("norm.final", "head")
    place: dict[str, int] = {}
    for unit in anatomy.units:
        layer = anatomy.num_layers if unit.component in above else -1 if unit.layer is None else unit.layer
        place[unit.name] = min(layer, place.get(unit.name, layer))
    return min((place.get(name, -1) for name in mask.parts), default=anatomy.num_layers)


def active_elements(unit: Unit, config: Any) -> float:
    """Those that a token is multiplied with: of fused experts [experts, …] the ones that it is given to."""
    chosen = getattr(config, "num_experts_per_tok", None)
    return unit.num_elements * (min(1.0, chosen / unit.shape[0]) if chosen and len(unit.shape) > 2 else 1.0)


def query_width(unit: Unit, hidden: int) -> float:
    """Of queries that come from a latent state, its width stands for the hidden size."""
    return unit.num_elements / (hidden if hidden in unit.shape else unit.shape[-1])


def flops_per_token(anatomy: Anatomy, mask: Mask, length: float) -> float:
    """Operations, forward and backward, for a token of a text of `length` tokens, on average.

    Within the lowest trained layer all counts as passed through backwards: up to one layer too much.
    """
    config, lowest, total = anatomy.inventory.config.get_text_config(), lowest_layer(anatomy, mask), 0.0
    products: dict[str, Unit] = {}  # one that feeds two components (keys and values) is one product
    for unit in anatomy.units:
        if len(unit.shape) > 1 and unit.role != "bias" and not unit.component.startswith("embedding"):
            products.setdefault(unit.label, unit)
    for unit in products.values():
        through = lowest < anatomy.num_layers if unit.layer is None else lowest <= unit.layer
        total += 2 * active_elements(unit, config) * (1 + through + mask.trains(unit.name))
        if unit.component == "attention.query" and unit.principal:
            total += 4 * length * query_width(unit, config.hidden_size) * (1 + 2 * through)
    return total


def utilisation(
    flops_per_token: float, tokens_per_second: float, peak: float | None, num_devices: int = 1
) -> float | None:
    """Share of what the devices could do at most (MFU of PaLM, appendix B), or None where that is not known.

    Args:
        tokens_per_second: of all devices together.
        peak: operations per second of one, from `peak_flops`.
    """
    return None if peak is None else flops_per_token * tokens_per_second / (peak * num_devices)
