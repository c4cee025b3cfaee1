"""Read a model on the probe set and keep the Gram matrices of its layers' rows; cached, so that it happens once.

Reads: weights, a `Reading`. Gives: `Grams`, one `GramStack` per representation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trace_transfer.data.probe import Reading, RowPlan
from trace_transfer.errors import first_line
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import remove_leftovers, write_tensors
from trace_transfer.models.checkpoints import Checkpoint
from trace_transfer.models.content import config_sha256
from trace_transfer.progress import Reporter
from trace_transfer.transfer.activations import REPRESENTATIONS, LayerRows, read_layers
from trace_transfer.transfer.gram import GramStack, pack_layer, packed_length

CACHE_VERSION = 1
CACHE_LIMIT = 8 << 30
DAY = 86_400.0


@dataclass(frozen=True)
class Grams:
    """What is kept of one model's pass over the probe set.

    Attributes:
        stacks: representation → packed Gram matrices of all layers.
        largest: representation → float [L, 2], of each layer the dimension with the largest variance over rows, and
            its share of all variance. A share near one means that one massive activation decides every similarity.
    """

    stacks: dict[str, GramStack]
    largest: dict[str, Tensor]


def unit_rows(rows_Rd: Tensor) -> Tensor:
    """Rows scaled to unit norm: what the next layer's RMSNorm sees, and one outlier row counts as any other."""
    norms_R1: Tensor = torch.linalg.vector_norm(rows_Rd, dim=1, keepdim=True)
    return rows_Rd / norms_R1.clamp_min(torch.finfo(rows_Rd.dtype).tiny)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {"unit": unit_rows, "none": lambda rows_Rd: rows_Rd}


@dataclass(frozen=True)
class ReadSettings:
    """How a model is run over the probe set. `cache` is None for no caching."""

    transform: str
    batch_size: int
    device: str
    dtype: torch.dtype
    cache: Path | None


def read_grams(
    model: OpenModel,
    checkpoint: Checkpoint,
    plan: RowPlan,
    reading: Reading,
    settings: ReadSettings,
    reporter: Reporter,
) -> Grams:
    """Gram matrices of a model's layers, from the cache or by one pass over its weights.

    Raises:
        ModelError: as `read_layers`.
    """
    file = None
    if settings.cache is not None:
        file = settings.cache / f"{_cache_key(model, checkpoint, plan, reading, settings)}.safetensors"
    if file is not None and file.exists():
        cached = _load(file, plan, model.anatomy.num_layers)
        if isinstance(cached, Grams):
            reporter.note(f"{model.name}: activations of this probe set are cached")
            return cached
        reporter.note(f"{model.name}: {file} is damaged ({cached}) and is made again")
    grams = _read(model, checkpoint, plan, reading, settings, reporter)
    if file is not None:
        try:
            _save(file, grams)
            _prune(file.parent)
        except OSError as error:  # a full disk must not cost the pass
            reporter.note(f"{model.name}: its activations could not be cached ({error.strerror})")
    return grams


def _read(
    model: OpenModel,
    checkpoint: Checkpoint,
    plan: RowPlan,
    reading: Reading,
    settings: ReadSettings,
    reporter: Reporter,
) -> Grams:
    length = sum(map(packed_length, plan.sizes))
    num_layers = model.anatomy.num_layers
    packed = {name: torch.empty(num_layers, length) for name in REPRESENTATIONS}
    largest = {name: torch.empty(num_layers, 2) for name in REPRESENTATIONS}
    transform = TRANSFORMS[settings.transform]

    with reporter.task(f"reading {model.name}", num_layers) as advance:

        def consume(rows: LayerRows) -> None:
            for name in REPRESENTATIONS:
                rows_Rd = transform(getattr(rows, name))
                pack_layer(rows_Rd, plan.sizes, packed[name][rows.layer])
                largest[name][rows.layer] = _largest_dimension(rows_Rd)
            advance()

        read_layers(
            model.config,
            checkpoint,
            model.anatomy.layer_path,
            reading,
            plan.texts_R,
            consume,
            name=model.name,
            batch_size=settings.batch_size,
            device=settings.device,
            dtype=settings.dtype,
        )
    return Grams({name: GramStack(packed[name], plan.minibatch_texts) for name in REPRESENTATIONS}, largest)


def _largest_dimension(rows_Rd: Tensor) -> Tensor:
    variance_d = rows_Rd.var(dim=0)
    dimension = int(variance_d.argmax())
    return torch.tensor([dimension, float(variance_d[dimension] / variance_d.sum().clamp_min(1e-30))])


def _cache_key(
    model: OpenModel, checkpoint: Checkpoint, plan: RowPlan, reading: Reading, settings: ReadSettings
) -> str:
    """Weights, config, rows and settings: whatever changes the result changes the name of the file."""
    parts: list[Any] = [
        CACHE_VERSION,
        checkpoint.fingerprint,
        model.anatomy.inventory.names_sha256,
        model.anatomy.layer_path,
        config_sha256(model.config.to_dict()),
        reading.ids,
        reading.spans_R2.tolist(),
        plan.texts_R.tolist(),
        plan.sizes,
        settings.transform,
        str(settings.dtype),
        torch.device(settings.device).type,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _save(file: Path, grams: Grams) -> None:
    tensors = {name: stack.packed_LP for name, stack in grams.stacks.items()}
    tensors |= {f"{name}.largest": values for name, values in grams.largest.items()}
    write_tensors(file, tensors, {"format": "trace-transfer/grams", "version": str(CACHE_VERSION)})


def _load(file: Path, plan: RowPlan, num_layers: int) -> Grams | str:
    """What a cached file holds, or what is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        os.utime(file)
    except (OSError, SafetensorError) as error:
        return first_line(error)
    length = sum(map(packed_length, plan.sizes))
    expected = dict.fromkeys(REPRESENTATIONS, (num_layers, length))
    expected |= {f"{name}.largest": (num_layers, 2) for name in REPRESENTATIONS}
    if tensors.keys() != expected.keys():
        return f"it holds {', '.join(sorted(tensors)) or 'nothing'}, expected {', '.join(sorted(expected))}"
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != expected[name]:
            return f"{name} is {list(tensor.shape)} in {tensor.dtype}, expected {list(expected[name])} in torch.float32"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or Inf"
    stacks = {name: GramStack(tensors[name], plan.minibatch_texts) for name in REPRESENTATIONS}
    return Grams(stacks, {name: tensors[f"{name}.largest"] for name in REPRESENTATIONS})


def _prune(directory: Path) -> None:
    """Keep the cache below 8 GiB, the most recently used files first, and free of what killed runs left there."""
    remove_leftovers(directory, older_than=DAY)
    total = 0
    for file in sorted(directory.glob("*.safetensors"), key=lambda f: f.stat().st_mtime, reverse=True):
        total += file.stat().st_size
        if total > CACHE_LIMIT:
            file.unlink(missing_ok=True)
