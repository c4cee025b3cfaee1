"""What all pictures have in common: colours, the range that they cover, labels that fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]

COLOURS = "viridis"  # perceptually uniform, safe for the colour-blind; white marks in a dark outline show on all of it
NO_VALUE = "#c4c4c4"
INK = "#1a1a1a"
STEPS = (1, 2, 5, 10, 20, 50, 100)


def colour_range(similarity: NDArray[np.float64]) -> tuple[float, float]:
    """Where colours begin and end: the middle 98 % of the values, so that one odd layer does not flatten the rest."""
    values = similarity[np.isfinite(similarity)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (1.5, 99.5)))
    return (low, high) if high - low > 1e-6 else (low - 0.01, high + 0.01)


def tick_step(pixels_per_layer: float, needed: float) -> int:
    """Every how many layers a label has the pixels it needs."""
    return next((step for step in STEPS if step * pixels_per_layer >= needed), STEPS[-1])


def shortened(name: str, length: int) -> str:
    """A name of at most `length` characters, its middle left out where it is longer."""
    if len(name) <= length:
        return name
    keep = max(length - 1, 2)
    return f"{name[: (keep + 1) // 2]}…{name[len(name) - keep // 2 :]}"
