"""The picture of representations for a README: a panel per model, drawn without pyplot."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trace_transfer.palette import shortened
from trace_transfer.represent.representation_view import OTHERS, Representation, colour_of, columns_of, symbol_of

DPI = 150
SIDE, LONE_SIDE, LEAST_WIDTH = 3.4, 4.6, 7.3  # inches of a panel, of the only one, of the figure
GAP, TITLE, TOP, BORDER = 0.2, 0.5, 0.75, 0.25  # inches between panels, above each, above all, around all
LEGEND_ROW, LEGEND_BELOW = 0.26, 0.12  # inches
LEGEND_ENTRY, CHARACTER = 0.5, 0.075  # inches of a legend entry's mark and gaps, of a character
TITLE_CHARACTERS, SMALL_CHARACTERS, LABEL_CHARACTERS = 8.2, 13.5, 9.5  # in an inch
EDGE = "#b5b5b5"
GREY = "#555555"


def picture(representation: Representation) -> Figure:
    """The figure at 150 dpi, as large as its panels need; all texts are text, never formulas."""
    columns = columns_of(len(representation.panels))
    rows = -(-len(representation.panels) // columns)
    side = SIDE if columns > 1 else LONE_SIDE
    panels_width = columns * side + (columns - 1) * GAP
    width = max(2 * BORDER + panels_width, LEAST_WIDTH)
    marks = _legend(representation)
    longest = max(len(str(mark.get_label())) for mark in marks)
    in_a_row = max(1, min(len(marks), int((width - 2 * BORDER) / (LEGEND_ENTRY + longest * CHARACTER))))
    below = LEGEND_BELOW + LEGEND_ROW * -(-len(marks) // in_a_row) + 0.1
    height = TOP + rows * (TITLE + side) + below
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for index in range(len(representation.panels)):
        row, column = divmod(index, columns)
        left = (width - panels_width) / 2 + column * (side + GAP)
        bottom = height - TOP - row * (TITLE + side) - TITLE - side
        axes = figure.add_axes((left / width, bottom / height, side / width, side / height), facecolor="white")
        _draw(axes, representation, index, side)
    centre: dict[str, Any] = {"x": 0.5, "ha": "center", "parse_math": False}
    room = width - 2 * BORDER
    title = shortened(representation.title, int(room * TITLE_CHARACTERS))
    figure.text(s=title, y=1 - 0.36 / height, fontsize=13, fontweight="bold", **centre)
    subtitle = shortened(representation.subtitle, int(room * SMALL_CHARACTERS))
    figure.text(s=subtitle, y=1 - 0.62 / height, fontsize=9.5, color=GREY, **centre)
    figure.legend(
        handles=marks, loc="lower center", ncols=in_a_row, fontsize=9.5, frameon=False, borderaxespad=0,
        bbox_to_anchor=(0.5, LEGEND_BELOW / height), handletextpad=0.2, columnspacing=1.4,
    )  # fmt: skip
    return figure


def _draw(axes: Axes, representation: Representation, index: int, side: float) -> None:
    panel = representation.panels[index]
    x_range, y_range = representation.ranges[index]
    axes.set_xlim(x_range)
    axes.set_ylim(y_range)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(EDGE)
    size = _marker_area(sum(representation.num_texts))
    if representation.has_others:
        others = representation.others(index)
        axes.scatter(others[:, 0], others[:, 1], s=size * 0.5, color=OTHERS, linewidths=0)
    for task, ellipse in enumerate(representation.ellipses[index]):
        line = ellipse.outline()
        axes.fill(line[:, 0], line[:, 1], facecolor=colour_of(task), alpha=0.08)
        axes.plot(line[:, 0], line[:, 1], color=colour_of(task), linewidth=1.2)
    for task in range(len(representation.tasks)):
        points = panel.points[representation.of_task(task)]
        axes.scatter(
            points[:, 0], points[:, 1], s=size, color=colour_of(task), marker=symbol_of(task)[1], alpha=0.85,
            edgecolors="white", linewidths=0.4, zorder=3,
        )  # fmt: skip
    above: dict[str, Any] = {"x": 0.5, "ha": "center", "transform": axes.transAxes, "parse_math": False}
    label = shortened(panel.label, int(side * LABEL_CHARACTERS))
    axes.text(s=label, y=1 + 0.24 / side, fontsize=11, fontweight="bold", **above)
    axes.text(s=panel.told, y=1 + 0.07 / side, fontsize=9, **above)


def _marker_area(num_texts: int) -> float:
    """Square points."""
    return 26.0 if num_texts <= 150 else 16.0 if num_texts <= 500 else 9.0


def _legend(representation: Representation) -> list[Line2D]:
    marks = [
        Line2D([], [], linestyle="none", color=colour_of(task), marker=symbol_of(task)[1], markersize=6, label=name)
        for task, name in enumerate(representation.tasks)
    ]
    if representation.has_others:
        marks.append(Line2D([], [], linestyle="none", color=OTHERS, marker="o", markersize=5, label="other models"))
    for mark in marks:
        mark.set_label(shortened(str(mark.get_label()), 32).replace("$", r"\$"))  # a legend would read a formula
    return marks
