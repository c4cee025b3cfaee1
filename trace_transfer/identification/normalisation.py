"""Quantities of different scales made comparable before they are added: min-max, ranks or z-scores.

All take a float64 vector without NaN and return one of its length, ordered as the input. A vector of equal values says
nothing about importance and becomes zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Vector = NDArray[np.float64]


def min_max(values: Vector) -> Vector:
    """(v − min) / (max − min), in [0, 1]."""
    lowest = float(values.min())
    return (values - lowest) / (float(values.max()) - lowest)


def rank(values: Vector) -> Vector:
    """Ranks from 0 for the smallest to 1 for the largest; equal values share the mean of their ranks."""
    ranks: Vector = rankdata(values)
    return (ranks - 1.0) / (len(values) - 1.0)


def z_score(values: Vector) -> Vector:
    """(v − mean) / standard deviation, that of the population (ddof 0)."""
    unit = min_max(values)  # the same z-scores, and the squares of tiny values do not vanish
    return (unit - float(unit.mean())) / float(unit.std())


NORMALISATIONS: dict[str, Callable[[Vector], Vector]] = {"min-max": min_max, "rank": rank, "z-score": z_score}


def normalise(values_P: Vector, how: str, kinds_P: Sequence[str] | None = None) -> Vector:
    """Normalise by one of `NORMALISATIONS`, over all entries or over those of one kind at a time.

    NaN takes no part and stays.
    """
    result = np.full(len(values_P), np.nan)
    known = ~np.isnan(values_P)
    for members in _groups(known, kinds_P):
        values = values_P[members]
        result[members] = NORMALISATIONS[how](values) if values.min() < values.max() else 0.0
    return result


def _groups(known: NDArray[np.bool_], kinds_P: Sequence[str] | None) -> list[NDArray[np.int64]]:
    """Indices of the known entries, all together or by kind; no group is empty."""
    if kinds_P is None:
        return [np.flatnonzero(known)] if known.any() else []
    found: dict[str, list[int]] = {}
    for index in np.flatnonzero(known).tolist():
        found.setdefault(kinds_P[index], []).append(index)
    return [np.array(members) for members in found.values()]
