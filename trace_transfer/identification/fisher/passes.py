"""Backward passes over one micro-batch: through the whole model at once, or layer by layer.

Layer by layer, a forward pass without gradients keeps only what enters each layer. Then the head is run from the last
hidden states, group after group, and each layer is run again, from last to first, with the gradient of what leaves it;
its graph is dropped before the next one's is built. The model's own forward makes the calls of all layers, so that
masks and positions are right for every family. One more forward pass, for the memory of one layer.

Shapes: b examples, t tokens, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trace_transfer.errors import ModelError
from trace_transfer.identification.fisher.batches import MicroBatch, loss_of, run_model
from trace_transfer.identification.fisher.capture import checkpointed
from trace_transfer.identification.fisher.sites import Pass
from trace_transfer.models.running import replaced_forwards

BackwardPass = Callable[[nn.Module, Sequence[nn.Module], MicroBatch, Pass], None]


class _StoppedSignal(Exception):  # noqa: N818 (not an error)
    """What was wanted of a forward pass is there."""


def whole_pass(model: nn.Module, layers: Sequence[nn.Module], batch: MicroBatch, run: Pass) -> None:
    """Forward and backward through the whole model; layers with gradient checkpointing enabled use it."""
    _announce(batch, run)
    hook = layers[0].register_forward_pre_hook(_begin_graph)
    try:
        with torch.enable_grad(), checkpointed(layers):
            loss_of(model, batch).backward()
    finally:
        hook.remove()


def streamed_pass(model: nn.Module, layers: Sequence[nn.Module], batch: MicroBatch, run: Pass) -> None:
    """The same with one layer's graph at a time in memory."""
    calls, out = _record(model, layers, batch)
    hidden_btd, rest = _hidden(out), out[1:] if isinstance(out, tuple) else None
    del out
    gradient_btd = torch.empty_like(hidden_btd)
    size = batch.num_examples // batch.num_groups
    for index in range(batch.num_groups):
        rows = slice(index * size, (index + 1) * size)
        gradient_btd[rows] = _through_head(model, layers, batch.group(index), hidden_btd[rows], rest, run)
    del hidden_btd
    _announce(batch, run)
    for layer in reversed(layers):
        hidden_btd, args, kwargs = calls.pop()
        gradient_btd = _through_layer(layer, hidden_btd, gradient_btd, args, kwargs)
    _through_embedding(model, layers, batch, gradient_btd)


Call = tuple[Tensor, tuple[Any, ...], dict[str, Any]]


@torch.no_grad()
def _record(model: nn.Module, layers: Sequence[nn.Module], batch: MicroBatch) -> tuple[list[Call], Any]:
    """How each layer is called, and what the last one returns."""
    calls: list[Call] = []
    last: list[Any] = []

    def note(forward: Any, hidden_btd: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((hidden_btd, args, kwargs))
        out = forward(hidden_btd, *args, **kwargs)
        if len(calls) == len(layers):
            last.append(out)
            raise _StoppedSignal
        return out

    _until_stopped(model, layers, [partial(note, layer.forward) for layer in layers], batch)
    if not last:
        raise ModelError(f"its forward pass called {len(calls)} of {len(layers)} layers")
    return calls, last[0]


def _through_head(
    model: nn.Module,
    layers: Sequence[nn.Module],
    batch: MicroBatch,
    hidden_btd: Tensor,
    rest: tuple[Any, ...] | None,
    run: Pass,
) -> Tensor:
    """The gradient of the hidden states after the last layer, for one group.

    `rest` is what the layers of this family return beside them; None where they return them alone.
    """
    _announce(batch, run)
    leaf_btd = hidden_btd.detach().requires_grad_()

    def returned(hidden_btd: Tensor) -> Any:
        return hidden_btd if rest is None else (hidden_btd, *rest)

    def pass_on(hidden_btd: Tensor, *args: Any, **kwargs: Any) -> Any:
        return returned(hidden_btd)

    def finish(hidden_btd: Tensor, *args: Any, **kwargs: Any) -> Any:
        return returned(leaf_btd)

    forwards = [pass_on] * (len(layers) - 1) + [finish]
    with torch.enable_grad(), replaced_forwards(layers, forwards):
        loss_of(model, batch).backward()
    assert leaf_btd.grad is not None  # the loss is a function of it
    return leaf_btd.grad


def _through_layer(
    layer: nn.Module, hidden_btd: Tensor, gradient_btd: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """The gradient of what enters a layer, from that of what leaves it."""
    leaf_btd = hidden_btd.detach().requires_grad_()
    with torch.enable_grad():
        out = layer(leaf_btd, *args, **kwargs)
        (gradient_btd,) = torch.autograd.grad(_hidden(out), leaf_btd, gradient_btd)
    return gradient_btd


def _through_embedding(model: nn.Module, layers: Sequence[nn.Module], batch: MicroBatch, gradient_btd: Tensor) -> None:
    """Backward through what lies below the layers."""

    def stop(hidden_btd: Tensor, *args: Any, **kwargs: Any) -> None:
        if hidden_btd.requires_grad:
            hidden_btd.backward(gradient_btd)
        raise _StoppedSignal

    with torch.enable_grad():
        _until_stopped(model, layers, [stop] * len(layers), batch)


def _until_stopped(model: nn.Module, layers: Sequence[nn.Module], forwards: Sequence[Any], batch: MicroBatch) -> None:
    with replaced_forwards(layers, forwards), suppress(_StoppedSignal):
        run_model(model, batch)


def _begin_graph(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Where no embedding has a form, the graph begins at the first layer."""
    return None if args[0].requires_grad else (args[0].requires_grad_(), *args[1:])


def _announce(batch: MicroBatch, run: Pass) -> None:
    """Tell the forms what the next forward pass reads."""
    run.num_rows, run.num_groups = batch.input_ids_bt.shape[0], batch.num_groups
    run.num_tokens, run.sparse = batch.input_ids_bt.shape[1], batch.sparse


def _hidden(out: Tensor | tuple[Tensor, *tuple[Any, ...]]) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
