"""What a training will take, known from names, shapes and settings before any weight is read.

**Memory.** Of P parameters in all, T of them trained (of a slice its rows or columns alone), at w bytes in the forward
pass (2 in bfloat16, 4 in float32), N ranks; bytes per rank, as DeepSpeed 0.19 allocates them for the engine's settings,
with S bytes of the optimizer's state (`optimizers.py`; AdamW: 8·T):

    ZeRO           parameters   gradients           optimizer: master weights, state
    0, float32     4·P          4·T                 S   (parameters are their own masters)
    0, bfloat16    2·P          2·T, 6·T in a step  4·T + S
    1, float32     4·P          4·T, 4·T/N later    (4·T + S)/N
    1, bfloat16    2·P          6·T                 (4·T + S)/N
    2              w·P          4·T/N               (4·T + S)/N
    3              w·P/N        4·T/N               (4·T + S)/N

From ZeRO 1 on gradients pass through a buffer of 4 bytes for each of at most `reduce_bucket_size` elements. With ZeRO 3
small parameters are whole on every rank, and what is computed next is gathered. With offloading the optimizer's bytes
and 4·T/N of gradients, or parameters too, lie in the memory of the CPU.

**Activations** of one micro-batch, per token and layer from the lowest trained one on, d wide, with queries q and an
MLP f wide: w·(2·d + 4·q + 4·f), and 8·d a norm (after Korthikanti et al., 2022, arXiv:2205.05198, section 4.1). With
gradient checkpointing w·d a layer, and all of one layer. The logits of one chunk come on top (`supervised_loss`). Of
tiny models of 9 families, all trained, it is 0.9 to 1.3 × what autograd keeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine.batches import Plan
from trace_transfer.engine.optimizers import Describe, treatments
from trace_transfer.engine.settings import LARGEST_BUCKET, LOGITS_AT_ONCE, PERSISTENT, TrainSettings
from trace_transfer.families.anatomy import Anatomy
from trace_transfer.models.sources import numel

if TYPE_CHECKING:
    from trace_transfer.data.examples import TaskData

ITEMSIZE = {"float32": 4, "bfloat16": 2}
MOST_LIVE = 1_000_000_000  # elements that ZeRO 3 gathers at most, DeepSpeed's default


@dataclass(frozen=True)
class Estimate:
    """Of one training: the trained tensors, elements in them and their share; bytes on the device of each rank."""

    num_parameters: int
    num_elements: int
    share: float
    parameters: int
    gradients: int
    optimizer: int
    activations: int  # of one micro-batch
    buffers: int  # at most, of DeepSpeed's communication buffers and, with ZeRO 3, gathered parameters
    host: int  # bytes in the memory of the CPU, per rank, where something is offloaded
    num_steps: int
    checkpoint: int  # checkpoint, patch: bytes on the disk
    patch: int


def estimate(
    anatomy: Anatomy, mask: Mask, settings: TrainSettings, data: TaskData, *, num_ranks: int, precision: str,
    describe: Describe, patch_itemsize: int, adapters: Mapping[str, tuple[int, ...]] | None = None,
) -> Estimate:  # fmt: skip
    """Estimate a training, whose precision is `float32` or `bfloat16`; `patch_itemsize` is of a value before and after
    together. `adapters`, trained in place of the mask, keep the inputs that training its weights would."""
    shapes, zero, itemsize = anatomy.inventory.shapes, settings.zero, ITEMSIZE[precision]
    moving = mask.trained_shapes(shapes) if adapters is None else adapters
    trained, whole = sum(map(numel, moving.values())), anatomy.inventory.num_elements
    treated = treatments(moving, settings, describe)
    state = sum(sum(treated[name].state(shape, settings).values()) for name, shape in moving.items())
    apart = sum(numel(part.shape(shapes[name])) for name, part in mask.sliced.items())  # parameters of their own
    part = math.ceil(trained / num_ranks)
    parameters, optimizer = itemsize * (whole + apart), 4 * part + math.ceil(state / num_ranks)
    gradients, summed = 0, 4 * part  # what is summed in float32 is summed where the optimizer is
    if zero == 0:
        optimizer = state + (0 if itemsize == 4 else 4 * trained)
        gradients, summed = (4 if itemsize == 4 else 6) * trained, 0
    elif zero == 1:
        gradients, summed = itemsize * trained, 0 if itemsize == 4 else 4 * trained
    elif zero == 3:
        small = _size(settings, "stage3_param_persistence_threshold", PERSISTENT)
        held = sum(n if n <= small else math.ceil(n / num_ranks) for n in map(numel, shapes.values()))
        parameters = itemsize * (held + math.ceil(apart / num_ranks))
    host = 0
    if settings.offload != "none":
        host, optimizer, summed = optimizer + 4 * part, 0, 0
    if settings.offload == "parameters":
        host, parameters = host + parameters, 0
    return Estimate(
        num_parameters=len(moving), num_elements=trained, share=trained / whole,
        parameters=parameters, gradients=gradients + summed, optimizer=optimizer, host=host,
        activations=activations(anatomy, mask, settings, data, itemsize),
        buffers=_buffers(anatomy, settings, trained, num_ranks, itemsize),
        num_steps=Plan(data, settings).num_steps,
        checkpoint=4 * trained + state,
        patch=patch_itemsize * mask.numel(shapes),
    )  # fmt: skip


def activations(anatomy: Anatomy, mask: Mask, settings: TrainSettings, data: TaskData, itemsize: int) -> int:
    lengths = [len(example.input_ids) for example in data.examples]
    supervised = sorted((example.num_supervised for example in data.examples), reverse=True)
    config, lowest = anatomy.inventory.config.get_text_config(), _lowest_layer(anatomy, mask)
    chosen = getattr(config, "num_experts_per_tok", None)
    num_layers, kept = anatomy.num_layers - lowest, 2 * itemsize * config.hidden_size * (anatomy.num_layers - lowest)
    for unit in anatomy.units:
        if unit.layer is None or unit.layer < lowest:
            continue
        if unit.role == "norm":
            kept += 8 * config.hidden_size
        elif (unit.component == "attention.query" and unit.principal) or (
            unit.component == "mlp.up" and unit.role == "weight"
        ):
            experts = unit.shape[0] if chosen and len(unit.shape) > 2 else 1  # a token is given to some
            kept += 4 * itemsize * unit.num_elements // config.hidden_size * min(chosen or 1, experts) // experts
    if settings.gradient_checkpointing and num_layers:
        kept = itemsize * config.hidden_size * num_layers + kept // num_layers
    copies = sum(itemsize * numel(anatomy.inventory.shapes[name]) for name in mask.sliced)  # with the slice put in
    at_once = min(sum(supervised[: settings.micro_batch_size]) * config.vocab_size, LOGITS_AT_ONCE)
    logits = at_once * (4 + 4 + (itemsize if itemsize < 4 else 0))  # in float32, their gradient, and as the head gives
    return int(kept * min(settings.micro_batch_size, len(lengths)) * max(lengths, default=0) + copies + logits)


def _lowest_layer(anatomy: Anatomy, mask: Mask) -> int:
    """The lowest layer that a backward pass enters, their number where it ends above; what no rule places is below."""
    place: dict[str, int] = {}
    for unit in anatomy.units:
        layer = anatomy.num_layers if unit.component in ("norm.final", "head") else unit.layer or 0
        place[unit.name] = min(layer, place.get(unit.name, layer))
    return min((place.get(name, 0) for name in mask.parts), default=anatomy.num_layers)


def _buffers(anatomy: Anatomy, settings: TrainSettings, trained: int, num_ranks: int, itemsize: int) -> int:
    if settings.zero == 0:
        return 0
    gathered = 0
    if settings.zero == 3 and (num_ranks > 1 or settings.offload == "parameters"):
        most = _size(settings, "stage3_max_live_parameters", MOST_LIVE)
        layer = max(map(numel, anatomy.inventory.shapes.values()))
        gathered = itemsize * min(anatomy.inventory.num_elements, max(most, layer))
    return 4 * min(_size(settings, "reduce_bucket_size", LARGEST_BUCKET), trained) + gathered


def _size(settings: TrainSettings, name: str, default: int) -> int:
    zero = settings.deepspeed.get("zero_optimization")
    value = zero.get(name, default) if isinstance(zero, Mapping) else default
    return int(value) if isinstance(value, (int, float)) else default
