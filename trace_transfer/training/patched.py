"""A state of a stream as the starting point of the next stage: the base's weights with the patches in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trace_transfer.engine.loading import BaseModel, dtype_name
from trace_transfer.models.shards import require_finite
from trace_transfer.patch.model_state import ModelState

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PatchedModel:
    """A state as it is stored, so that the stage begins with what `base + patches` gives anyone."""

    state: ModelState

    @cached_property
    def base(self) -> BaseModel:
        return BaseModel(self.state.source)

    @property
    def names_sha256(self) -> str:
        return self.state.names_sha256

    @property
    def fingerprint(self) -> str:
        """Of the base and the patches."""
        return self.state.fingerprint

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The model with the state's values, rounded to a type."""
        model = self.base.load(dtype)
        with torch.no_grad():
            for name in self.state.patched:
                model.get_parameter(name).copy_(self.state.value(name))
                require_finite(f"{self.state.source.name} as {dtype_name(dtype)}", {name: model.get_parameter(name)})
        return model

    def skeleton(self, dtype: torch.dtype) -> PreTrainedModel:
        """The same model with its parameters on the meta device, and its buffers real."""
        return self.base.skeleton(dtype)

    def values(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Those parameters of `load(dtype)`, in that order, one at a time."""
        wanted, patched = list(names), set(self.state.patched)
        others = self.base.values((name for name in wanted if name not in patched), dtype)
        for name in wanted:
            value = self.state.value(name) if name in patched else next(others)[1]
            yield name, value.to(dtype)

    def exact(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Float32 values of those parameters that `load(torch.bfloat16)` may have rounded, one at a time, whole."""
        wanted, patched = list(names), set(self.state.patched)
        yield from self.base.exact(name for name in wanted if name not in patched)
        for name in wanted:
            if name in patched and self.state.dtype(name) != torch.bfloat16:
                yield name, self.state.value(name).to(torch.float32)
