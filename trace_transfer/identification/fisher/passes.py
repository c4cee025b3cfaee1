"""Backward passes that leave squared gradients: examples as micro-batches, the whole model at once or layer by layer.

Layer by layer, a forward pass without gradients keeps only what enters each layer. Then the head is run from the last
hidden states, group after group, and each layer is run again, from last to first, with the gradient of what leaves it;
its graph is dropped before the next one's is built. The model's own forward makes the calls of all layers, so that
masks and positions are right for every family. One more forward pass, for the memory of one layer.

Tensors without a form are left to the one-example loop, which also shows, on two short texts, that the forms are right.

Shapes: k groups of n examples each, b = k n examples, t tokens of the longest, d hidden size, s positions that are
supervised in any of them, v vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trace_transfer.data.examples import IGNORED, Batch, Example, collate, losses
from trace_transfer.errors import ModelError, NumericalError, listing
from trace_transfer.identification.fisher.sites import Pass, Totals
from trace_transfer.models.running import replaced_forwards

Group = tuple[Example, ...]


@dataclass(frozen=True)
class MicroBatch:
    """Groups of equally many examples, padded to one length, on the model's device.

    Attributes:
        num_groups: k; examples lie group after group.
        positions_s: where any example is supervised: only there logits are needed.
    """

    batch: Batch
    num_groups: int
    input_ids_bt: Tensor
    targets_bs: Tensor
    positions_s: Tensor

    @property
    def num_examples(self) -> int:
        return len(self.batch.ids)

    @property
    def sparse(self) -> bool:
        """Whether many positions have no loss."""
        return int((self.batch.targets_bt != IGNORED).sum()) < 0.75 * self.batch.targets_bt.numel()

    def group(self, index: int) -> MicroBatch:
        """One group alone, with the same padding."""
        size = self.num_examples // self.num_groups
        rows = slice(index * size, (index + 1) * size)
        batch = Batch(
            self.batch.ids[rows],
            self.batch.input_ids_bt[rows],
            self.batch.attention_mask_bt[rows],
            self.batch.targets_bt[rows],
        )
        return _on_device(batch, 1, self.input_ids_bt.device)


def group_examples(examples: Sequence[Example], batch_of: int) -> list[Group]:
    """Groups of consecutive examples; the last may be smaller."""
    return [tuple(examples[start : start + batch_of]) for start in range(0, len(examples), batch_of)]


def micro_batches(groups: Sequence[Group], tokens_at_once: int) -> list[list[Group]]:
    """Groups of one size and like length together, longest first: what does not fit in memory fails at once.

    Args:
        tokens_at_once: a micro-batch has no more tokens, padding included, unless one group alone has.
    """
    batches: list[list[Group]] = []
    for group in sorted(groups, key=lambda group: (len(group), _longest(group)), reverse=True):
        last = batches[-1] if batches else []
        fits = last and len(last[0]) == len(group)
        if fits and (len(last) + 1) * len(group) * _longest(last[0]) <= tokens_at_once:
            last.append(group)
        else:
            batches.append([group])
    return batches


def prepare(groups: Sequence[Group], device: torch.device) -> MicroBatch:
    """Pad groups of equally many examples and put them on a device."""
    return _on_device(collate([example for group in groups for example in group]), len(groups), device)


def run_model(model: nn.Module, batch: MicroBatch, **arguments: Any) -> Any:
    """The model's forward pass, with a mask that hides nothing.

    Padding is on the right, so that no token of a text sees it in a causal model. Were it masked, a padded position
    might see nothing at all (behind a sliding window), and then is NaN with eager attention in float64; and attention
    has a faster way without a mask.
    """
    everything_bt = torch.ones_like(batch.input_ids_bt)
    return model(input_ids=batch.input_ids_bt, attention_mask=everything_bt, use_cache=False, **arguments)


def loss_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    """The sum over groups of each group's mean loss over its supervised tokens.

    Raises:
        NumericalError: a group's loss is NaN or Inf; names the examples.
    """
    keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits_bsv = run_model(model, batch, **({"logits_to_keep": batch.positions_s} if keep else {})).logits
    if logits_bsv.shape[1] != len(batch.positions_s):
        logits_bsv = logits_bsv[:, batch.positions_s]
    summed_k = losses(logits_bsv, batch.targets_bs).view(batch.num_groups, -1).sum(dim=1)
    losses_k = summed_k / (batch.targets_bs != IGNORED).view(batch.num_groups, -1).sum(dim=1)
    if not torch.isfinite(losses_k).all():
        bad = (~torch.isfinite(losses_k)).nonzero().flatten().tolist()
        size = batch.num_examples // batch.num_groups
        ids = [", ".join(batch.batch.ids[index * size : (index + 1) * size]) for index in bad]
        raise NumericalError(
            f"Fisher information: the loss is NaN or Inf for {len(bad)} of {batch.num_groups} examples or batches:\n"
            + listing(ids)
            + "\ntry float32, or look at the model's weights"
        )
    return losses_k.sum()


def _longest(group: Group) -> int:
    return max(len(example.input_ids) for example in group)


def _on_device(batch: Batch, num_groups: int, device: torch.device) -> MicroBatch:
    positions_s = (batch.targets_bt != IGNORED).any(dim=0).nonzero().flatten()
    return MicroBatch(
        batch,
        num_groups,
        batch.input_ids_bt.to(device),
        batch.targets_bt[:, positions_s].to(device),
        positions_s.to(device),
    )


# ---- backward


BackwardPass = Callable[[nn.Module, Sequence[nn.Module], MicroBatch, Pass], None]


class _StoppedSignal(Exception):  # noqa: N818 (not an error)
    """What was wanted of a forward pass is there."""


def whole_pass(model: nn.Module, layers: Sequence[nn.Module], batch: MicroBatch, run: Pass) -> None:
    """Forward and backward through the whole model."""
    _announce(batch, run)
    hook = layers[0].register_forward_pre_hook(_begin_graph)
    try:
        with torch.enable_grad():
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


# ---- one example at a time


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no tensor requires a gradient; all flags are restored at the end."""
    requires = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for parameter, flag in requires:
            parameter.requires_grad_(flag)
        for module, flag in training:
            module.training = flag


def loop_over_groups(model: nn.Module, groups: Sequence[Group], names: Sequence[str], totals: Totals) -> None:
    """Add the squared gradients of some tensors, group after group; no two gradients are held at once."""
    device = next(model.parameters()).device
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in set(names)}
    for group in groups:
        with torch.enable_grad(), _requiring_grad(parameters.values()):
            loss = loss_of(model, prepare([group], device))
            if loss.requires_grad:
                with _listening(parameters, totals):
                    loss.backward()


@contextmanager
def _requiring_grad(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


@contextmanager
def _listening(parameters: dict[str, nn.Parameter], totals: Totals) -> Iterator[None]:
    """Each gradient is squared and dropped as soon as it is whole; gradients that were there before are put back."""
    before = {name: parameter.grad for name, parameter in parameters.items()}
    with ExitStack() as stack:
        for name, parameter in parameters.items():
            parameter.grad = None

            def square(parameter: nn.Parameter, name: str = name) -> None:
                assert parameter.grad is not None  # the hook runs once it is whole
                totals.add_gradient(name, parameter.grad)
                parameter.grad = None

            stack.callback(parameter.register_post_accumulate_grad_hook(square).remove)
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.grad = before[name]
