"""One pass of a model over the probe set, layer by layer: each weight read once, no more than one layer in memory.

Reads: a model's weights, the token ids and row spans of a `Reading`. Gives: for each layer the rows of both
representations, handed to a consumer and forgotten.

The model is built on the meta device. Its own forward runs once for each micro-batch with layers that only note what
they are called with, so embeddings, masks and positions are right for every family. Then layer after layer: its
weights are brought in, all micro-batches go through it, its weights are dropped. (accelerate's offloading hooks would
read the weights again for each micro-batch.)

Shapes: b texts of a micro-batch, t tokens of its longest, R rows, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from trace_transfer.data.probe import Reading, token_matrix
from trace_transfer.errors import ModelError, listing
from trace_transfer.models.checkpoints import Checkpoint, release
from trace_transfer.models.layer_calls import layers_of, replaced_forwards
from trace_transfer.models.sources import build_meta_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

REPRESENTATIONS = ("stream", "update")


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
) -> None:
    """Run a model over the probe set and hand each layer's rows to `consume`, first layer first.

    Args:
        layer_path: module path of the layer list, as the family's rules say (`model.layers`).
        reading: what this model reads, and the token span of each row.
        texts_R: the text of each row.
        name: the model's name for messages.
        batch_size: texts per micro-batch; texts of like length go together.

    Raises:
        ModelError: weights missing, of a wrong shape, or not finite; activations not finite.
    """
    model = build_meta_model(config, dtype)
    _move_buffers(model, device)
    loader = _Loader(model, layer_path, checkpoint, name, device, dtype)
    layers = layers_of(model, layer_path)
    micro_batches = _micro_batches(loader, layers, reading, texts_R, batch_size)
    for index, layer in enumerate(layers):
        loader.bring_in_layer(layer, index)
        before_Rd = torch.zeros(len(texts_R), micro_batches[0].hidden_btd.shape[-1], dtype=torch.float64)
        after_Rd = torch.zeros_like(before_Rd)
        for batch in micro_batches:
            batch.pick(before_Rd)
            batch.step(layer, index)
            batch.pick(after_Rd)
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

    def bring_in_layer(self, layer: nn.Module, index: int) -> None:
        prefix = f"{self.layer_path}.{index}."
        self._bring_in(layer, prefix, lambda name: name.startswith(prefix), f"layer {index}")

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
        self._bring_in(
            self.model.base_model,
            prefix,
            lambda found: found.startswith(prefix) and not found.startswith(layers) and found != name,
            "its embedding",
        )
        return embedding

    def _bring_in(self, module: nn.Module, prefix: str, wanted: Callable[[str], bool], where: str) -> None:
        """Load the wanted parameters of a module and refuse missing ones."""
        self.checkpoint.load(self.model, wanted, self.device, self.dtype)
        mine = [(prefix + name, parameter) for name, parameter in module.named_parameters() if wanted(prefix + name)]
        missing = [name for name, parameter in mine if parameter.is_meta]
        if missing:
            raise ModelError(
                f"{self.name}: the weights lack {len(missing)} parameters of {where}:\n" + listing(missing)
            )


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
    """Rotary frequencies and the like to where the computation is; parameters stay on the meta device."""
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
