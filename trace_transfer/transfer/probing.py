"""Read a model on the probe set, layer by layer, and keep the Gram matrices of its layers' rows.

Reads: a model's weights, each once, and a `Reading`. Gives: for each layer the rows of both representations, handed to
a consumer and forgotten (`read_layers`); from them `Grams`, cached so that the pass happens once (`read_grams`).

The model is built on the meta device. Its own forward runs once for each micro-batch with layers that only note what
they are called with, so embeddings, masks and positions are right for every family. Then layer after layer: its
weights are brought in, all micro-batches go through it, its weights are dropped. (accelerate's offloading hooks would
read the weights again for each micro-batch.)

Shapes: b texts of a micro-batch, t tokens of its longest, R rows, d hidden size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from trace_transfer.data.examples import padded
from trace_transfer.data.probe import Reading, RowPlan
from trace_transfer.errors import ModelError
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import remove_leftovers
from trace_transfer.identification.gradients import Calls, recorded_calls
from trace_transfer.models.checkpoints import Checkpoint, release
from trace_transfer.models.content import config_sha256
from trace_transfer.models.running import attend, layers_of
from trace_transfer.models.sources import build_meta_model
from trace_transfer.models.tensors import write_tensors
from trace_transfer.progress import Reporter
from trace_transfer.transfer.settings import MapSettings
from trace_transfer.transfer.similarity import GramStack, pack_layer, packed_length

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

REPRESENTATIONS = ("stream", "update")
CACHE_VERSION = 3
CACHE_LIMIT = 8 << 30
DAY = 86_400.0
LOADING = Lock()  # two models that are read at once are loaded one after the other


@dataclass(frozen=True)
class Grams:
    """Of one model by representation: the packed Gram matrices of all layers, and float [L, 2], of each layer the
    dimension with the largest variance over rows, and its share of all variance."""

    stacks: dict[str, GramStack]
    largest: dict[str, Tensor]


NOT_READ = Grams({}, dict.fromkeys(REPRESENTATIONS, torch.empty(0, 2)))


def unit_rows(rows_Rd: Tensor) -> Tensor:
    """Rows scaled to unit norm: what the next layer's RMSNorm sees, and one outlier row counts as any other."""
    norms_R1: Tensor = torch.linalg.vector_norm(rows_Rd, dim=1, keepdim=True)
    return rows_Rd / norms_R1.clamp_min(torch.finfo(rows_Rd.dtype).tiny)


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {"unit": unit_rows, "none": lambda rows_Rd: rows_Rd}


def read_grams(
    model: OpenModel, checkpoint: Checkpoint, plan: RowPlan, reading: Reading, settings: MapSettings, device: str,
    dtype: torch.dtype, reporter: Reporter, stopped: Event, built: PreTrainedModel | None = None,
) -> Grams:  # fmt: skip
    """Gram matrices of a model's layers, from the cache or by one pass over its weights; raises as `read_layers`.
    `device` and `dtype` are what the settings' come to. `stopped`, once set, ends the pass. `built` is the model
    without weights, made before other threads compute, since making it changes all of torch."""
    num_layers, length = model.anatomy.num_layers, sum(map(packed_length, plan.sizes))
    tensors = {name: torch.empty(num_layers, length) for name in REPRESENTATIONS}
    tensors |= {f"{name}.largest": torch.empty(num_layers, 2) for name in REPRESENTATIONS}
    file: Path | None = None
    cached = None
    if settings.cache is not None:
        key = _cache_key(model, checkpoint, plan, reading, settings.transform, device, dtype)
        file = settings.cache / f"{key}.safetensors"
        if file.exists() and (cached := _load(file)) is None:
            reporter.note(f"{model.name}: {file} is damaged and is made again")
    if cached:
        reporter.note(f"{model.name}: activations of this probe set are cached")
        tensors = cached
    else:
        with reporter.task(f"reading {model.name}", num_layers) as advance:

            def consume(rows: LayerRows) -> None:
                if stopped.is_set():
                    raise ModelError(f"{model.name}: its reading was stopped")
                for name in REPRESENTATIONS:
                    rows_Rd = TRANSFORMS[settings.transform](getattr(rows, name))
                    pack_layer(rows_Rd, plan.sizes, tensors[name][rows.layer])
                    variance_d = rows_Rd.var(dim=0)
                    share = variance_d.max() / variance_d.sum().clamp_min(1e-30)
                    tensors[f"{name}.largest"][rows.layer] = torch.stack([variance_d.argmax().float(), share])
                advance()

            read_layers(
                model.config, checkpoint, model.anatomy.layer_path, reading, plan.texts_R, consume, name=model.name,
                batch_size=settings.batch_size, device=device, dtype=dtype, attention=settings.attention, built=built,
            )  # fmt: skip
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(file, tensors, {"format": "trace-transfer/grams", "version": str(CACHE_VERSION)})
                _prune(file.parent)
            except OSError as error:  # a full disk must not cost the pass
                reporter.note(f"{model.name}: its activations could not be cached ({error.strerror})")
    stacks = {name: GramStack(tensors[name], plan.texts_R.split(plan.sizes)) for name in REPRESENTATIONS}
    return Grams(stacks, {name: tensors[f"{name}.largest"] for name in REPRESENTATIONS})


def _cache_key(
    model: OpenModel, checkpoint: Checkpoint, plan: RowPlan, reading: Reading, transform: str, device: str,
    dtype: torch.dtype,
) -> str:  # fmt: skip
    """Weights, config, rows and settings: whatever changes the result changes the name of the file."""
    parts: list[Any] = [
        CACHE_VERSION, checkpoint.fingerprint, model.anatomy.inventory.names_sha256, model.anatomy.layer_path,
        config_sha256(model.config.to_dict()), reading.ids, reading.spans_R2.tolist(), plan.texts_R.tolist(),
        plan.sizes, transform, str(dtype), torch.device(device).type,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _load(file: Path) -> dict[str, Tensor] | None:
    """What a cached file holds; None if it is damaged, and is to be made again."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with suppress(OSError, SafetensorError):
        os.utime(file)
        # Out of the mapped file, which is not aligned: products give other last bits there.
        return {name: one.clone() for name, one in load_file(file).items()}
    return None


def _prune(directory: Path) -> None:
    """Keep the cache below 8 GiB, the most recently used files first, and free of what killed runs left there."""
    remove_leftovers(directory, older_than=DAY)
    total = 0
    for file in sorted(directory.glob("*.safetensors"), key=lambda f: f.stat().st_mtime, reverse=True):
        total += file.stat().st_size
        if total > CACHE_LIMIT:
            file.unlink(missing_ok=True)


# ---- one pass over the weights


@dataclass(frozen=True)
class LayerRows:
    """Rows of one layer, float32 [R, d] each: the residual stream after the layer, and what the layer added to it."""

    layer: int
    stream: Tensor
    update: Tensor


@torch.no_grad()
def read_layers(
    config: PretrainedConfig, checkpoint: Checkpoint, layer_path: str, reading: Reading, texts_R: Tensor,
    consume: Callable[[LayerRows], None], *, name: str, batch_size: int = 16, device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32, attention: str = "auto", built: PreTrainedModel | None = None,
) -> None:  # fmt: skip
    """Run a model over the probe set and hand each layer's rows to `consume`, first layer first.

    A thread reads the next layer while this one computes, so that two are in memory at once.

    Args:
        layer_path: module path of the layer list, as the family's rules say (`model.layers`).
        texts_R: the text of each row.
        batch_size: texts per micro-batch; texts of like length go together.

    Raises:
        ModelError: weights or activations that are not finite.
    """
    model = attend(built or build_meta_model(config, dtype), attention)
    for module in model.modules():  # rotary frequencies and the like; tensors stay on the meta device
        for key, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, key, buffer.to(device))
    layers = layers_of(model, layer_path)

    @torch.no_grad()  # which a thread does not inherit
    def bring_in(wanted: Callable[[str], bool]) -> None:
        with LOADING:
            checkpoint.load(model, wanted, device, dtype)

    def submit(index: int) -> Future[None]:
        return reader.submit(bring_in, lambda key: key.startswith(f"{layer_path}.{index}."))

    used = torch.tensor(sorted({token for ids in reading.ids for token in ids}))
    embedding = _embedding(model, checkpoint, used, device, dtype)
    own, below, above = embedding[1], f"{model.base_model_prefix}.", f"{layer_path}."
    bring_in(lambda key: key.startswith(below) and not key.startswith(above) and key != own)
    micro_batches = _micro_batches(model, name, layers, embedding[0], used, reading, texts_R, batch_size)
    release(model)
    with ThreadPoolExecutor(max_workers=1) as reader:
        reading_next = submit(0)
        for index, layer in enumerate(layers):
            reading_next.result()
            if index + 1 < len(layers):
                reading_next = submit(index + 1)
            before_Rd = torch.zeros(len(texts_R), micro_batches[0].hidden_btd.shape[-1], dtype=torch.float64)
            after_Rd = torch.zeros_like(before_Rd)
            for batch in micro_batches:
                batch.pick(before_Rd)
                batch.step(layer, index)
                batch.pick(after_Rd)  # waits for the GPU: what is released now is used no more, in any stream
            release(layer)
            bad = (~torch.isfinite(after_Rd).all(dim=1)).nonzero().flatten()
            if len(bad):
                raise ModelError(
                    f"{name}: NaN or Inf in the activations after layer {index}, first in text {int(texts_R[bad[0]])} "
                    f"of the probe set ({len(bad)} of {len(texts_R)} rows); try --dtype float32"
                )
            consume(LayerRows(index, after_Rd.float(), (after_Rd - before_Rd).float()))


def _embedding(
    model: PreTrainedModel, checkpoint: Checkpoint, ids: Tensor, device: Any, dtype: torch.dtype
) -> tuple[nn.Module, str]:
    """The input embedding with only the rows of some token ids, in their order, and the name of its weight."""
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    weight = next(key for key, module in model.named_modules() if module is embedding) + ".weight"
    embedding.weight = nn.Parameter(checkpoint.rows(model, weight, ids, dtype).to(device), requires_grad=False)
    embedding.padding_idx = None
    return embedding, weight


@dataclass
class _MicroBatch:
    """Some texts on their way through the layers."""

    hidden_btd: Tensor  # the residual stream where they are now
    calls: Calls  # for each layer the arguments, after the hidden states, that the model's forward gave it
    # rows, texts, tokens, shares: of each token of a row: the row, the text's place in this micro-batch, the token, and
    # its share (one over the length of the row's span)
    rows: Tensor
    texts: Tensor
    tokens: Tensor
    shares: Tensor

    def step(self, layer: nn.Module, index: int) -> None:
        args, kwargs = self.calls[index]
        out = layer(self.hidden_btd, *args, **kwargs)
        self.hidden_btd = out[0] if isinstance(out, tuple) else out

    def pick(self, rows_Rd: Tensor) -> None:
        """Add these texts' share to the rows, in float64."""
        picked = self.hidden_btd[self.texts, self.tokens].to("cpu", torch.float64)
        rows_Rd.index_add_(0, self.rows, picked * self.shares[:, None])


def _micro_batches(
    model: PreTrainedModel, name: str, layers: Sequence[nn.Module], embedding: nn.Module, used: Tensor,
    reading: Reading, texts_R: Tensor, batch_size: int,
) -> list[_MicroBatch]:  # fmt: skip
    """All texts, shortest first, embedded and ready for the first layer."""
    position = {token: index for index, token in enumerate(used.tolist())}
    rows_of: dict[int, list[tuple[int, int, int]]] = {}  # text → its rows, each with its span
    for row, (text, (first, stop)) in enumerate(zip(texts_R.tolist(), reading.spans_R2.tolist(), strict=True)):
        rows_of.setdefault(text, []).append((row, first, stop))
    order = sorted(range(len(reading.ids)), key=lambda text: len(reading.ids[text]))
    batches = []
    for start in range(0, len(order), batch_size):
        texts = order[start : start + batch_size]
        ids_bt = padded([[position[token] for token in reading.ids[text]] for text in texts])
        embeds_btd = embedding(ids_bt.to(next(embedding.parameters()).device))
        run = partial(model.base_model, inputs_embeds=embeds_btd, use_cache=False)
        hidden_btd, calls = recorded_calls(name, layers, run)
        shares = [
            (row, place, token, 1.0 / (stop - first))
            for place, text in enumerate(texts)
            for row, first, stop in rows_of.get(text, ())
            for token in range(first, stop)
        ]
        rows, places, tokens = torch.tensor([one[:3] for one in shares], dtype=torch.int64).reshape(-1, 3).T
        share = torch.tensor([one[3] for one in shares], dtype=torch.float64)
        batches.append(_MicroBatch(hidden_btd, calls, rows, places, tokens, share))
    return batches
