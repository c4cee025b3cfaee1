"""The picture of importance heatmaps: a row per task, a pair of panels per warm-start length, drawn without pyplot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trace_transfer.identification.importance_view import DOT, Column, Grid, Importance, Row, epochs_title, others_note
from trace_transfer.palette import COLOURS, INK, NO_VALUE, shortened, tick_step

DPI = 150
LEFT, RIGHT, TOP, BOTTOM = 1.0, 1.0, 0.9, 0.4  # inches around all panels: axis, colour bars, title, legend
GAP, PAIR_GAP = 0.13, 0.6  # inches between the panels of a pair, between pairs
LABELS, HEADING = 0.75, 0.32  # inches below a row for the modules' labels, above the first for the lengths
LEAST_WIDTH, LEAST_COLUMN, LARGEST_COLUMN = 6.0, 0.24, 0.5  # inches of all panels, of a column
LAYER, LEAST_HEIGHT, LARGEST_HEIGHT = 0.15, 2.0, 4.6  # inches of a layer, of a panel
TICK_HEIGHT = 0.16  # inches that a layer's label needs
TITLE_CHARACTERS, TASK_CHARACTERS, SMALL_CHARACTERS = 7.6, 8.2, 12.2  # in an inch: title, task, the lines below


@dataclass(frozen=True)
class _Sheet:
    """Where things are, in inches from the lower left."""

    importance: Importance

    @property
    def gaps(self) -> float:
        pairs = len(self.importance.epochs)
        return pairs * (len(self.importance.panels) - 1) * GAP + (pairs - 1) * PAIR_GAP

    @property
    def column(self) -> float:
        num_columns = len(self.importance.epochs) * self.importance.num_columns
        return min(max((LEAST_WIDTH - self.gaps) / num_columns, LEAST_COLUMN), LARGEST_COLUMN)

    @property
    def panels_width(self) -> float:
        return self.column * len(self.importance.epochs) * self.importance.num_columns + self.gaps

    @property
    def width(self) -> float:
        return max(LEFT + self.panels_width + RIGHT, LEAST_WIDTH + 1)

    @property
    def left(self) -> float:
        """Where the first panel begins; what is narrower than the least width stands in the middle."""
        return LEFT + (self.width - LEFT - self.panels_width - RIGHT) / 2

    @property
    def panel_height(self) -> float:
        return min(max(LAYER * self.importance.num_layers, LEAST_HEIGHT), LARGEST_HEIGHT)

    @property
    def heading(self) -> float:
        return HEADING if len(self.importance.epochs) > 1 else 0.0

    @property
    def note(self) -> float:
        return 0.22 if self.importance.others else 0.0

    @property
    def height(self) -> float:
        rows = len(self.importance.rows)
        return TOP + self.heading + rows * (self.panel_height + LABELS) + BOTTOM + self.note

    def bottom(self, row: int) -> float:
        return self.height - TOP - self.heading - row * (self.panel_height + LABELS) - self.panel_height

    def axes(self, figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
        return figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height), facecolor="white"
        )


def picture(importance: Importance) -> Figure:
    """The figure at 150 dpi, as large as its panels need; all texts are text, never formulas."""
    sheet = _Sheet(importance)
    figure = Figure(figsize=(sheet.width, sheet.height), dpi=DPI, facecolor="white")
    colours = matplotlib.colormaps[COLOURS]
    for number, row in enumerate(importance.rows):
        _draw_row(figure, sheet, number, row, colours)
    middle = sheet.left + sheet.panels_width / 2
    centre: dict[str, Any] = {"ha": "center", "parse_math": False, "x": middle / sheet.width}
    room = sheet.width - 2 * abs(middle - sheet.width / 2)
    title = shortened(f"Parameter importance: {importance.model_name}", int(room * TITLE_CHARACTERS))
    figure.text(s=title, y=1 - 0.32 / sheet.height, fontsize=13, fontweight="bold", **centre)
    subtitle = shortened(importance.subtitle, int(room * SMALL_CHARACTERS))
    figure.text(s=subtitle, y=1 - 0.57 / sheet.height, fontsize=10, color="#555555", **centre)
    if importance.others:
        note = shortened(others_note(importance), int(room * SMALL_CHARACTERS))
        figure.text(s=note, y=0.42 / sheet.height, fontsize=8.5, color="#555555", **centre)
    marks = _legend(importance)
    figure.legend(
        handles=marks, loc="lower center", ncols=len(marks), fontsize=9.5, frameon=False,
        bbox_to_anchor=(centre["x"], 0.05 / sheet.height),
    )  # fmt: skip
    return figure


def _draw_row(figure: Figure, sheet: _Sheet, number: int, row: Row, colours: Colormap) -> None:
    importance, bottom = sheet.importance, sheet.bottom(number)
    norm, left = Normalize(*row.scale), sheet.left
    for grid, epochs in zip(row.grids, importance.epochs, strict=True):
        start = left
        for panel in importance.panels:
            width = sheet.column * importance.width_of(panel)
            axes = sheet.axes(figure, left, bottom, width, sheet.panel_height)
            _axis(axes, sheet, panel, first=left == sheet.left, empty=grid is None)
            if grid is not None:
                _draw_panel(axes, sheet, grid, panel, norm, colours)
            left += width + GAP
        middle = (start + left - GAP) / 2
        if grid is None:
            where: dict[str, Any] = {"x": middle / sheet.width, "y": (bottom + sheet.panel_height / 2) / sheet.height}
            figure.text(
                s=f"no core file of {epochs_title(epochs)}", ha="center", color="#555555", fontsize=9.5, **where
            )
        if not number and sheet.heading:
            where = {"x": middle / sheet.width, "y": (bottom + sheet.panel_height + 0.12) / sheet.height}
            figure.text(s=epochs_title(epochs), ha="center", fontsize=11, **where)
        left += PAIR_GAP - GAP
    name: dict[str, Any] = {
        "fontsize": 11.5, "fontweight": "bold", "rotation": 90, "va": "center", "ha": "center", "parse_math": False,
    }  # fmt: skip
    middle = (bottom + sheet.panel_height / 2) / sheet.height
    figure.text(
        (sheet.left - LEFT + 0.22) / sheet.width,
        middle,
        shortened(row.name, int(sheet.panel_height * TASK_CHARACTERS)),
        **name,
    )
    bar_axes = sheet.axes(figure, sheet.left + sheet.panels_width + 0.42, bottom, 0.12, sheet.panel_height)
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), cax=bar_axes)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, length=2)
    bar.ax.set_title("score", fontsize=9.5, loc="left")


def _axis(axes: Axes, sheet: _Sheet, panel: str, first: bool, empty: bool) -> None:
    importance = sheet.importance
    low, high = importance.extent
    axes.set_xlim(-0.5, importance.width_of(panel) - 0.5)
    axes.set_ylim(low, high)
    labels = [column.label for column in importance.columns_of(panel)]
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=9)
    axes.tick_params(length=2.5, labelsize=9)
    axes.tick_params(axis="x", length=0, pad=4)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bands = [(band, sum(importance.band_edges(band)) / 2) for band in importance.bands]
    if first:
        step = tick_step(sheet.panel_height / (high - low), TICK_HEIGHT)
        ticks: list[tuple[float, str]] = [(layer, str(layer)) for layer in range(0, importance.num_layers, step)]
        ticks += [(middle, band.label) for band, middle in bands if band.panel == panel]
        axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
        axes.set_ylabel("layer", fontsize=10, labelpad=-8 if bands else 2)
        return
    named = not empty and panel != importance.panels[0]
    own = [(middle, band.label) for band, middle in bands if named and band.panel == panel]
    axes.yaxis.tick_right()
    axes.set_yticks([at for at, _ in own], [text for _, text in own], fontsize=8.5)
    axes.tick_params(axis="y", length=0, pad=2)


def _draw_panel(axes: Axes, sheet: _Sheet, grid: Grid, panel: str, norm: Normalize, colours: Colormap) -> None:
    importance = sheet.importance
    columns, width = importance.columns_of(panel), importance.width_of(panel)
    if columns:
        values = np.full((importance.num_layers, len(columns)), np.nan)
        unscored = np.full_like(values, np.nan)
        for (layer, column), cell in grid.cells.items():
            if layer is not None and column.panel == panel:
                target = unscored if cell.score is None else values
                target[layer, columns.index(column)] = 0.0 if cell.score is None else cell.score
        edges = np.arange(len(columns) + 1) - 0.5, np.arange(importance.num_layers + 1) - 0.5
        grey = matplotlib.colors.ListedColormap([NO_VALUE])
        axes.pcolormesh(*edges, np.ma.masked_invalid(unscored), cmap=grey, rasterized=True)
        axes.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=colours, norm=norm, rasterized=True)
    points = []
    for (layer, column), cell in grid.cells.items():
        if column.panel != panel:
            continue
        middle = _middle(importance, layer, column, columns, width)
        if layer is None:
            start, stop = importance.band_edges(column)
            colour = NO_VALUE if cell.score is None else colours(norm(cell.score))
            axes.fill_between([-0.5, width - 0.5], start, stop, color=colour, linewidth=0)
        if cell.mark:
            points.append((*middle, cell.mark**0.5))
    low, high = importance.extent
    _draw_dots(axes, sorted(points), min(sheet.column, sheet.panel_height / (high - low)))


def _middle(
    importance: Importance, layer: int | None, column: Column, columns: tuple[Column, ...], width: int
) -> tuple[float, float]:
    if layer is None:
        return (width - 1) / 2, sum(importance.band_edges(column)) / 2
    return columns.index(column), layer


def _draw_dots(axes: Axes, points: list[tuple[float, float, float]], cell: float) -> None:
    """Dots whose areas are the core shares; `cell` is the shorter side of a cell in inches."""
    if not points:
        return
    side = min(max(72 * cell * DOT, 2.6), 8)  # points
    sizes = [max(size * side, 1.6) for _, _, size in points]
    dots = EllipseCollection(
        sizes, sizes, np.zeros(len(sizes)), units="points", offsets=[(x, y) for x, y, _ in points],
        offset_transform=axes.transData, facecolor="white", edgecolor=INK, linewidth=0.5 if side < 4 else 0.8, zorder=3,
    )  # fmt: skip
    axes.add_collection(dots)


def _legend(importance: Importance) -> list[Line2D]:
    dot: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": INK, "linestyle": "none"}
    marks = [Line2D([], [], **dot, markersize=7, markeredgewidth=0.9, label="core")]
    if importance.has_parts:
        marks.append(Line2D([], [], **dot, markersize=3.5, markeredgewidth=0.7, label="core in part"))
    if importance.has_gaps:
        marks.append(Line2D([], [], marker="s", color=NO_VALUE, linestyle="none", markersize=8, label="no score"))
    return marks
