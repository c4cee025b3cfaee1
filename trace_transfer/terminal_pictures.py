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


def model_line(model: ModelIdentity) -> str:
    """A model in a heading."""
    return f"{model.id} ({model.family}, {model.num_layers} layers)"


def draw_heatmap(similarity: NDArray[np.float64], pairs: Mapping[Pair, bool], page: Page) -> None:
    """Source layers upwards, target layers to the right; if too wide, squares of layers show their largest value.

    Args:
        pairs: the matched pairs, and whether they are ambiguous.
    """
    num_source, num_target = similarity.shape
    margin = len(str(num_source - 1)) + 1
    available = max(page.width - margin, 8)
    wide = 2 if 2 * num_target <= available else 1
    pool = -(-num_target // available)
    low, high = colour_range(similarity)
    starts = [np.arange(0, count, pool) for count in similarity.shape]
    pooled = np.fmax.reduceat(np.fmax.reduceat(similarity, starts[0], axis=0), starts[1], axis=1)
    marked: dict[Pair, bool] = {}  # a square is ambiguous if all of its pairs are
    for (source, target), ambiguous in pairs.items():
        at = source // pool, target // pool
        marked[at] = ambiguous and marked.get(at, True)
    levels = np.clip((pooled - low) / (high - low), 0, 1)
    for row in reversed(range(len(pooled))):
        marks = [_mark(marked.get((row, column)), wide, page) for column in range(len(pooled[row]))]
        cells = [_cell(level, mark, wide, page) for level, mark in zip(levels[row], marks, strict=True)]
        page.row([(f"{row * pool:>{margin - 1}} ", ""), *cells])
    page.row([(" " * margin + ruler(len(pooled[0]), wide, pool), "")])
    page.line("rows are source layers, columns target layers, from 0 at the lower left" + (
        f"; a cell shows the largest value of {pool} x {pool} layers" if pool > 1 else ""
    ))  # fmt: skip
    key = f"CKA {low:.2f} dark … {high:.2f} bright" if page.colour else f"CKA '{RAMP}' from {low:.2f} to {high:.2f}"
    told = [f"{_mark(False, wide, page)} matched pair"]
    told += [f"{_mark(True, wide, page)} ambiguous pair"] * any(pairs.values())
    gaps = (", grey no value" if page.colour else ", ? no value") if np.isnan(similarity).any() else ""
    page.line(f"{key}, {', '.join(told)}{gaps}")


def _mark(ambiguous: bool | None, wide: int, page: Page) -> str:
    """The mark of a pair; nothing where there is none."""
    if ambiguous is None:
        return ""
    if page.colour:
        return "○" if ambiguous else "●"
    return ("()" if ambiguous else "[]") if wide == 2 else ("o" if ambiguous else "O")


def _cell(level: float, mark: str, wide: int, page: Page) -> tuple[str, Style | str]:
    gap = bool(np.isnan(level))
    if not page.colour:
        if mark:
            return mark, ""
        return ("?" if gap else RAMP[min(int(level * len(RAMP)), len(RAMP) - 1)]) * wide, ""
    red, green, blue = (150, 150, 150) if gap else _viridis(level)
    ink = "#000000" if 0.3 * red + 0.6 * green + 0.1 * blue > 120 else "#ffffff"
    style = Style(bgcolor=f"rgb({red},{green},{blue})", color=ink)
    return mark.ljust(wide), style


def _viridis(level: float) -> tuple[int, int, int]:
    position = level * (len(VIRIDIS) - 1)
    first = min(int(position), len(VIRIDIS) - 2)
    part = position - first
    red, green, blue = (
        round(a + (b - a) * part) for a, b in zip(VIRIDIS[first], VIRIDIS[first + 1], strict=True)
    )  # fmt: skip
    return red, green, blue


def ruler(num_cells: int, wide: int, pool: int = 1) -> str:
    """Layer numbers below every fifth cell."""
    text = ""
    for cell in range(0, num_cells, 5):
        label = str(cell * pool)
        if cell * wide + len(label) <= num_cells * wide + 2:
            text = text.ljust(cell * wide) + label
    return text
