"""Proof, at the end of a training, that what was trained with was frozen: the weights in use against those on the disk.

The tuned model is written from the base and the trained values, so that its frozen weights are the base's whatever the
engine did to its own copy of them; only here would that be seen.
"""

from __future__ import annotations

import torch

from trace_transfer.engine.engine import Engine
from trace_transfer.engine.loading import StartingPoint
from trace_transfer.engine.ranks import Ranks
from trace_transfer.engine.slices import outside
from trace_transfer.errors import FrozenMovedError, TraceTransferError, listing
from trace_transfer.models.bits import differing


def require_frozen_in_use(engine: Engine, start: StartingPoint, dtype: torch.dtype, ranks: Ranks, label: str) -> None:
    """Compare every frozen weight in use, one at a time, with the starting point's, bit for bit; collective.

    Of a parameter of which a slice was trained, all of the frozen original.

    Raises:
        FrozenMovedError: some differ; all ranks raise.
    """
    moved, problem = [], None
    expected = iter(start.values(engine.frozen, dtype)) if ranks.is_first else iter(())
    for name in engine.frozen:
        found = engine.live(name)
        if ranks.is_first and problem is None:
            try:
                _, value = next(expected)
            except (TraceTransferError, OSError) as error:
                problem = error
                continue
            if differing(outside(found, engine.sliced.get(name)), outside(value, engine.sliced.get(name))).any():
                moved.append(name)
    if ranks.any(bool(moved) or problem is not None):
        if problem is not None:
            raise problem
        raise FrozenMovedError(
            f"{label}: weights that were to stay frozen moved while training; nothing of this stage is kept:\n"
            + listing(moved or ["the first rank names them"])
        )
