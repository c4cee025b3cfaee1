"""The GPUs of a run, handed out to its steps: each has its own for as long as it runs, and sees no others.

A step asks for one, and for one a process where several share its work. What the user left visible is what there is,
under the names that he used: indices, or the UUIDs of GPUs and of their parts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from trace_transfer.errors import UserError
from trace_transfer.study.steps import LAUNCHED

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass
class GpuPool:
    """GPUs that nobody has; on a machine without any, steps need none."""

    gpus: tuple[str, ...]
    free: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.free = list(self.gpus)

    def take(self, count: int) -> tuple[str, ...] | None:
        """So many, or None where that many are not free now.

        Raises:
            UserError: there are not that many at all.
        """
        if not self.gpus:
            return ()
        if count > len(self.gpus):
            raise UserError(f"processes: {count}: one needs a GPU each, and {len(self.gpus)} are to be had")
        if count > len(self.free):
            return None
        taken, self.free = self.free[:count], self.free[count:]
        return tuple(taken)

    def give_back(self, gpus: tuple[str, ...]) -> None:
        """In the order in which they were at first, so that a run on some of them keeps to these."""
        self.free = [gpu for gpu in self.gpus if gpu in self.free or gpu in gpus]


def gpus_asked_for(kind: str, processes: int) -> int:
    """How many a step of that kind uses."""
    return processes if kind in LAUNCHED else 1


def visible_gpus(environment: Mapping[str, str] | None = None, count: int | None = None) -> tuple[str, ...]:
    """The names by which a process may ask for each GPU that this one sees.

    Args:
        count: how many it sees; the driver is asked if not given.
    """
    if count is None:
        import torch

        count = torch.cuda.device_count()
    named = (os.environ if environment is None else environment).get(VISIBLE)
    if named is None:
        return tuple(map(str, range(count)))
    return tuple(name.strip() for name in named.split(","))[:count]  # CUDA stops at the first that is none
