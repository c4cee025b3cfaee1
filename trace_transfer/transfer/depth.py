"""The match by relative depth alone: the baseline that every other match is compared with."""

from __future__ import annotations

Pairs = tuple[tuple[int, int], ...]


def depth_match(num_source: int, num_target: int) -> Pairs:
    """Each source layer with the target layer at the same relative depth: floor(i (T-1)/(S-1) + 1/2)."""
    if num_source == 1:
        return ((0, 0),)
    step = num_target - 1
    return tuple((i, (2 * i * step + num_source - 1) // (2 * (num_source - 1))) for i in range(num_source))
