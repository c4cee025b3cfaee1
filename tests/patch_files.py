"""Patches of made-up stages on tiny models, and what a directory holds, read by transformers alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from trace_transfer.core_sets.masks import Chosen, Mask, Part, Slice
from trace_transfer.engine.slices import taken
from trace_transfer.models.sources import ModelSource, numel
from trace_transfer.patch.model_state import ModelState, record_patch
from trace_transfer.patch.patches import Patch


def state_of(directory: Path, *patches: Patch) -> ModelState:
    return ModelState(ModelSource.parse(directory), patches)


def values(state: ModelState) -> dict[str, Tensor]:
    return {name: state.value(name) for name in state.shapes}


def make_patch(
    state: ModelState, file: Path, mask: Mask, seed: int, *, task: str = "math", save_dtype: str = "stored"
) -> Patch:
    """A stage that moved every trained element by noise."""
    generator = torch.Generator().manual_seed(seed)

    def trained():
        for name, part in mask.parts.items():
            value = state.value(name).float()
            value = taken(value, part)
            yield name, value + 0.1 + torch.rand(value.shape, generator=generator)

    return record_patch(file, state, mask, trained(), task=task, method="trace", save_dtype=save_dtype)


def mask_of(state: ModelState, *, seed: int = 0) -> Mask:
    """Every third tensor; of every second of those some rows, columns or single parameters only."""
    parts: dict[str, Part | None] = {}
    for number, (name, shape) in enumerate(list(state.shapes.items())[seed::3]):
        dim = 1 if len(shape) > 1 and number % 4 == 1 else 0
        size = shape[dim]
        parts[name] = None if number % 2 == 0 else Slice(dim, ((1, size // 3), (size // 2, size - 1)))
        if number % 8 == 7:
            parts[name] = Chosen(np.arange(number, numel(shape), 11))
    return Mask(parts)


def stored(directory: Path) -> dict[str, Tensor]:
    """All tensors of a model's directory by their names on disk, each in its type."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def loaded(directory: Path) -> dict[str, Tensor]:
    """Tensors as transformers loads them, in the type that the config says."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def bits(tensor: Tensor) -> bytes:
    """Type, shape and bytes: what bit-identical means."""
    return (
        f"{tensor.dtype} {list(tensor.shape)} ".encode()
        + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    )


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(bits(one[name]) == bits(other[name]) for name in one)
