"""Masks of every kind on any model, and trainings that begin where one of them ended."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from trace_transfer.core_sets.chosen import Chosen
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.slices import put
from trace_transfer.files import sha256_text
from trace_transfer.models.sources import Inventory


def make_mask(inventory: Inventory, number: int) -> Mask:
    """Rows of the embedding (for number 2 single parameters) and of a matrix, columns of another, single parameters of
    a third, a part of a vector, and two whole tensors.

    Sizes that two ranks do not divide; other tensors or places for each number from 0 to 3.
    """
    shapes = inventory.shapes
    embedding = next(iter(shapes))
    inner = [name for name in shapes if name != embedding]
    matrices = [name for name in inner if len(shapes[name]) == 2]
    vectors = [name for name in inner if len(shapes[name]) == 1]
    rows = Slice(0, ((3 + number, 17), (101, 102), (300, 400)))
    return Mask(
        {
            embedding: Chosen(np.arange(5, 4000, 7)) if number == 2 else rows,
            matrices[12]: Chosen(np.array([0, 1, 50, 51 + number, 200, 777])),
            matrices[number]: Slice(0, ((1, 2), (5, 9))),
            matrices[number + 4]: Slice(1, ((0, 3), (30, 31 + number))),
            vectors[number]: Slice(0, ((2, 5),)),
            vectors[number + 4]: None,
            matrices[number + 8]: None,
        }
    )


@dataclass(frozen=True)
class Patched:
    """A base with other values in its trained parts, as after a stage: what the next one begins with."""

    base: BaseModel
    mask: Mask
    patch: Mapping[str, torch.Tensor]

    @property
    def names_sha256(self) -> str:
        return self.base.names_sha256

    @property
    def fingerprint(self) -> str:
        return sha256_text(f"{self.base.fingerprint} {self.mask.sha256}")

    @property
    def config_sha256(self) -> str:
        return self.base.config_sha256

    def load(self, dtype: torch.dtype):
        model = self.base.load(dtype)
        for name, value in self.patch.items():
            put(model.get_parameter(name), self.mask.parts[name], value)
        return model

    def skeleton(self, dtype: torch.dtype):
        return self.base.skeleton(dtype)

    def values(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        for name, value in self.base.values(names, dtype):
            if name in self.patch:
                put(value, self.mask.parts[name], self.patch[name])
            yield name, value

    def exact(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        return self.values(names, torch.float32)
