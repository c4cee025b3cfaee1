"""What a heatmap of a layer match shows, and what its page and its picture have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]

COLOURS = "viridis"  # perceptually uniform, safe for the colour-blind; white marks in a dark outline show on all of it
NO_VALUE = "#c4c4c4"
INK = "#1a1a1a"
DESCRIPTIONS = {
    "stream": "stream: the state after each layer",
    "update": "update: what each layer adds",
}
STEPS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class View:
    """One similarity matrix and the pairs chosen in it.

    `name` is the representation ("update" or "stream"); `similarity` is float64 [source layers, target layers], NaN for
    a degenerate layer; `pairs` are the chosen (source, target), possibly many-to-many; `runner_ups` are the best
    alternatives to them; `margins` are those of the chosen pairs; `used` is true for what the match was made with.
    """

    name: str
    similarity: NDArray[np.float64]
    pairs: tuple[Pair, ...]
    runner_ups: tuple[Pair, ...]
    margins: Mapping[Pair, float]
    used: bool

    @property
    def title(self) -> str:
        return DESCRIPTIONS.get(self.name, self.name)

    @property
    def other_runner_ups(self) -> tuple[Pair, ...]:
        """Runner-ups that are not themselves chosen, each once."""
        return tuple(dict.fromkeys(pair for pair in self.runner_ups if pair not in self.pairs))


@dataclass(frozen=True)
class Heatmap:
    """One or more views of the same two models; exactly one of them was used."""

    source_name: str
    target_name: str
    views: tuple[View, ...]
    subtitle: str

    def __post_init__(self) -> None:
        shapes = {view.similarity.shape for view in self.views}
        if len(shapes) != 1 or sum(view.used for view in self.views) != 1:
            found = [(view.name, view.similarity.shape, view.used) for view in self.views]
            raise ValueError(f"a heatmap needs views of one shape, one of them used; found {found}")

    @property
    def title(self) -> str:
        return self.title_within(len(self.source_name) + len(self.target_name))

    def title_within(self, length: int) -> str:
        """The title with both names shortened to `length` characters together, the longer one first."""
        source, target = self.source_name, self.target_name
        source = shortened(source, max(length // 2, length - len(target)))
        target = shortened(target, max(length // 2, length - len(source)))
        return f"Layer match: {source} → {target}"

    @property
    def used(self) -> View:
        """The view that the match was made with."""
        return next(view for view in self.views if view.used)

    @property
    def has_gaps(self) -> bool:
        """Whether any cell has no value."""
        return any(bool(np.isnan(view.similarity).any()) for view in self.views)

    @property
    def shape(self) -> tuple[int, int]:
        """Source layers, target layers."""
        rows, columns = self.used.similarity.shape
        return rows, columns


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


def axis_title(side: str, name: str, room: int) -> str:
    """`target layer of NAME →` within that many characters, without a name of which too little would be left."""
    left = room - len(f"{side} layer of  →")
    return f"{side} layer of {shortened(name, left)} →" if left >= min(len(name), 14) else f"{side} layer →"
