"""Copies of a tiny model with its weights moved a little, as fine-tuning would, or damaged."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.patch_files import stored as weights


def tuned_copy(
    base: Path,
    directory: Path,
    seed: int,
    *,
    dtype: torch.dtype = torch.float32,
    scale: float = 1e-2,
    still: Collection[str] = (),
) -> Path:
    """A copy of a model with every weight moved a little, in one file whatever the base has; `still` do not move."""
    shutil.copytree(base, directory, ignore=shutil.ignore_patterns("*.safetensors*"))
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in weights(base).items():
        noise = scale * torch.randn(tensor.shape, generator=generator)
        moved[name] = (tensor.float() + (0 if name in still else noise)).to(dtype)
    save_file(moved, directory / "model.safetensors", {"format": "pt"})
    return directory


def damage(directory: Path, name: str, value: float | None) -> None:
    """Fill a tensor on disk with a value, or leave the tensor out."""
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            if value is None:
                del tensors[name]
            else:
                tensors[name].view(-1)[:] = value
            save_file(tensors, file, {"format": "pt"})
            return
    raise AssertionError(f"no {name} in {directory}")
