"""Running sums of squared gradients, one per parameter, or one per unit of it where it is split.

Shapes: k groups, d width, u used rows of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trace_transfer.families.anatomy import Split


class Totals:
    """Sums in float64, on the device where the squares arise: reading them there one by one would make it wait.

    Attributes:
        shapes: parameter → shape, each parameter under its owner's name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], splits: Mapping[str, Split]) -> None:
        self.shapes = shapes
        self._splits = splits
        self._sums: dict[str, Tensor] = {}

    def split_dim(self, name: str) -> int | None:
        """The dimension by which a parameter's squares are kept apart."""
        split = self._splits.get(name)
        return None if split is None else split.dim

    def add(self, name: str, squares: Tensor) -> None:
        """Add squares: a number, or one for each index of the dimension by which the parameter is split."""
        split = self._splits.get(name)
        squares = squares.sum(dtype=torch.float64) if split is None else squares.double().view(-1, split.size).sum(1)
        if name in self._sums:
            self._sums[name] += squares
        else:
            self._sums[name] = squares.clone()

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        """Add the squares of a whole gradient."""
        rows = torch.linalg.vector_norm(gradient.float() if gradient.itemsize < 4 else gradient, dim=-1).double()
        dim = self.split_dim(name)
        if dim is None:
            self.add(name, rows.square().sum())
        elif gradient.dim() == 1:
            self.add(name, gradient.double().square())
        else:
            others = [other for other in range(gradient.dim()) if other != dim]
            self.add(name, gradient.double().square().sum(dim=others))

    def drop(self, name: str) -> None:
        """Forget a parameter's sum; it is then counted anew."""
        self._sums.pop(name, None)

    def of(self, name: str) -> Tensor:
        """The sum of a parameter, or those of its units; 0 for one that no gradient reached."""
        split = self._splits.get(name)
        shape = () if split is None else (self.shapes[name][split.dim] // split.size,)
        return self._sums[name].cpu() if name in self._sums else torch.zeros(shape, dtype=torch.float64)
