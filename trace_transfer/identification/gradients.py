"""Gradients of a model at its base, tensor by tensor, with the weights of one layer at a time in memory.

Reads a checkpoint and sets of examples. Gives for each tensor, from the head down to the embedding, two means over each
set's examples: of the gradient of an example's loss, and of its square, element by element. No gradient is kept after
that, so that a model needs no more room than its largest layer with these means, and what enters each layer: layers x
tokens of all examples x width x 4 bytes, on the CPU.

The model's own forward makes the calls of all layers, so that masks and positions are right for every family. Examples
go through one by one, without padding.

Shapes: N sets, t tokens of an example, d width, u rows of an embedding that an example uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trace_transfer.data.examples import Example
from trace_transfer.errors import ModelError, NumericalError, listing
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.identification.fisher.passes import MicroBatch, loss_of, prepare, run_model
from trace_transfer.models.checkpoints import Checkpoint, release
from trace_transfer.models.running import layers_of, replaced_forwards
from trace_transfer.models.sources import build_meta_model

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Moments:
    """Of one tensor: its value, and for each set the mean gradient and the mean squared gradient, [N, *shape]."""

    name: str
    value: Tensor
    mean: Tensor
    square: Tensor


class _StoppedSignal(Exception):  # noqa: N818 (not an error)
    """What was wanted of a forward pass is there."""


class BaseGradients:
    """A model and sets of examples, run forward once; `tensors` runs backward, as often as it is called."""

    def __init__(
        self, base: OpenModel, weights: Checkpoint, sets: Sequence[Sequence[Example]], device: str,
        advance: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Run forward.

        Args:
            advance: called once for each layer, here and in `tensors`.

        Raises:
            ModelError: weights are missing, or the model is not a stack of layers that hand on hidden states alone.
        """
        self.model: Any = build_meta_model(base.config, torch.float32).eval().requires_grad_(False)
        self.weights, self.device, self.advance, self.name = weights, torch.device(device), advance, base.name
        for module in self.model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(self.device))
        self.tied = base.anatomy.inventory.tied
        self.layers = layers_of(self.model, base.anatomy.layer_path)
        self.prefixes = [f"{base.anatomy.layer_path}.{index}." for index in range(len(self.layers))]
        self.sizes = [len(one) for one in sets]
        self.set_of = [index for index, one in enumerate(sets) for _ in one]
        self.batches = [prepare([(example,)], self.device) for one in sets for example in one]
        below = tuple(self.prefixes)
        self.outside = [name for name, _ in self.model.named_parameters() if not name.startswith(below)]
        for prefix, layer in zip(self.prefixes, self.layers, strict=True):
            own = sum(1 for _ in layer.parameters())
            if own != sum(name.startswith(prefix) for name, _ in self.model.named_parameters()):
                raise ModelError(f"{self.name}: layers share tensors, whose gradients are not known layer by layer")
        self._rest: tuple[Any, ...] | None = None  # what layers return beside hidden states; None: those alone
        self._forward()

    def tensors(self) -> Iterator[Moments]:
        """Run backward.

        Raises:
            NumericalError: a gradient is NaN or Inf.
        """
        sums = _Sums(self.sizes)
        above, tied_rows = self._through_head(sums)
        embedding = self.model.get_input_embeddings().weight
        tied = next(name for name, one in self.model.named_parameters() if one is embedding)
        yield from self._finished(sums, [name for name in sums.names if name != tied])
        for index in reversed(range(len(self.layers))):
            parameters = self._bring_in(self.prefixes[index])
            for number, gradient in enumerate(above):
                leaf = self.inputs[index][number].to(self.device).requires_grad_()
                with torch.enable_grad():
                    out = self._called(index, number, leaf)
                    found = torch.autograd.grad(
                        out, [leaf, *parameters.values()], gradient.to(self.device), allow_unused=True
                    )
                above[number] = _present(found[0], leaf).cpu()
                for name, one in zip(parameters, found[1:], strict=True):
                    sums.add(name, self.set_of[number], one)
            yield from self._finished(sums, list(parameters))
            release(self.layers[index])
            self.advance()
        self._through_embedding(sums, above, tied, tied_rows)
        yield from self._finished(sums, [name for name in self.outside if name not in sums.told])

    # ---- forward

    @torch.no_grad()
    def _forward(self) -> None:
        self.parameters = self._bring_in(lambda name: name in self.outside)
        self.calls: list[list[Call]] = []
        self.inputs: list[list[Tensor]] = [[]]
        for batch in self.batches:
            hidden, calls = self._recorded(batch)
            self.inputs[0].append(hidden.detach().cpu())
            self.calls.append(calls)
        for index, layer in enumerate(self.layers):
            self._bring_in(self.prefixes[index], trained=False)
            entered = self.inputs[index]
            self.inputs.append([self._called(index, n, one.to(self.device)).cpu() for n, one in enumerate(entered)])
            release(layer)
            self.advance()

    def _bring_in(self, wanted: str | Callable[[str], bool], trained: bool = True) -> dict[str, nn.Parameter]:
        """Load the tensors below a prefix, or those that are wanted; tied ones stay one tensor."""
        chosen = wanted if callable(wanted) else lambda name: name.startswith(wanted)
        self.weights.load(self.model, lambda name: chosen(self.tied.get(name, name)), self.device, torch.float32)
        for alias, owner in self.tied.items():
            if chosen(owner):
                both = [self.model.get_parameter(name) for name in (owner, alias)]
                one = next((one for one in both if not one.is_meta), both[0])
                for name in (owner, alias):
                    module, _, attribute = name.rpartition(".")
                    setattr(self.model.get_submodule(module), attribute, one)
        found = {name: one for name, one in self.model.named_parameters() if chosen(name)}
        if missing := [name for name, one in found.items() if one.is_meta]:
            raise ModelError(f"{self.name}: the weights lack tensors:\n" + listing(missing))
        for one in found.values():
            one.requires_grad_(trained)
        return found

    @torch.enable_grad()
    def _recorded(self, batch: MicroBatch) -> tuple[Tensor, list[Call]]:
        """What enters the first layer, and how each layer is called."""
        first: list[Tensor] = []
        calls: list[Call] = []

        def note(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            first.append(hidden)
            calls.append((args, kwargs))
            if len(calls) == len(self.layers):
                raise _StoppedSignal
            return hidden

        with replaced_forwards(self.layers, [note] * len(self.layers)), suppress(_StoppedSignal):
            run_model(self.model, batch)
        if len(calls) != len(self.layers):
            raise ModelError(f"{self.name}: its forward pass called {len(calls)} of {len(self.layers)} layers")
        if any(isinstance(one, Tensor) and one.requires_grad for one in tree_leaves(calls)):
            raise ModelError(f"{self.name}: its layers are given more than hidden states that depends on weights")
        return first[0], calls

    def _called(self, index: int, number: int, hidden: Tensor) -> Tensor:
        """What one layer makes of one example."""
        args, kwargs = self.calls[number][index]
        out: Any = self.layers[index](hidden, *args, **kwargs)
        if isinstance(out, tuple):
            self._rest = out[1:]
            return out[0]  # type: ignore[no-any-return]
        return out  # type: ignore[no-any-return]

    # ---- backward, outside of the layers

    def _through_head(self, sums: _Sums) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of what leaves the last layer; and of a tied embedding, those of the rows that each example
        uses, which its own gradient is added to before it is squared."""
        gradients, rows = [], []
        embedding = self.model.get_input_embeddings().weight

        def returning(leaf: Tensor | None = None) -> Any:
            def forward(hidden: Tensor, *_: Any, **__: Any) -> Any:
                out = hidden if leaf is None else leaf
                return out if self._rest is None else (out, *self._rest)

            return forward

        for number, batch in enumerate(self.batches):
            leaf = self.inputs[-1][number].to(self.device).requires_grad_()
            forwards = [*[returning()] * (len(self.layers) - 1), returning(leaf)]
            with torch.enable_grad(), replaced_forwards(self.layers, forwards):
                loss = loss_of(self.model, batch)
            found = torch.autograd.grad(loss, [leaf, *self.parameters.values()], allow_unused=True)
            gradients.append(_present(found[0], leaf).cpu())
            for (name, parameter), one in zip(self.parameters.items(), found[1:], strict=True):
                if one is not None:
                    sums.add(name, self.set_of[number], one)
                    if parameter is embedding:
                        rows.append(one[batch.input_ids_bt.unique()].clone())
        return gradients, rows

    def _through_embedding(
        self, sums: _Sums, gradients: Sequence[Tensor], tied: str, tied_rows: Sequence[Tensor]
    ) -> None:
        """What lies below the layers."""
        for number, (batch, gradient) in enumerate(zip(self.batches, gradients, strict=True)):
            hidden, _ = self._recorded(batch)
            if not hidden.requires_grad:
                continue
            below = torch.autograd.grad(
                hidden, list(self.parameters.values()), gradient.to(self.device), allow_unused=True
            )
            for name, one in zip(self.parameters, below, strict=True):
                if one is None:
                    continue
                if name in sums.told:
                    raise ModelError(f"{self.name}: {name} is used above and below the layers")
                sums.add(name, self.set_of[number], one)
                if name == tied and tied_rows:  # (a + b)² = a² + b² + 2 a b
                    ids = batch.input_ids_bt.unique()
                    sums.square[name][self.set_of[number], ids] += 2 * one[ids] * tied_rows[number]

    def _finished(self, sums: _Sums, names: Sequence[str]) -> Iterator[Moments]:
        own = dict(self.model.named_parameters())
        for name in names:
            yield sums.finish(name, own[name].detach())


class _Sums:
    """Sums over examples by tensor, until they are told."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}
        self.told: set[str] = set()

    @property
    def names(self) -> list[str]:
        return list(self.mean)

    def add(self, name: str, index: int, gradient: Tensor | None) -> None:
        """Add one example's gradient to a set's sums."""
        if gradient is None:
            return
        for sums in (self.mean, self.square):
            if name not in sums:
                sums[name] = gradient.new_zeros(len(self.sizes), *gradient.shape)
        self.mean[name][index] += gradient
        self.square[name][index].addcmul_(gradient, gradient)

    def finish(self, name: str, value: Tensor) -> Moments:
        """The means of a tensor; zeros where no gradient reached it.

        Raises:
            NumericalError: NaN or Inf.
        """
        self.told.add(name)
        zeros = torch.zeros(len(self.sizes), *value.shape, device=value.device)
        mean, square = (sums.pop(name, zeros) for sums in (self.mean, self.square))
        if not (torch.isfinite(mean.sum()) and torch.isfinite(square.sum())):
            raise NumericalError(f"the gradient of {name} is NaN or Inf, though every loss is finite")
        counts = torch.tensor(self.sizes, dtype=mean.dtype, device=mean.device).view(-1, *[1] * value.dim())
        return Moments(name, value, mean / counts, square / counts)


def _present(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
