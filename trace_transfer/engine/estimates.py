"""What a training will take, known from names, shapes and settings before any weight is read: operations and bytes.

**Operations.** A forward pass takes 2 operations (multiply, add) for each weight of a matrix product and token, and
4·s·d for the attention of a layer over a text of s tokens with queries d wide (counted whole, as is common, although
causal attention needs half). Looking up embeddings takes none; a head takes its product, tied or not. The backward pass
takes as much again for the gradient of what enters a product, from the lowest trained layer on, twice as much for
attention, and as much again for the gradient of each trained weight. So full fine-tuning takes 6 per weight and token
plus 12·s·d per layer (Kaplan et al., 2020, section 2.1; Chowdhery et al., 2022, PaLM, appendix B). Gradient
checkpointing's second computation does not count. Of a layer's experts those count that a token is given to:
`num_experts_per_tok`.

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
and 4·T/N of gradients, or parameters too, lie in the memory of the CPU. Workspaces, fragmentation and libraries come on
top.

**Activations** of one micro-batch, per token and layer from the lowest trained one on, d wide, with queries q and an
MLP f wide: w·(2·d + 4·q + 4·f), and 8·d a norm (after Korthikanti et al., 2022, arXiv:2205.05198, section 4.1). With
gradient checkpointing w·d a layer, and all of one layer. The logits of one chunk come on top (`supervised_loss`). It is
what a layer keeps that is trained whole; of tiny models of 9 families, all trained, 0.9 to 1.3 × what autograd keeps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine.optimizers import Describe, treatments
from trace_transfer.engine.settings import LARGEST_BUCKET, LOGITS_AT_ONCE, PERSISTENT, TrainSettings
from trace_transfer.families.anatomy import Anatomy, Unit
from trace_transfer.models.sources import numel

if TYPE_CHECKING:
    from trace_transfer.data.examples import TaskData

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


ITEMSIZE = {"float32": 4, "bfloat16": 2}
MOST_LIVE = 1_000_000_000  # elements that ZeRO 3 gathers at most, DeepSpeed's default


@dataclass(frozen=True)
class Workload:
    """The data of one training, as far as memory and time depend on it.

    Attributes:
        num_tokens: of all examples, padding not counted.
        longest: tokens of the longest example.
        supervised: tokens to learn from in the micro-batch that has most.
    """

    num_examples: int
    num_tokens: int
    longest: int
    supervised: int

    @classmethod
    def of(cls, data: TaskData, micro_batch_size: int) -> Workload:
        """Bounds that hold however examples are put together."""
        lengths = [len(example.input_ids) for example in data.examples]
        supervised = sorted((example.num_supervised for example in data.examples), reverse=True)
        return cls(len(lengths), sum(lengths), max(lengths, default=0), sum(supervised[:micro_batch_size]))

    @property
    def mean_length(self) -> float:
        return self.num_tokens / max(1, self.num_examples)


@dataclass(frozen=True)
class Estimate:
    """Of one training.

    Attributes:
        num_parameters, num_elements: trained tensors, and elements in them.
        share: of all elements that are trained.
        parameters, gradients, optimizer: bytes on the device of each rank.
        activations: bytes on the device of each rank, of one micro-batch.
        buffers: bytes at most of DeepSpeed's communication buffers and, with ZeRO 3, gathered parameters.
        host: bytes in the memory of the CPU, per rank, where something is offloaded.
        num_steps: optimizer steps.
        checkpoint, patch, model: bytes on the disk.
        notes: what the numbers leave open, each a sentence.
    """

    num_parameters: int
    num_elements: int
    share: float
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    host: int
    num_steps: int
    checkpoint: int
    patch: int
    model: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes on the device of each rank, all at once: more than the peak, which has not all of them together."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buffers


def estimate(
    anatomy: Anatomy, mask: Mask, settings: TrainSettings, workload: Workload, *, num_ranks: int, precision: str,
    describe: Describe, stored_itemsize: int = 2, saved_itemsize: int | None = None,
    adapters: Mapping[str, tuple[int, ...]] | None = None,
) -> Estimate:  # fmt: skip
    """Estimate a training.

    Args:
        precision: `float32` or `bfloat16`, resolved.
        describe: a trained tensor's own name in the model and its components.
        stored_itemsize: bytes of a value in the base's files.
        saved_itemsize: bytes of a trained value in patch and model; default as stored.
        adapters: shapes of what is trained in place of the mask. They keep the inputs that training its weights would.
    """
    shapes, itemsize = anatomy.inventory.shapes, ITEMSIZE[precision]
    saved = stored_itemsize if saved_itemsize is None else saved_itemsize
    moving = mask.trained_shapes(shapes) if adapters is None else adapters
    changed, trained, whole = mask.numel(shapes), sum(map(numel, moving.values())), anatomy.inventory.num_elements
    treated = treatments(moving, settings, describe)
    state = sum(sum(treated[name].state(shape, settings).values()) for name, shape in moving.items())
    memory = _memory(anatomy, mask, settings, num_ranks, itemsize, trained, state)
    return Estimate(
        num_parameters=len(moving),
        num_elements=trained,
        share=trained / whole,
        **memory,
        activations=activations(
            anatomy, mask, num_texts=min(settings.micro_batch_size, workload.num_examples), length=workload.longest,
            supervised=workload.supervised, itemsize=itemsize, checkpointing=settings.gradient_checkpointing,
        ),
        num_steps=settings.epochs * math.ceil(workload.num_examples / settings.batch_size),
        checkpoint=4 * trained + state,
        patch=(stored_itemsize + saved) * changed,
        model=stored_itemsize * whole + (saved - stored_itemsize) * sum(numel(shapes[name]) for name in mask.parts),
        notes=_notes(mask, settings),
    )  # fmt: skip


def _memory(
    anatomy: Anatomy, mask: Mask, settings: TrainSettings, num_ranks: int, itemsize: int, trained: int, state: int
) -> dict[str, int]:
    shapes, zero = anatomy.inventory.shapes, settings.zero
    part = math.ceil(trained / num_ranks)
    apart = sum(slice_.numel(shapes[name]) for name, slice_ in mask.sliced.items())  # parameters of their own
    parameters = itemsize * (anatomy.inventory.num_elements + apart)
    optimizer, summed = (
        4 * part + math.ceil(state / num_ranks),
        4 * part,
    )  # what is summed in float32 is summed where the optimizer is
    gradients = 0
    if zero == 0:
        optimizer = state + (0 if itemsize == 4 else 4 * trained)
        gradients, summed = (4 if itemsize == 4 else 6) * trained, 0
    elif zero == 1:
        gradients, summed = itemsize * trained, 0 if itemsize == 4 else 4 * trained
    elif zero == 3:
        sizes = [numel(shape) for shape in shapes.values()]
        small = _setting(settings, "stage3_param_persistence_threshold", PERSISTENT)
        held = sum(size if size <= small else math.ceil(size / num_ranks) for size in sizes)
        parameters = itemsize * (held + math.ceil(apart / num_ranks))
    host = 0
    if settings.offload in ("optimizer", "parameters"):
        host, optimizer, summed = optimizer + 4 * part, 0, 0
    if settings.offload == "parameters":
        host, parameters = host + parameters, 0
    return {
        "parameters": parameters, "gradients": gradients + summed, "optimizer": optimizer, "host": host,
        "buffers": _buffers(anatomy, settings, trained, num_ranks, itemsize),
    }  # fmt: skip


def activations(
    anatomy: Anatomy, mask: Mask, *, num_texts: int, length: int, supervised: int, itemsize: int,
    checkpointing: bool = False,
) -> int:  # fmt: skip
    """Bytes of one micro-batch of texts of so many tokens, `supervised` of them learned from."""
    config, lowest = anatomy.inventory.config.get_text_config(), max(0, lowest_layer(anatomy, mask))
    hidden, tokens = int(config.hidden_size), num_texts * length
    kept = dict.fromkeys(range(lowest, anatomy.num_layers), itemsize * 2.0 * hidden)  # per token
    for unit in anatomy.units:
        if unit.layer is None or unit.layer < lowest:
            continue
        if unit.role == "norm":
            kept[unit.layer] += 8 * hidden
        elif unit.component == "attention.query" and unit.principal:
            kept[unit.layer] += itemsize * 4 * query_width(unit, hidden)
        elif unit.component == "mlp.up" and unit.role == "weight":
            kept[unit.layer] += itemsize * 4 * active_elements(unit, config) / hidden
    all_layers = sum(kept.values())
    if checkpointing:
        all_layers = itemsize * hidden * len(kept) + max(kept.values(), default=0)
    copies = sum(itemsize * numel(anatomy.inventory.shapes[name]) for name in mask.sliced)  # with the slice put in
    at_once = min(supervised * config.vocab_size, LOGITS_AT_ONCE)
    logits = at_once * (4 + 4 + (itemsize if itemsize < 4 else 0))  # in float32, their gradient, and as the head gives
    return int(tokens * all_layers + copies + logits)


def _buffers(anatomy: Anatomy, settings: TrainSettings, trained: int, num_ranks: int, itemsize: int) -> int:
    if settings.zero == 0:
        return 0
    bucket = min(_setting(settings, "reduce_bucket_size", LARGEST_BUCKET), trained)
    gathered = 0
    if settings.zero == 3 and (num_ranks > 1 or settings.offload == "parameters"):
        most = _setting(settings, "stage3_max_live_parameters", MOST_LIVE)
        layer = max(map(numel, anatomy.inventory.shapes.values()))
        gathered = itemsize * min(anatomy.inventory.num_elements, max(most, layer))
    return 4 * bucket + gathered


def _setting(settings: TrainSettings, name: str, default: int) -> int:
    """A size from the user's DeepSpeed JSON."""
    zero: Any = settings.deepspeed.get("zero_optimization", {})
    value = zero.get(name, default) if isinstance(zero, Mapping) else default
    return int(value) if isinstance(value, (int, float)) else default


def _notes(mask: Mask, settings: TrainSettings) -> tuple[str, ...]:
    found = ["Libraries, workspaces and fragmentation come on top; on a GPU keep a tenth free."]
    if settings.zero == 3:
        found.append(
            "Up to stage3_max_live_parameters (1e9 elements) are gathered at once; a DeepSpeed JSON with fewer needs "
            "less memory and more communication."
        )
    if mask.sliced:
        found.append("The whole gradient of a sliced tensor is there for a moment.")
    return tuple(found)
