"""Gradients of a model at its base, tensor by tensor, with the weights of one layer at a time in memory.

Gives for each tensor, from the head down to the embedding, two means over each set's examples: of the gradient of an
example's loss, and of its square, element by element. A model needs no more room than its largest layer with these
means, and what enters each layer: layers x tokens of all examples x width x 4 bytes, on the CPU.

The model's own forward makes the calls of all layers, so that masks and positions are right for every family. Examples
go through one by one, without padding.

Shapes: N sets, t tokens of an example, d width, u rows of an embedding that an example uses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trace_transfer.data.examples import Example
from trace_transfer.errors import ModelError, NumericalError
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.identification.fisher import MicroBatch, loss_of, prepare, run_model
from trace_transfer.models.checkpoints import Checkpoint, release
from trace_transfer.models.running import layers_of, replaced_forwards
from trace_transfer.models.sources import build_meta_model

ENTERED = ""  # beside names of tensors: what entered a layer, or the head
Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]  # of each layer, without the hidden states


@dataclass(frozen=True)
class Moments:
    """Of one tensor: its value, and for each set the mean gradient and the mean squared gradient, [N, *shape]."""

    name: str
    value: Tensor
    mean: Tensor
    square: Tensor


class _StoppedSignal(Exception):  # noqa: N818 (not an error)
    """The last layer has been called: the final norm and the head need not run, nor be read."""


def recorded_calls(name: str, layers: Sequence[nn.Module], run: Callable[[], object]) -> tuple[Tensor, Calls]:
    """Run a model's forward with layers that pass their input on: what enters the first, and how each is called."""
    first: list[Tensor] = []
    calls: Calls = []

    def note(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        first.append(hidden)
        calls.append((args, kwargs))
        if len(calls) == len(layers):
            raise _StoppedSignal
        return hidden

    with replaced_forwards(layers, [note] * len(layers)), suppress(_StoppedSignal):
        run()
    if len(calls) != len(layers):
        raise ModelError(f"{name}: its forward pass called {len(calls)} of {len(layers)} layers")
    return first[0], calls


class BaseGradients:
    """A model and sets of examples, run forward once; `tensors` runs backward, as often as it is called."""

    def __init__(
        self, base: OpenModel, weights: Checkpoint, sets: Sequence[Sequence[Example]], device: str,
        advance: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Run forward; `advance` is called once for each layer, here and in `tensors`."""
        self.model: Any = build_meta_model(base.config, torch.float32).eval().requires_grad_(False)
        self.weights, self.device, self.advance, self.name = weights, torch.device(device), advance, base.name
        for module in self.model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(self.device))
        self.tied = base.anatomy.inventory.tied
        self.layers = layers_of(self.model, base.anatomy.layer_path)
        names = [name for name, _ in self.model.named_parameters()]
        prefixes = [f"{base.anatomy.layer_path}.{index}." for index in range(len(self.layers))]
        self.of_layer = [[name for name in names if name.startswith(prefix)] for prefix in prefixes]
        self.outside = [name for name in names if not name.startswith(tuple(prefixes))]
        if [len(own) for own in self.of_layer] != [sum(1 for _ in layer.parameters()) for layer in self.layers]:
            raise ModelError(f"{self.name}: layers share tensors, whose gradients are not known layer by layer")
        self.sizes = [len(one) for one in sets]
        self.set_of = [index for index, one in enumerate(sets) for _ in one]
        self.batches = [prepare([(example,)], self.device) for one in sets for example in one]
        self._rest: tuple[Any, ...] | None = None  # what layers return beside hidden states; None: those alone
        self._forward()

    def tensors(self) -> Iterator[Moments]:
        sums = _Sums(self.sizes)
        own = dict(self.model.named_parameters())
        embedding = self.model.get_input_embeddings().weight
        tied = next(name for name in self.outside if own[name] is embedding)
        above, tied_rows = self._through_head(sums, tied)
        for name in [name for name in sums.mean if name != tied]:
            yield sums.finish(name, own[name].detach())
        for index in reversed(range(len(self.layers))):
            parameters = self._bring_in(self.of_layer[index])
            for number, gradient in enumerate(above):
                leaf = self.inputs[index][number].to(self.device).requires_grad_()
                with torch.enable_grad():
                    out = self._called(index, number, leaf)
                found = self._backward(sums, number, out, gradient.to(self.device), {**parameters, ENTERED: leaf})
                above[number] = found[ENTERED].cpu()
            for name, parameter in parameters.items():
                yield sums.finish(name, parameter.detach())
            release(self.layers[index])
            self.advance()
        self._through_embedding(sums, above, tied, tied_rows)
        for name in [name for name in self.outside if name not in sums.told]:
            yield sums.finish(name, own[name].detach())

    # ---- forward

    @torch.no_grad()
    def _forward(self) -> None:
        self.parameters = self._bring_in(self.outside)
        self.calls: list[Calls] = []
        self.inputs: list[list[Tensor]] = [[]]
        for batch in self.batches:
            hidden, calls = self._recorded(batch)
            self.inputs[0].append(hidden.detach().cpu())
            self.calls.append(calls)
        for index, layer in enumerate(self.layers):
            self._bring_in(self.of_layer[index], trained=False)
            entered = self.inputs[index]
            self.inputs.append([self._called(index, n, one.to(self.device)).cpu() for n, one in enumerate(entered)])
            release(layer)
            self.advance()

    def _bring_in(self, wanted: Collection[str], trained: bool = True) -> dict[str, Tensor]:
        self.weights.load(self.model, lambda name: self.tied.get(name, name) in wanted, self.device, torch.float32)
        for alias, owner in self.tied.items():
            if owner in wanted:
                both = [self.model.get_parameter(name) for name in (owner, alias)]
                one = next((one for one in both if not one.is_meta), both[0])
                for name in (owner, alias):
                    module, _, attribute = name.rpartition(".")
                    setattr(self.model.get_submodule(module), attribute, one)
        return {name: one.requires_grad_(trained) for name, one in self.model.named_parameters() if name in wanted}

    @torch.enable_grad()
    def _recorded(self, batch: MicroBatch) -> tuple[Tensor, Calls]:
        hidden, calls = recorded_calls(self.name, self.layers, partial(run_model, self.model, batch))
        if any(isinstance(one, Tensor) and one.requires_grad for one in tree_leaves(calls)):
            raise ModelError(f"{self.name}: its layers are given more than hidden states that depends on weights")
        return hidden, calls

    def _called(self, index: int, number: int, hidden: Tensor) -> Tensor:
        args, kwargs = self.calls[number][index]
        out: Any = self.layers[index](hidden, *args, **kwargs)
        if isinstance(out, tuple):
            out, *rest = out
            self._rest = tuple(rest)
        return out  # type: ignore[no-any-return]

    # ---- backward

    def _backward(
        self, sums: _Sums, number: int, out: Tensor, gradient: Tensor | None, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """One example's gradients of those tensors that it reaches, added to its set's sums."""
        all_found = torch.autograd.grad(out, list(inputs.values()), gradient, allow_unused=True)
        found = {name: one for name, one in zip(inputs, all_found, strict=True) if one is not None}
        for name, one in found.items():
            if name != ENTERED:
                sums.add(name, self.set_of[number], one)
        return found

    def _through_head(self, sums: _Sums, tied: str) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of what leaves the last layer; of a tied embedding those of the rows in use, too."""
        gradients, rows = [], []

        def returning(hidden: Tensor, *_: Any, leaf: Tensor | None = None, **__: Any) -> Any:
            out = hidden if leaf is None else leaf
            return out if self._rest is None else (out, *self._rest)

        for number, batch in enumerate(self.batches):
            leaf = self.inputs[-1][number].to(self.device).requires_grad_()
            forwards = [*[returning] * (len(self.layers) - 1), partial(returning, leaf=leaf)]
            with torch.enable_grad(), replaced_forwards(self.layers, forwards):
                loss = loss_of(self.model, batch)
            found = self._backward(sums, number, loss, None, {**self.parameters, ENTERED: leaf})
            gradients.append(found[ENTERED].cpu())
            if tied in found:
                rows.append(found[tied][batch.input_ids_bt.unique()].clone())
        return gradients, rows

    def _through_embedding(
        self, sums: _Sums, gradients: Sequence[Tensor], tied: str, tied_rows: Sequence[Tensor]
    ) -> None:
        for number, (batch, gradient) in enumerate(zip(self.batches, gradients, strict=True)):
            hidden, _ = self._recorded(batch)
            if not hidden.requires_grad:
                continue
            found = self._backward(sums, number, hidden, gradient.to(self.device), self.parameters)
            if told := [name for name in found if name in sums.told]:
                raise ModelError(f"{self.name}: {told[0]} is used above and below the layers")
            if tied_rows:  # (a + b)² = a² + b² + 2 a b
                ids = batch.input_ids_bt.unique()
                sums.square[tied][self.set_of[number], ids] += 2 * found[tied][ids] * tied_rows[number]


class _Sums:
    """Sums over examples by tensor, until they are told."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}
        self.told: set[str] = set()

    def add(self, name: str, index: int, gradient: Tensor) -> None:
        for sums in (self.mean, self.square):
            if name not in sums:
                sums[name] = gradient.new_zeros(len(self.sizes), *gradient.shape)
        self.mean[name][index] += gradient
        self.square[name][index].addcmul_(gradient, gradient)

    def finish(self, name: str, value: Tensor) -> Moments:
        self.told.add(name)
        zeros = torch.zeros(len(self.sizes), *value.shape, device=value.device)
        mean, square = (sums.pop(name, zeros) for sums in (self.mean, self.square))
        if not (torch.isfinite(mean.sum()) and torch.isfinite(square.sum())):
            raise NumericalError(f"the gradient of {name} is NaN or Inf, though every loss is finite")
        counts = torch.tensor(self.sizes, dtype=mean.dtype, device=mean.device).view(-1, *[1] * value.dim())
        return Moments(name, value, mean / counts, square / counts)
