"""The one-example loop: for parameters without a form, and, on two short texts, to see that the forms are right."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from trace_transfer.identification.fisher.batches import Group, loss_of, prepare
from trace_transfer.identification.fisher.totals import Totals


def loop_over_groups(model: nn.Module, groups: Sequence[Group], names: Sequence[str], totals: Totals) -> None:
    """Add the squared gradients of some parameters, group after group; no two gradients are held at once."""
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
