"""A model's layers, and layers that do something else for a while, within the model's own forward pass.

So embeddings, masks and positions are right for every family; as `forward` is replaced and not the call, hooks run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import nn


def layers_of(model: nn.Module, layer_path: str) -> list[nn.Module]:
    """The layers in the list at a module path (`model.layers`)."""
    return list(cast(nn.ModuleList, model.get_submodule(layer_path)))


@contextmanager
def replaced_forwards(layers: Sequence[nn.Module], forwards: Sequence[Any]) -> Iterator[None]:
    """Layers that do something else while it lasts."""
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer, forward in zip(layers, forwards, strict=True):
            layer.forward = forward
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            if old is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = old
