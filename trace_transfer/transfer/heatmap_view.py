"""What a heatmap of a layer match shows, and what its page and its picture have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trace_transfer.palette import Pair, shortened

DESCRIPTIONS = {
    "stream": "stream: the state after each layer",
    "update": "update: what each layer adds",
}


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


def axis_title(side: str, name: str, room: int) -> str:
    """`target layer of NAME →` within that many characters, without a name of which too little would be left."""
    left = room - len(f"{side} layer of  →")
    return f"{side} layer of {shortened(name, left)} →" if left >= min(len(name), 14) else f"{side} layer →"
