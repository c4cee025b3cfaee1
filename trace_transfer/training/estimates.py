"""What a training will want, known from names, shapes and settings before any weight is read.

Of P parameters in all, T of them trained (of a slice its rows or columns alone), at w bytes in the forward pass (2 in
bfloat16, 4 in float32), N ranks; bytes per rank, as DeepSpeed 0.19 allocates them for the engine's configuration:

    ZeRO           parameters   gradients           optimizer: master weights, two moments
    0, float32     4·P          4·T                 8·T   (parameters are their own masters)
    0, bfloat16    2·P          2·T, 6·T in a step  12·T
    1, float32     4·P          4·T, 4·T/N later    12·T/N
    1, bfloat16    2·P          6·T                 12·T/N
    2              w·P          4·T/N               12·T/N
    3              w·P/N        4·T/N               12·T/N

and from ZeRO 1 on a buffer of 4 bytes for each of at most `reduce_bucket_size` elements, through which gradients pass.
With ZeRO 3 small parameters are whole on every rank, and what is computed next is gathered. With offloading the
optimizer's bytes and 4·T/N of gradients, or also parameters, lie in the memory of the CPU. Activations are those
of `activations_kept`. Not counted: DeepSpeed's and torch's own workspaces, fragmentation, and the libraries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_transfer.anatomy import Anatomy
from trace_transfer.masks import Mask
from trace_transfer.models import numel
from trace_transfer.settings.training import TrainSettings
from trace_transfer.training.activations_kept import Activations, activations
from trace_transfer.training.hardware import flops_per_token
from trace_transfer.training.reach import lowest_trained_layer

if TYPE_CHECKING:
    from trace_transfer.examples import TaskData

__all__ = [
    "Estimate", "PrefixDecision", "Workload", "estimate", "is_prefix_cheaper", "lowest_trained_layer", "prefix_bytes",
]  # fmt: skip

ITEMSIZE = {"float32": 4, "bfloat16": 2}
LARGEST_BUCKET, PERSISTENT = 500_000_000, 100_000  # as in `engine`
MOST_LIVE = 1_000_000_000  # elements that ZeRO 3 gathers at most, DeepSpeed's default
DISK_BYTES_PER_SECOND = 1e9  # of an ordinary local NVMe drive, reading and writing


@dataclass(frozen=True)
class Workload:
    """The data of one training, as far as memory and time depend on it.

    Attributes:
        num_tokens: of all examples, padding not counted.
        num_different_tokens: the same, equal texts once.
        longest: tokens of the longest example.
        supervised: tokens to learn from in the micro-batch that has most.
    """

    num_examples: int
    num_tokens: int
    num_different_tokens: int
    longest: int
    supervised: int

    @classmethod
    def of(cls, data: TaskData, micro_batch_size: int) -> Workload:
        """Bounds that hold however examples are put together."""
        lengths = [len(example.input_ids) for example in data.examples]
        supervised = sorted((example.num_supervised for example in data.examples), reverse=True)
        different = {example.input_ids for example in data.examples}
        return cls(
            len(lengths), sum(lengths), sum(map(len, different)), max(lengths, default=0),
            sum(supervised[:micro_batch_size]),
        )  # fmt: skip

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
        checkpoint, patch, model, prefix: bytes on the disk; a prefix cache where one is possible, else 0.
        notes: what the numbers leave open, each a sentence.
    """

    num_parameters: int
    num_elements: int
    share: float
    parameters: int
    gradients: int
    optimizer: int
    activations: Activations
    buffers: int
    host: int
    num_steps: int
    checkpoint: int
    patch: int
    model: int
    prefix: int
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes on the device of each rank, all at once: more than the peak, which has not all of them together."""
        return self.parameters + self.gradients + self.optimizer + self.activations.total + self.buffers


def estimate(
    anatomy: Anatomy, mask: Mask, settings: TrainSettings, workload: Workload, *, num_ranks: int, precision: str,
    stored_itemsize: int = 2, saved_itemsize: int | None = None,
) -> Estimate:  # fmt: skip
    """Estimate a training.

    Args:
        precision: `float32` or `bfloat16`, resolved.
        stored_itemsize: bytes of a value in the base's files.
        saved_itemsize: bytes of a trained value in patch and model; default as stored.
    """
    shapes, itemsize = anatomy.inventory.shapes, ITEMSIZE[precision]
    saved = stored_itemsize if saved_itemsize is None else saved_itemsize
    trained = mask.numel(shapes)
    whole = anatomy.inventory.num_elements
    memory = _memory(anatomy, mask, settings, num_ranks, itemsize)
    return Estimate(
        num_parameters=len(mask.parts),
        num_elements=trained,
        share=trained / whole,
        **memory,
        activations=activations(
            anatomy, mask, num_texts=min(settings.micro_batch_size, workload.num_examples), length=workload.longest,
            supervised=workload.supervised, itemsize=itemsize, checkpointing=settings.gradient_checkpointing,
            zero=settings.zero,
        ),
        num_steps=settings.epochs * math.ceil(workload.num_examples / settings.batch_size),
        checkpoint=12 * trained,
        patch=(stored_itemsize + saved) * trained,
        model=stored_itemsize * whole + (saved - stored_itemsize) * sum(numel(shapes[name]) for name in mask.parts),
        prefix=prefix_bytes(anatomy, mask, workload, precision) if lowest_trained_layer(anatomy, mask) else 0,
        notes=_notes(mask, settings),
    )  # fmt: skip


def _memory(anatomy: Anatomy, mask: Mask, settings: TrainSettings, num_ranks: int, itemsize: int) -> dict[str, int]:
    shapes, zero = anatomy.inventory.shapes, settings.zero
    trained = mask.numel(shapes)
    part = math.ceil(trained / num_ranks)
    apart = sum(slice_.numel(shapes[name]) for name, slice_ in mask.sliced.items())  # parameters of their own
    parameters = itemsize * (anatomy.inventory.num_elements + apart)
    optimizer, summed = 12 * part, 4 * part  # what is summed in float32 is summed where the optimizer is
    gradients = 0
    if zero == 0:
        optimizer = (8 if itemsize == 4 else 12) * trained
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
    if settings.zero >= 2:
        found.append("Gradients are parted while they come, through a buffer of reduce_bucket_size elements.")
    if settings.zero == 3:
        found.append(
            "Up to stage3_max_live_parameters (1e9 elements) are gathered at once; a DeepSpeed JSON with fewer needs "
            "less memory and more communication."
        )
    if mask.sliced:
        found.append("The whole gradient of a parameter of which a slice is trained is there for a moment.")
    return tuple(found)


def prefix_bytes(anatomy: Anatomy, mask: Mask, workload: Workload, precision: str) -> int:
    """Of the hidden states that enter the lowest trained layer: tokens × hidden size × bytes of a value."""
    hidden: int = anatomy.inventory.config.get_text_config().hidden_size
    return workload.num_different_tokens * hidden * ITEMSIZE[precision]


@dataclass(frozen=True)
class PrefixDecision:
    """Whether to compute the frozen bottom once and read its states afterwards, and why, as a sentence."""

    use: bool
    reason: str
    num_bytes: int


def is_prefix_cheaper(
    anatomy: Anatomy, mask: Mask, settings: TrainSettings, workload: Workload, *, precision: str,
    flops_per_second: float | None, free_bytes: int, num_ranks: int = 1,
) -> PrefixDecision:  # fmt: skip
    """Compare computing the bottom again in every later epoch with writing its states once and reading them.

    At `DISK_BYTES_PER_SECOND`, which all ranks of a machine share, and at the device's peak, which no training reaches:
    where the cache is said to be cheaper it is so with some margin.

    Args:
        flops_per_second: of one device, from `hardware.peak_flops`, or as measured; None where it is not known.
        free_bytes: on the disk of the output directory.
        num_ranks: on one machine.
    """
    layers = lowest_trained_layer(anatomy, mask)
    size = prefix_bytes(anatomy, mask, workload, precision)
    if layers == 0:
        return PrefixDecision(False, "something in or below the first layer is trained, so no layer can be spared", 0)
    if settings.epochs < 2:
        return PrefixDecision(False, f"there is 1 epoch, so the {layers} layers below run only once anyway", size)
    room = free_bytes - 24 * mask.numel(anatomy.inventory.shapes)  # two checkpoints must fit beside it
    if size > room:
        return PrefixDecision(
            False, f"the states of {layers} layers take {_size(size)}, and {_size(max(0, room))} of the disk are free",
            size,
        )  # fmt: skip
    if not flops_per_second:
        return PrefixDecision(
            False, "the speed of this device is not known; --cache-prefix on uses it all the same", size
        )
    work = flops_per_token(anatomy, mask, workload.mean_length, last_layer=layers).forward
    computing = (settings.epochs - 1) * workload.num_tokens * work / (flops_per_second * num_ranks)
    reading = size / DISK_BYTES_PER_SECOND * settings.epochs  # written once, read in all epochs but the first
    cheaper = reading < computing
    return PrefixDecision(
        cheaper,
        f"computing {layers} of {anatomy.num_layers} layers again takes {computing:.3g} s at {flops_per_second:.3g} "
        f"operations a second, and "
        f"writing and reading {_size(size)} takes {reading:.3g} s at 1 GB/s",
        size,
    )


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
