"""What a picture of representations shows, and what its page and its PNG have in common.

Shapes: N texts (task by task), K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trace_transfer.represent.embedding import Ellipse, covariance_ellipse, mean_distance

# Okabe and Ito's colours, told apart by the colour-blind, without those too light for a white page; with the symbols
# 35 tasks look different. Symbols by their plotly and their matplotlib names.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4423")
SYMBOLS = (("circle", "o"), ("diamond", "D"), ("square", "s"), ("triangle-up", "^"), ("triangle-down", "v"))
OTHERS = "#d3d3d3"  # texts as the other models represent them
SHARE = 0.95
MARGIN = 0.06  # of the range around the outermost points
MOST_PAIRS = 6  # distances between tasks that a table lists; of more only the least and the largest


@dataclass(frozen=True)
class Panel:
    """One model: `points` are its t-SNE coordinates [N, 2]; the numbers are of the embeddings themselves."""

    label: str
    points: NDArray[np.float32]
    silhouette: float
    distances: NDArray[np.float64]
    spread: tuple[float, ...]

    @property
    def separation(self) -> float:
        """Mean distance between the tasks' centroids."""
        return mean_distance(self.distances)

    @property
    def told(self) -> str:
        return f"silhouette {self.silhouette:.3f}, S {number(self.separation)}"


@dataclass(frozen=True)
class Representation:
    """Models side by side.

    Attributes:
        texts: each has an `id` (`math:17`) and its first `words`, which may be empty.
        unified: whether all panels share one t-SNE space.
        same_kind: whether all models have the same parameters by names and shapes.
    """

    tasks: tuple[str, ...]
    num_texts: tuple[int, ...]
    panels: tuple[Panel, ...]
    texts: tuple[Mapping[str, str], ...]
    unified: bool
    subtitle: str
    same_kind: bool = True

    def __post_init__(self) -> None:
        total = sum(self.num_texts)
        shapes = [panel.points.shape for panel in self.panels]
        if not shapes or any(shape != (total, 2) for shape in shapes) or len(self.texts) != total:
            raise ValueError(f"expected {total} texts and points of each model, found {len(self.texts)}, {shapes}")

    @property
    def title(self) -> str:
        return "Last-layer representations of " + _several(self.tasks)

    def of_task(self, task: int) -> slice:
        start = sum(self.num_texts[:task])
        return slice(start, start + self.num_texts[task])

    @cached_property
    def ellipses(self) -> tuple[tuple[Ellipse, ...], ...]:
        """Of each panel and task."""
        return tuple(
            tuple(covariance_ellipse(panel.points[self.of_task(task)], SHARE) for task in range(len(self.tasks)))
            for panel in self.panels
        )

    @property
    def has_others(self) -> bool:
        """Whether each panel shows the others' texts in grey: only in one space do they mean anything."""
        return self.unified and len(self.panels) > 1

    def others(self, panel: int) -> NDArray[np.float32]:
        """The texts as all other models represent them, [.., 2]."""
        return np.concatenate([one.points for index, one in enumerate(self.panels) if index != panel])

    @cached_property
    def ranges(self) -> tuple[tuple[tuple[float, float], tuple[float, float]], ...]:
        """Of each panel, of equal length in both coordinates; the same for all in a unified space."""
        boxes = []
        for panel, ellipses in zip(self.panels, self.ellipses, strict=True):
            shown = np.concatenate([panel.points, *(ellipse.outline() for ellipse in ellipses)])
            boxes.append((shown.min(axis=0), shown.max(axis=0)))
        if self.unified:
            low = np.min([low for low, _ in boxes], axis=0)
            boxes = [(low, np.max([high for _, high in boxes], axis=0))] * len(boxes)
        return tuple(_square(low, high) for low, high in boxes)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of tasks, if they are few enough to be listed."""
        found = [(a, b) for a in range(len(self.tasks)) for b in range(a + 1, len(self.tasks))]
        return found if len(found) <= MOST_PAIRS else []


def _square(low: NDArray[np.floating], high: NDArray[np.floating]) -> tuple[tuple[float, float], tuple[float, float]]:
    middle, half = (low + high) / 2, float((high - low).max()) * (0.5 + MARGIN) or 1.0
    return ((float(middle[0] - half), float(middle[0] + half)), (float(middle[1] - half), float(middle[1] + half)))


def columns_of(num_panels: int) -> int:
    """Panels in a row."""
    return num_panels if num_panels <= 3 else 2 if num_panels == 4 else 3


def colour_of(task: int) -> str:
    return COLOURS[task % len(COLOURS)]


def symbol_of(task: int) -> tuple[str, str]:
    return SYMBOLS[task % len(SYMBOLS)]


def number(value: float) -> str:
    """Distances of embeddings are of any size; 0 is as it is."""
    if value and not 0.1 <= value < 1e5:
        return f"{value:.2e}"
    return f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def table_of(representation: Representation) -> tuple[list[str], list[list[str]]]:
    """Heading and a row per model: silhouette, S, distances between tasks, spread of each."""
    tasks, pairs = representation.tasks, representation.pairs
    between = [f"{tasks[a]} – {tasks[b]}" for a, b in pairs] or ["nearest tasks", "farthest tasks"]
    heading = ["model", "silhouette", "S", *between, *(f"spread of {task}" for task in tasks)]
    rows = []
    for panel in representation.panels:
        distances = [number(panel.distances[a, b]) for a, b in pairs] or _extremes(panel, tasks)
        spreads = [number(value) for value in panel.spread]
        rows.append([panel.label, f"{panel.silhouette:.3f}", number(panel.separation), *distances, *spreads])
    return heading, rows


def _extremes(panel: Panel, tasks: Sequence[str]) -> list[str]:
    rows, columns = np.triu_indices(len(tasks), 1)
    values = panel.distances[rows, columns]
    chosen = (int(values.argmin()), int(values.argmax()))
    return [f"{number(values[i])} ({tasks[rows[i]]} – {tasks[columns[i]]})" for i in chosen]


def _several(names: Sequence[str]) -> str:
    if len(names) > MOST_PAIRS:
        return f"{len(names)} tasks"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
