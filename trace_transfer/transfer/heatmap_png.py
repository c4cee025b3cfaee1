"""The picture of a layer match for a README: the used view, drawn without pyplot and so without any global state."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from trace_transfer.palette import COLOURS, INK, NO_VALUE, colour_range, shortened, tick_step
from trace_transfer.transfer.heatmap_view import Heatmap, View, axis_title

DPI = 150
WIDTH = 9.0  # inches
LEFT, RIGHT, TOP, BOTTOM = 0.75, 1.0, 0.95, 0.95  # inches around the cells: axis, colour bar, title, axis and legend
PLOT_HEIGHT = 5.6  # inches at most
SMALLEST_WIDTH, SMALLEST_HEIGHT = 4.0, 1.5
TICK_WIDTH, TICK_HEIGHT = 0.23, 0.2  # that a tick label needs
CHARACTERS = 11.5  # of an axis title in an inch
TITLE_LENGTH, SUBTITLE_LENGTH = 56, 110  # characters: of both names, of the line below


def picture(heatmap: Heatmap) -> Figure:
    """The figure, 9 inches wide at 150 dpi; as high as the cells need, which are square where that can be read."""
    rows, columns = heatmap.shape
    view = heatmap.used
    available = WIDTH - LEFT - RIGHT
    cell = min(available / columns, PLOT_HEIGHT / rows)
    width = min(max(columns * cell, SMALLEST_WIDTH), available)
    height = max(rows * cell, SMALLEST_HEIGHT)
    total = height + TOP + BOTTOM
    figure = Figure(figsize=(WIDTH, total), dpi=DPI, facecolor="white")
    left = LEFT + (available - width) / 2
    axes = figure.add_axes((left / WIDTH, BOTTOM / total, width / WIDTH, height / total), facecolor=NO_VALUE)
    low, high = colour_range(view.similarity)
    colours = matplotlib.colormaps[COLOURS].with_extremes(bad=NO_VALUE)
    image = axes.imshow(view.similarity, cmap=colours, vmin=low, vmax=high, origin="lower", aspect="auto")
    bar_axes = figure.add_axes(((left + width + 0.12) / WIDTH, BOTTOM / total, 0.13 / WIDTH, height / total))
    bar = figure.colorbar(image, cax=bar_axes)
    bar.outline.set_visible(False)
    bar.ax.set_title("CKA", fontsize=10, loc="left")
    _axis_labels(axes, heatmap, width, height)
    marks = _marks(axes, view, 72 * min(width / columns, height / rows))
    marks.append(_diagonal(axes, rows, columns))
    if np.isnan(view.similarity).any():
        marks.append(Line2D([], [], marker="s", color=NO_VALUE, linestyle="none", markersize=8, label="no value"))
    figure.legend(
        handles=marks, loc="lower center", ncols=len(marks), fontsize=9.5, frameon=False,
        bbox_to_anchor=((left + width / 2) / WIDTH, 0.03 / total),
    )  # fmt: skip
    middle: dict[str, Any] = {"x": (left + width / 2) / WIDTH, "ha": "center", "parse_math": False}
    figure.text(s=heatmap.title_within(TITLE_LENGTH), y=1 - 0.32 / total, fontsize=13, fontweight="bold", **middle)
    subtitle = ", ".join(part for part in (heatmap.subtitle, view.name) if part)
    figure.text(s=shortened(subtitle, SUBTITLE_LENGTH), y=1 - 0.58 / total, fontsize=10, color="#555555", **middle)
    return figure


def _axis_labels(axes: Axes, heatmap: Heatmap, width: float, height: float) -> None:
    rows, columns = heatmap.shape
    style: dict[str, Any] = {"fontsize": 10.5, "parse_math": False}
    axes.set_xlabel(axis_title("target", heatmap.target_name, int(width * CHARACTERS)), **style)
    axes.set_ylabel(axis_title("source", heatmap.source_name, int(height * CHARACTERS)), **style)
    axes.xaxis.set_major_locator(MultipleLocator(tick_step(width / columns, TICK_WIDTH)))
    axes.yaxis.set_major_locator(MultipleLocator(tick_step(height / rows, TICK_HEIGHT)))
    axes.tick_params(labelsize=9.5, length=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _marks(axes: Axes, view: View, cell: float) -> list[Line2D]:
    """Runner-ups, then the chosen pairs upon them; `cell` is the side of a cell in points."""
    size = min(max(cell * 0.5, 3), 9)
    drawn = []
    for pairs, marker, colour, label in (
        (view.other_runner_ups, "D", (1, 1, 1, 0.4), "runner-up"),
        (view.pairs, "o", "white", "chosen pair"),
    ):
        points: dict[str, Any] = {"xdata": [target for _, target in pairs], "ydata": [source for source, _ in pairs]}
        shape: dict[str, Any] = {
            "marker": marker, "markerfacecolor": colour, "markeredgecolor": INK, "linestyle": "none",
        }  # fmt: skip
        side = 0.75 if marker == "D" else 1.0  # a diamond reaches further than a circle
        edge = 0.6 if size < 5 else 0.9
        axes.add_line(Line2D(**points, **shape, markersize=size * side, markeredgewidth=edge, zorder=3))
        drawn.append(Line2D([], [], **shape, markersize=7 * side, markeredgewidth=0.9, label=label))
    return drawn[::-1]


def _diagonal(axes: Axes, rows: int, columns: int) -> Line2D:
    """White dashes on a dark line show on any colour; returns a dark one for the legend, which is on white."""
    ends: dict[str, Any] = {"xdata": [0, columns - 1], "ydata": [0, rows - 1], "zorder": 2}
    axes.add_line(Line2D(**ends, color="black", alpha=0.55, linewidth=1.4))
    axes.add_line(Line2D(**ends, color="white", linewidth=0.8, linestyle=(0, (5, 5))))
    return Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label="equal depth")
