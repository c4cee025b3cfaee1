"""A similarity matrix in the terminal, and how a model is called in a heading."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from rich.style import Style

from trace_transfer.figures import Pair, colour_range
from trace_transfer.records import ModelIdentity
from trace_transfer.terminal import Page

RAMP = " .:-=+*#%@"
VIRIDIS = ((68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142), (31, 158, 137), (53, 183, 121),
           (110, 206, 88), (181, 222, 43), (253, 231, 37))  # fmt: skip
GREY = (150, 150, 150)  # no value


def model_line(model: ModelIdentity) -> str:
    """A model in a heading."""
    return f"{model.id} ({model.family}, {model.num_layers} layers)"


def coloured(level: float) -> Style:
    """Of a cell with a value from 0 to 1; NaN is grey."""
    red, green, blue = GREY if np.isnan(level) else VIRIDIS[round(level * (len(VIRIDIS) - 1))]
    ink = "#000000" if 0.3 * red + 0.6 * green + 0.1 * blue > 120 else "#ffffff"
    return Style(bgcolor=f"rgb({red},{green},{blue})", color=ink)


def draw_heatmap(similarity: NDArray[np.float64], pairs: Mapping[Pair, bool], page: Page) -> None:
    """Source layers upwards, target layers to the right; if too wide, squares of layers show their largest value.

    Args:
        pairs: the matched pairs, and whether they are ambiguous.
    """
    num_source, num_target = similarity.shape
    margin = len(str(num_source - 1)) + 1
    wide, pool = cell_width(num_target, page.width - margin)
    low, high = colour_range(similarity)
    starts = [np.arange(0, count, pool) for count in similarity.shape]
    pooled = np.fmax.reduceat(np.fmax.reduceat(similarity, starts[0], axis=0), starts[1], axis=1)
    marked: dict[Pair, bool] = {}  # a square is ambiguous if all of its pairs are
    for (source, target), ambiguous in pairs.items():
        at = source // pool, target // pool
        marked[at] = ambiguous and marked.get(at, True)
    sure, doubtful = ("●", "○") if page.colour else ("[]", "()") if wide == 2 else ("O", "o")
    marks = {True: doubtful, False: sure, None: ""}

    def cell(row: int, column: int, level: float) -> tuple[str, Style | str]:
        mark = marks[marked.get((row, column))]
        if page.colour:
            return mark.ljust(wide), coloured(level)
        return mark or ("?" if np.isnan(level) else RAMP[min(int(level * len(RAMP)), len(RAMP) - 1)]) * wide, ""

    levels = np.clip((pooled - low) / (high - low), 0, 1).tolist()
    for row in reversed(range(len(levels))):
        cells = [cell(row, column, level) for column, level in enumerate(levels[row])]
        page.row([(f"{row * pool:>{margin - 1}} ", ""), *cells])
    page.row([(" " * margin + ruler(len(levels[0]), wide, pool), "")])
    several = f"; a cell shows the largest value of {pool} x {pool} layers" if pool > 1 else ""
    page.line(f"rows are source layers, columns target layers, from 0 at the lower left{several}")
    key = f"CKA {low:.2f} dark … {high:.2f} bright" if page.colour else f"CKA '{RAMP}' from {low:.2f} to {high:.2f}"
    told = [key, f"{sure} matched pair", *[f"{doubtful} ambiguous pair"] * any(pairs.values())]
    told += ["grey no value" if page.colour else "? no value"] * bool(np.isnan(similarity).any())
    page.line(", ".join(told))


def cell_width(num_cells: int, available: int) -> tuple[int, int]:
    """Characters of a cell, and how many layers share one where there is no room for all."""
    available = max(available, 8)
    return 2 if 2 * num_cells <= available else 1, -(-num_cells // available)


def ruler(num_cells: int, wide: int, pool: int = 1) -> str:
    """Layer numbers below every fifth cell."""
    text = ""
    for cell in range(0, num_cells, 5):
        label = str(cell * pool)
        if cell * wide + len(label) <= num_cells * wide + 2:
            text = text.ljust(cell * wide) + label
    return text
