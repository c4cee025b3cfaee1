"""Layer matches that a match by similarity must beat: by relative depth alone, and with its order destroyed.

As `coverage` (assignment.py) both leave no layer of either model out; the deeper model's layers get one partner each,
and where the models are of equal depth the target's do. What they choose says nothing about the similarities.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trace_transfer.transfer.assignment import POLICIES, coverage
from trace_transfer.transfer.depth import Pairs
from trace_transfer.transfer.stability import chosen_by_target, depth_pairs

Matrix = NDArray[np.float64]


def by_depth(similarity_ST: Matrix, seed: int) -> Pairs:
    """Each layer of the deeper model with the layer at the same relative depth; neither C nor the seed matters."""
    return depth_pairs(similarity_ST.shape, chosen_by_target("coverage", similarity_ST.shape))


def shuffled(similarity_ST: Matrix, seed: int) -> Pairs:
    """The `coverage` match with its target layers permuted.

    Every source layer is used as often as before. A permutation that leaves all pairs as they were is drawn again,
    unless there is no other: one of the models has a single layer.
    """
    covering = coverage(similarity_ST)
    num_target = similarity_ST.shape[1]
    generator = np.random.default_rng(seed)
    while True:
        place_T = generator.permutation(num_target).tolist()
        pairs = tuple(sorted((s, place_T[t]) for s, t in covering))
        if pairs != covering or min(similarity_ST.shape) == 1:
            return pairs


CONTROLS: dict[str, Callable[[Matrix, int], Pairs]] = {"depth": by_depth, "shuffled": shuffled}


def policy_named(name: str, seed: int) -> Callable[[Matrix], Pairs]:
    """A matching policy or a control by its name; only what a control draws depends on the seed."""
    if name in POLICIES:
        return POLICIES[name]
    control = CONTROLS[name]
    return lambda similarity_ST: control(similarity_ST, seed)
