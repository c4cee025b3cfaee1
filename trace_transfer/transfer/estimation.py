"""What a run of `map` will want, from configs alone: `--dry-run`. Reads no weights.

Memory is the largest layer, the hidden states of all texts and the packed Gram matrices. Time is arithmetic: two
operations per weight and token, divided by what this machine does in a short matrix product.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trace_transfer.families.registry import folded_name
from trace_transfer.files import size
from trace_transfer.models.sources import numel
from trace_transfer.terminal import Page, drawn
from trace_transfer.transfer.gram import packed_length

if TYPE_CHECKING:
    from trace_transfer.data.probe import Reading
    from trace_transfer.families.model_handle import OpenModel
    from trace_transfer.transfer.mapping import MapPlan
    from trace_transfer.transfer.settings import MapSettings


@dataclass(frozen=True)
class ModelEstimate:
    """Of one model: bytes of its largest layer, of hidden states and of Gram matrices; seconds of arithmetic.

    `shapes` lists the parameters, layers folded: name, shape, how many there are, component.
    """

    name: str
    family: str
    num_layers: int
    num_parameters: int
    num_elements: int
    num_tokens: int
    layer_bytes: int
    hidden_bytes: int
    gram_bytes: int
    seconds: float
    shapes: tuple[tuple[str, tuple[int, ...], int, str], ...]

    @property
    def peak_bytes(self) -> int:
        return self.layer_bytes + self.hidden_bytes + self.gram_bytes


@dataclass(frozen=True)
class MapEstimate:
    """Of a whole run. The Gram matrices of both models are kept to the end."""

    models: tuple[ModelEstimate, ModelEstimate]
    num_rows: int
    num_minibatches: int
    num_texts: int
    device: str
    dtype: str
    flops_per_second: float

    @property
    def peak_bytes(self) -> int:
        first, second = self.models
        return max(first.peak_bytes, first.gram_bytes + second.peak_bytes)


def estimate(plan: MapPlan, settings: MapSettings) -> MapEstimate:
    """Estimate a planned run; runs a matrix product of a tenth of a second to learn the machine's speed."""
    speed = measure_speed(plan.device, plan.dtype)
    gram = sum(map(packed_length, plan.rows.sizes)) * 4 * 2
    source, target = (
        _estimate_model(model, reading, settings, gram, plan.dtype, speed)
        for model, reading in ((plan.source, plan.rows.source), (plan.target, plan.rows.target))
    )
    return MapEstimate(
        models=(source, target),
        num_rows=sum(plan.rows.sizes),
        num_minibatches=len(plan.rows.sizes),
        num_texts=len(plan.probe.texts),
        device=plan.device,
        dtype=str(plan.dtype).removeprefix("torch."),
        flops_per_second=speed,
    )


def _estimate_model(
    model: OpenModel, reading: Reading, settings: MapSettings, gram: int, dtype: torch.dtype, speed: float
) -> ModelEstimate:
    inventory = model.anatomy.inventory
    itemsize = torch.empty(0, dtype=dtype).element_size()
    prefix = f"{model.anatomy.layer_path}."
    elements: dict[str, int] = {}
    for name, shape in inventory.shapes.items():
        if name.startswith(prefix):
            layer = name[len(prefix) :].partition(".")[0]
            elements[layer] = elements.get(layer, 0) + numel(shape)
    lengths = sorted(map(len, reading.ids))
    batches = [lengths[i : i + settings.batch_size] for i in range(0, len(lengths), settings.batch_size)]
    padded = sum(batch[-1] * len(batch) for batch in batches)
    hidden = padded * model.config.get_text_config().hidden_size * itemsize
    return ModelEstimate(
        name=model.name,
        family=model.anatomy.family,
        num_layers=model.anatomy.num_layers,
        num_parameters=len(inventory.shapes),
        num_elements=inventory.num_elements,
        num_tokens=reading.num_tokens,
        layer_bytes=max(elements.values()) * itemsize,
        hidden_bytes=hidden,
        gram_bytes=gram * model.anatomy.num_layers,
        seconds=2 * padded * sum(elements.values()) / speed,
        shapes=_folded_shapes(model),
    )


def _folded_shapes(model: OpenModel) -> tuple[tuple[str, tuple[int, ...], int, str], ...]:
    components: dict[str, list[str]] = {}
    for unit in model.anatomy.units:
        components.setdefault(unit.name, []).append(unit.component)
    kinds = Counter(
        (folded_name(name), shape, ", ".join(dict.fromkeys(components.get(name, ["excluded"]))))
        for name, shape in model.anatomy.inventory.shapes.items()
    )
    return tuple((name, shape, count, component) for (name, shape, component), count in kinds.items())


def measure_speed(device: str, dtype: torch.dtype, side: int = 1024) -> float:
    """Floating point operations per second of a square matrix product, the best of several in 0.1 s."""
    a = torch.ones(side, side, device=device, dtype=dtype)
    a @ a
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < 0.1 or best == float("inf"):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def render_estimate(result: MapEstimate) -> str:
    """The estimate as text as wide as the terminal."""
    return drawn(lambda page: _draw(result, page))


def _draw(result: MapEstimate, page: Page) -> None:
    rows: tuple[tuple[str, Callable[[ModelEstimate], str]], ...] = (
        ("family", lambda m: m.family),
        ("layers", lambda m: str(m.num_layers)),
        ("parameters (tensors)", lambda m: f"{m.num_parameters:,}"),
        ("elements", lambda m: f"{m.num_elements:,}"),
        ("probe tokens", lambda m: f"{m.num_tokens:,}"),
        ("memory: largest layer", lambda m: size(m.layer_bytes)),
        ("memory: hidden states", lambda m: size(m.hidden_bytes)),
        ("memory: Gram matrices", lambda m: size(m.gram_bytes)),
        ("time of arithmetic", lambda m: _duration(m.seconds)),
    )
    page.line("nothing is read or written (--dry-run)", "bold")
    page.table(
        [("", "left"), *((model.name, "right") for model in result.models)],
        ((label, *(value(model) for model in result.models)) for label, value in rows),
    )
    page.line(
        f"{result.num_rows:,} rows in {result.num_minibatches} minibatches from {result.num_texts} texts; peak about "
        f"{size(result.peak_bytes)} beside the libraries; on {result.device} in {result.dtype} at "
        f"{result.flops_per_second / 1e9:,.0f} GFLOP/s."
    )
    for model in result.models:
        page.line()
        page.line(f"parameters of {model.name}", "bold")
        page.table(
            [("name", "left"), ("shape", "left"), ("count", "right"), ("component", "left")],
            (
                (name, " × ".join(map(str, shape)), str(count), component)
                for name, shape, count, component in model.shapes
            ),
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
