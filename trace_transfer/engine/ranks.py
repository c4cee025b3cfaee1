"""The processes that train together, as the rest of the training sees them: who they are, sums over all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together; the first one (rank 0) writes files.

    Attributes:
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on the CPU; collective."""
        if self.size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank; collective, so that all of them go the same way."""
        return bool(self.total(torch.tensor([float(mine)])).item())
