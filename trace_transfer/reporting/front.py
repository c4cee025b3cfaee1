"""Learned against lost over learning rates: which rate a method gets, its front, and what two methods lose at the same
learning.

A method that learns faster also forgets more, so that one rate for all methods compares rates as much as methods. With
several rates each method is a line: learned (`continual.learning`) against lost (−backward transfer), a point per rate.

At the same learning: `level` is the lesser of what two methods learn at their chosen rates, so that one of them stands
at its rate and the other is taken down its line. Along a line, from the lowest rate to the one that learns most on
average, mean learning is piecewise linear. At the first place where it is `level`, between rates i and i + 1 with
weight w, a seed that learned L and lost F is taken to lose

    (1 − w) F_i + w F_{i+1} − b ((1 − w) L_i + w L_{i+1} − level),   b = mean(F_{i+1} − F_i) / mean(L_{i+1} − L_i)

The last term is 0 on average: it takes out what a seed lost more because it learned more, so that the interval of the
paired differences also holds that the place is an estimate (the delta method). Where a line does not reach the level
there is no such difference, and the reason is told instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Front:
    """One method; a row per rate, lowest first, a column per seed that trained all of them."""

    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    learned_RS: Values
    lost_RS: Values

    def of_seeds(self, seeds: Sequence[int]) -> Front:
        places = [self.seeds.index(seed) for seed in seeds]
        return Front(self.rates, tuple(seeds), self.learned_RS[:, places], self.lost_RS[:, places])

    def learned_at(self, rate: float) -> float:
        return float(self.learned_RS[self.rates.index(rate)].mean())

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the most that it learns, on average, from its lowest rate to the one that learns most."""
        means_R = self.learned_RS.mean(axis=1)
        return float(means_R[: means_R.argmax() + 1].min()), float(means_R.max())

    def lost_at(self, level: float) -> Values:
        """What each seed loses where `level` is learned, which must be within `reach`."""
        learned_R, lost_R = self.learned_RS.mean(axis=1), self.lost_RS.mean(axis=1)
        for low in range(int(learned_R.argmax())):
            ends = learned_R[low], learned_R[low + 1]
            if min(ends) <= level <= max(ends) and ends[0] != ends[1]:
                weight = (level - ends[0]) / (ends[1] - ends[0])
                slope = (lost_R[low + 1] - lost_R[low]) / (ends[1] - ends[0])
                learned_S, lost_S = (
                    (1 - weight) * rows[low] + weight * rows[low + 1] for rows in (self.learned_RS, self.lost_RS)
                )
                moved_S: Values = lost_S - slope * (learned_S - level)
                return moved_S
        lowest_S: Values = self.lost_RS[0]  # the lowest rate learns most: it is the whole line
        return lowest_S


@dataclass(frozen=True)
class Matched:
    """What a method loses more than another one where both learn `level`, seed by seed; or why that is not told."""

    level: float | None = None
    differences: Mapping[int, float] | None = None
    reason: str = ""


def matched(ours: Front, theirs: Front, rates: tuple[float, float], names: tuple[str, str]) -> Matched:
    """Two methods at the same learning.

    Args:
        rates: that were chosen for them.
        names: for the reason.
    """
    shared = [seed for seed in ours.seeds if seed in theirs.seeds]
    if not shared:
        return Matched(reason="no seed trained all rates of both")
    lines = ours.of_seeds(shared), theirs.of_seeds(shared)
    level = min(line.learned_at(rate) for line, rate in zip(lines, rates, strict=True))
    for line, name in zip(lines, names, strict=True):
        low, high = line.reach
        if not low <= level <= high:
            how = f"at least {low:.4g}" if level < low else f"at most {high:.4g}"
            return Matched(level, None, f"{name} learns {how}, and {level:.4g} was to be matched")
    lost = [line.lost_at(level) for line in lines]
    return Matched(level, dict(zip(shared, (lost[0] - lost[1]).tolist(), strict=True)))


def best_rate(averages: Mapping[float, Sequence[float]]) -> float:
    """The learning rate whose models end best (`continual.average`), on average over seeds; of equals the lowest."""
    return max(sorted(averages), key=lambda rate: fmean(averages[rate]))
