"""Hooks that hand each module's input and output gradient to its form, and forget both at once.

No parameter requires a gradient meanwhile, so that none is computed: what starts the graph is the output of the
embeddings. Hooks listen only where gradients are enabled; a forward pass without them is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trace_transfer.identification.fisher.sites import EmbeddingSite, Inputs, Pass, Site
from trace_transfer.models.running import replaced_forwards


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode of which no parameter requires a gradient; all flags are restored."""
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


@contextmanager
def captured(model: nn.Module, sites: Sequence[Site], run: Pass) -> Iterator[None]:
    """While it lasts, every backward pass through the model adds to `run.totals`."""
    with ExitStack() as stack:
        for site in sites:
            hook = partial(_embedding_hook, site) if isinstance(site, EmbeddingSite) else partial(_hook, site)
            handle = model.get_submodule(site.path).register_forward_hook(partial(hook, run))
            stack.callback(handle.remove)
        yield


@contextmanager
def observed(model: nn.Module) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Collect input and output of each module that has parameters of its own; full once the block is left.

    Left out are modules that are called twice, or with more than one argument.
    """
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    odd: set[nn.Module] = set()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(output, Tensor)
        if module in found or not alone:
            odd.add(module)
        else:
            found[module] = (args[0], output)

    with ExitStack() as stack:
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        yield found
    for module in odd:
        found.pop(module, None)


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Gradient checkpointing of the layers that have it enabled, as transformers does it, but in evaluation mode:
    transformers checkpoints in training mode only, where dropout would be on."""
    wanted = [layer for layer in layers if getattr(layer, "gradient_checkpointing", False)]

    def run(layer: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return layer._gradient_checkpointing_func(partial(forward, **kwargs), *args)

    with replaced_forwards(wanted, [partial(run, layer, layer.forward) for layer in wanted]):
        yield


def _hook(site: Site, run: Pass, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    if torch.is_grad_enabled() and output.requires_grad and run.by_example(args[0]):
        output.register_hook(_receiver(site, run, run.inputs(args[0])))


def _embedding_hook(
    site: EmbeddingSite, run: Pass, module: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> Tensor | None:
    if not torch.is_grad_enabled():
        return None
    ids = args[0]
    if ids.shape[0] not in (1, run.num_rows):
        return None
    run.ids[site.path] = ids
    # Positions that all examples share: each needs its own gradient.
    output = output.expand(run.num_rows, *output.shape[1:]).requires_grad_()
    output.register_hook(_receiver(site, run, Inputs(ids)))
    return output


def _receiver(site: Site, run: Pass, inputs: Inputs) -> Any:
    held = [inputs]  # given away with the first gradient: the graph holds this function longer than needed

    def receive(gradient: Tensor) -> None:
        with torch.no_grad():
            site.take(held.pop(), gradient, run)
        run.num_taken[site.path] += run.num_groups

    return receive
