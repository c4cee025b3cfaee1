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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from trace_transfer.data.probe import Reading, RowPlan, token_matrix
from trace_transfer.errors import ModelError, first_line, listing
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import remove_leftovers
from trace_transfer.models.checkpoints import Checkpoint, release
from trace_transfer.models.content import config_sha256
from trace_transfer.models.running import attend, layers_of, replaced_forwards
from trace_transfer.models.sources import build_meta_model
from trace_transfer.models.tensors import write_tensors
from trace_transfer.progress import Reporter
from trace_transfer.transfer.similarity import GramStack, pack_layer, packed_length

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

REPRESENTATIONS = ("stream", "update")
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
    attention: str = "auto"


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
    num_layers, length = model.anatomy.num_layers, sum(map(packed_length, plan.sizes))
    shapes = dict.fromkeys(REPRESENTATIONS, (num_layers, length))
    shapes |= {_largest(name): (num_layers, 2) for name in REPRESENTATIONS}
    file = None
    if settings.cache is not None:
        file = settings.cache / f"{_cache_key(model, checkpoint, plan, reading, settings)}.safetensors"
    if file is not None and file.exists():
        cached = _load(file, shapes)
        if not isinstance(cached, str):
            reporter.note(f"{model.name}: activations of this probe set are cached")
            return _grams(cached, plan)
        reporter.note(f"{model.name}: {file} is damaged ({cached}) and is made again")
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    with reporter.task(f"reading {model.name}", num_layers) as advance:

        def consume(rows: LayerRows) -> None:
            for name in REPRESENTATIONS:
                rows_Rd = TRANSFORMS[settings.transform](getattr(rows, name))
                pack_layer(rows_Rd, plan.sizes, tensors[name][rows.layer])
                tensors[_largest(name)][rows.layer] = _largest_dimension(rows_Rd)
            advance()

        read_layers(
            model.config, checkpoint, model.anatomy.layer_path, reading, plan.texts_R, consume, name=model.name,
            batch_size=settings.batch_size, device=settings.device, dtype=settings.dtype, attention=settings.attention,
        )  # fmt: skip
    if file is not None:
        try:
            write_tensors(file, tensors, {"format": "trace-transfer/grams", "version": str(CACHE_VERSION)})
            _prune(file.parent)
        except OSError as error:  # a full disk must not cost the pass
            reporter.note(f"{model.name}: its activations could not be cached ({error.strerror})")
    return _grams(tensors, plan)


def _grams(tensors: Mapping[str, Tensor], plan: RowPlan) -> Grams:
    stacks = {name: GramStack(tensors[name], plan.minibatch_texts) for name in REPRESENTATIONS}
    return Grams(stacks, {name: tensors[_largest(name)] for name in REPRESENTATIONS})


def _largest(representation: str) -> str:
    return f"{representation}.largest"


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


def _load(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | str:
    """What a cached file holds, or what is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        os.utime(file)
    except (OSError, SafetensorError) as error:
        return first_line(error)
    if tensors.keys() != shapes.keys():
        return f"it holds {', '.join(sorted(tensors)) or 'nothing'}, expected {', '.join(sorted(shapes))}"
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shapes[name]:
            return f"{name} is {list(tensor.shape)} in {tensor.dtype}, expected {list(shapes[name])} in torch.float32"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or Inf"
    return tensors


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


class _FinishedSignal(Exception):  # noqa: N818 (not an error)
    """The last layer has been called: the final norm and the head need not run, nor be read."""


@torch.no_grad()
def read_layers(
    config: PretrainedConfig,
    checkpoint: Checkpoint,
    layer_path: str,
    reading: Reading,
    texts_R: Tensor,
    consume: Callable[[LayerRows], None],
    *,
    name: str,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
) -> None:
    """Run a model over the probe set and hand each layer's rows to `consume`, first layer first.

    A thread reads the next layer while this one computes, so that two are in memory at once.

    Args:
        layer_path: module path of the layer list, as the family's rules say (`model.layers`).
        reading: what this model reads, and the token span of each row.
        texts_R: the text of each row.
        name: the model's name for messages.
        batch_size: texts per micro-batch; texts of like length go together.

    Raises:
        ModelError: weights missing, of a wrong shape, or not finite; activations not finite.
    """
    model = attend(build_meta_model(config, dtype), attention)
    _move_buffers(model, device)
    loader = _Loader(model, layer_path, checkpoint, name, device, dtype)
    layers = layers_of(model, layer_path)
    micro_batches = _micro_batches(loader, layers, reading, texts_R, batch_size)
    with ThreadPoolExecutor(max_workers=1) as reader:
        reading_next = reader.submit(loader.bring_in_layer, 0)
        for index, layer in enumerate(layers):
            reading_next.result()
            if index + 1 < len(layers):
                reading_next = reader.submit(loader.bring_in_layer, index + 1)
            before_Rd = torch.zeros(len(texts_R), micro_batches[0].hidden_btd.shape[-1], dtype=torch.float64)
            after_Rd = torch.zeros_like(before_Rd)
            for batch in micro_batches:
                batch.pick(before_Rd)
                batch.step(layer, index)
                batch.pick(after_Rd)  # waits for the GPU: what is released now is used no more, in any stream
            release(layer)
            _require_finite(after_Rd, texts_R, name, index)
            consume(LayerRows(index, after_Rd.float(), (after_Rd - before_Rd).float()))


@dataclass(frozen=True)
class _Loader:
    """Brings parts of a meta-device model in from its checkpoint."""

    model: PreTrainedModel
    layer_path: str
    checkpoint: Checkpoint
    name: str
    device: str | torch.device
    dtype: torch.dtype

    def bring_in_embedding(self, ids: Tensor) -> nn.Module:
        """The input embedding with only the rows of some token ids, in their order, and whatever else lies below the
        layers (learned positions, norms; never the head)."""
        embedding = cast(nn.Embedding, self.model.get_input_embeddings())
        if int(ids.max()) >= embedding.num_embeddings:
            raise ModelError(
                f"{self.name}: its tokenizer gives token id {int(ids.max())}, but its embedding has only "
                f"{embedding.num_embeddings} rows: the tokenizer belongs to another model"
            )
        name = next(name for name, module in self.model.named_modules() if module is embedding) + ".weight"
        rows = self.checkpoint.rows(self.model, name, ids, self.dtype).to(self.device)
        embedding.weight = nn.Parameter(rows, requires_grad=False)
        embedding.padding_idx = None
        prefix, layers = f"{self.model.base_model_prefix}.", f"{self.layer_path}."
        self.bring_in(
            lambda found: found.startswith(prefix) and not found.startswith(layers) and found != name, "its embedding"
        )
        return embedding

    @torch.no_grad()  # which a thread does not inherit
    def bring_in_layer(self, index: int) -> None:
        prefix = f"{self.layer_path}.{index}."
        self.bring_in(lambda name: name.startswith(prefix), f"layer {index}")

    def bring_in(self, wanted: Callable[[str], bool], where: str) -> None:
        """Load the wanted tensors and refuse missing ones (of a GGUF file nobody has compared them before)."""
        self.checkpoint.load(self.model, wanted, self.device, self.dtype)
        missing = [name for name, value in self.model.named_parameters() if wanted(name) and value.is_meta]
        if missing:
            raise ModelError(f"{self.name}: the weights lack tensors of {where}:\n" + listing(missing))


@dataclass
class _MicroBatch:
    """Some texts on their way through the layers.

    Attributes:
        hidden_btd: the residual stream where they are now.
        calls: for each layer the arguments, after the hidden states, that the model's forward gave it.
        rows, texts, tokens, shares: of each token that a row takes a share of: the row, the text's place in this
            micro-batch, the token, and the share (one over the length of the span).
    """

    hidden_btd: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
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
    loader: _Loader, layers: Sequence[nn.Module], reading: Reading, texts_R: Tensor, batch_size: int
) -> list[_MicroBatch]:
    """All texts, shortest first, embedded and ready for the first layer."""
    used = torch.tensor(sorted({token for ids in reading.ids for token in ids}))
    embedding = loader.bring_in_embedding(used)
    position = {token: index for index, token in enumerate(used.tolist())}
    order = sorted(range(len(reading.ids)), key=lambda text: len(reading.ids[text]))
    batches = []
    for start in range(0, len(order), batch_size):
        texts = order[start : start + batch_size]
        ids_bt = token_matrix([[position[token] for token in reading.ids[text]] for text in texts])
        hidden_btd, calls = _record_calls(loader.model, layers, embedding(ids_bt.to(loader.device)))
        batches.append(_MicroBatch(hidden_btd, calls, *_places(texts, reading.spans_R2, texts_R)))
    release(loader.model)
    return batches


def _places(texts: list[int], spans_R2: Tensor, texts_R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row, text, token and share of every token of the rows of some texts."""
    place = {text: index for index, text in enumerate(texts)}
    mine = [row for row, text in enumerate(texts_R.tolist()) if text in place]
    first_r, last_r = spans_R2[mine].T
    lengths_r = last_r - first_r
    within = torch.arange(int(lengths_r.sum())) - (lengths_r.cumsum(0) - lengths_r).repeat_interleave(lengths_r)
    return (
        torch.tensor(mine, dtype=torch.int64).repeat_interleave(lengths_r),
        torch.tensor([place[int(texts_R[row])] for row in mine], dtype=torch.int64).repeat_interleave(lengths_r),
        within + first_r.repeat_interleave(lengths_r),
        (1.0 / lengths_r.double()).repeat_interleave(lengths_r),
    )


def _record_calls(
    model: PreTrainedModel, layers: Sequence[nn.Module], embeds_btd: Tensor
) -> tuple[Tensor, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Run the model's forward with layers that pass their input on: what enters the first, and how each is called."""
    first: list[Tensor] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(hidden_btd: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        first.append(hidden_btd)
        calls.append((args, kwargs))
        if len(calls) == len(layers):
            raise _FinishedSignal
        return hidden_btd

    try:
        with replaced_forwards(layers, [note] * len(layers)):
            model.base_model(inputs_embeds=embeds_btd, use_cache=False)
    except _FinishedSignal:
        return first[0], calls
    raise ModelError(f"its forward pass called {len(calls)} of {len(layers)} layers")


def _move_buffers(model: PreTrainedModel, device: str | torch.device) -> None:
    """Rotary frequencies and the like to where the computation is; tensors stay on the meta device."""
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


def _require_finite(rows_Rd: Tensor, texts_R: Tensor, name: str, layer: int) -> None:
    bad = (~torch.isfinite(rows_Rd).all(dim=1)).nonzero().flatten()
    if len(bad):
        raise ModelError(
            f"{name}: NaN or Inf in the activations after layer {layer}, first in text {int(texts_R[bad[0]])} of the "
            f"probe set ({len(bad)} of {len(rows_Rd)} rows); try --dtype float32"
        )
