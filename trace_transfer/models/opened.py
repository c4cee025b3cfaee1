"""A model that others are made of: config, names and weights, opened once, and what a model made of it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trace_transfer.errors import ModelError, listing
from trace_transfer.models.checkpoints import Checkpoint, SafetensorsCheckpoint, open_checkpoint
from trace_transfer.models.sources import Inventory, ModelSource, build_meta_model, inventory_of, load_config
from trace_transfer.models.tensor_file import TensorSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class OpenedBase:
    """A base whose config, names and weights are opened once for all states that are made of it."""

    source: ModelSource

    @cached_property
    def config(self) -> Any:
        return load_config(self.source)

    @cached_property
    def meta_model(self) -> PreTrainedModel:
        return build_meta_model(self.config)

    @cached_property
    def inventory(self) -> Inventory:
        return inventory_of(self.meta_model)

    @cached_property
    def weights(self) -> Checkpoint:
        return open_checkpoint(self.source)

    @cached_property
    def buffers(self) -> Mapping[str, tuple[int, ...]]:
        """What is saved with the parameters but is none, and so is never trained: name → shape."""
        parameters = {name for name, _ in self.meta_model.named_parameters(remove_duplicate=False)}
        state = self.meta_model.state_dict()
        return {name: tuple(value.shape) for name, value in state.items() if name not in parameters}

    def chunks(self, name: str) -> Iterator[Tensor]:
        """One parameter (or buffer), flattened, some rows at a time, as it is on disk."""
        shape = self.inventory.shapes.get(name)
        return self.weights.chunks(self.meta_model, name, self.buffers[name] if shape is None else shape)

    def dtype(self, name: str) -> torch.dtype:
        """In which a parameter (or buffer) is on disk; of a GGUF file, in which it is read."""
        return self._only_dtype or next(self.chunks(name)).dtype

    @cached_property
    def _only_dtype(self) -> torch.dtype | None:
        dtypes = self.weights.dtypes if isinstance(self.weights, SafetensorsCheckpoint) else {torch.float32}
        return next(iter(dtypes)) if len(dtypes) == 1 else None


def specs_of(base: OpenedBase, dtypes: Mapping[str, torch.dtype]) -> dict[str, TensorSpec]:
    """All that a model made from a base holds, in the order in which it is written: parameters, then buffers.

    Args:
        dtypes: of all parameters; buffers are copied from the base as they are.

    Raises:
        ModelError: buffers that cannot be read; all are named.
    """
    bad = list(base.buffers) if base.source.gguf is not None else []
    if bad:
        raise ModelError(
            f"{base.source.name}: has values that are no parameters and that cannot be read from a GGUF file, so that "
            "no state of it can be written:\n" + listing(bad)
        )
    specs = {name: TensorSpec(dtypes[name], shape) for name, shape in base.inventory.shapes.items()}
    return specs | {name: TensorSpec(base.dtype(name), shape) for name, shape in base.buffers.items()}
