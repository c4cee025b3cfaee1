"""Importance heatmaps (the paper's figures 6, A.1 and A.2): as a page, as a picture, in a report.

Reads: core files of one model, of one or more tasks and warm-start lengths. A row of the figure is a task: a pair of
panels, projections and norms, for each warm-start length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trace_transfer import figures
from trace_transfer.figures import Axis, Cells, Marks, Panel, tick_step
from trace_transfer.identification.importance import (
    Column,
    Grid,
    Importance,
    Row,
    describe,
    epochs_title,
)
from trace_transfer.pages import escaped

Place = tuple[int | None, Column]  # a layer, and a column; a band has no layer

COLUMN, NARROW_COLUMN, WIDEST = 46, 22, 1060  # px of a column, of one among many, of all cells
LAYER, SMALLEST, LARGEST = 15, 190, 760  # px of a layer, of all of them
GAP, PAIR_GAP = 14, 44  # px between the panels of a pair, between pairs
DOT = 0.55  # diameter of the dot of an entirely core cell, of the cell's shorter side
CAPTION = (
    "Each cell is the score of a module's weight (a bias is named when you point at it): layers upwards from 0, "
    "modules to the right. All warm-start lengths of a task share one scale, from the least to the largest score in "
    "its layers; what is outside them may lie beyond it. A few large scores can leave all others dark: ranks show "
    "those. A dot marks what is core, a small one what is core in part; grey cells have no score. Point at a cell for "
    "its tensor, score and rank; drag to enlarge, double-click to go back. "
)


def figure(importance: Importance) -> figures.Figure:
    """A row for each task."""
    rows = [row(importance, one) for one in importance.rows]
    named = (*importance.columns, *importance.bands)
    key = "; ".join(f"**{escaped(column.label)}** {escaped(column.meaning)}" for column in named)
    title = f"Parameter importance: {importance.model_name}"
    return figures.Figure(title, importance.subtitle, rows, importance.note, "no score", f"{CAPTION}{key}.", ranks=True)


def row(importance: Importance, shown: Row) -> figures.Row:
    """Panels of one task, by warm-start length."""
    low, high = importance.extent
    columns = len(importance.epochs) * importance.num_columns
    width = min(max(WIDEST / columns, NARROW_COLUMN), COLUMN)
    height = min(max((high - low) * LAYER, SMALLEST), LARGEST)
    dot = min(max(min(height / (high - low), width) * DOT, 4), 12)
    step = tick_step(height / (high - low), figures.TICK_HEIGHT)
    first = importance.panels[0]
    bands = {
        name: {sum(importance.band_edges(band)) / 2: band.label for band in importance.bands if band.panel == name}
        for name in importance.panels
    }
    layers = {float(layer): str(layer) for layer in range(0, importance.num_layers, step)} | bands[first]
    panels: list[Panel] = []
    for grid, epochs in zip(shown.grids, importance.epochs, strict=True):
        for name in importance.panels:
            labels = {float(at): column.label for at, column in enumerate(importance.columns_of(name))}
            told = name == first
            panels.append(
                Panel(
                    Axis(-0.5, importance.width_of(name) - 0.5, ticks=labels),
                    Axis(low, high, "layer" if told and not panels else "", layers),
                    width * importance.width_of(name), height,
                    cells=() if grid is None else _cells(importance, grid, name),
                    marks=() if grid is None else _dots(importance, grid, name, dot),
                    title=epochs_title(epochs) if told and len(importance.epochs) > 1 else "",
                    gap=0 if not panels else PAIR_GAP if told else GAP,
                    beside={} if told or grid is None else bands[name],
                    note=f"no core file of {epochs_title(epochs)}" if grid is None and told else "",
                )
            )  # fmt: skip
    return figures.Row(shown.name, panels, shown.scale, "score")


def _cells(importance: Importance, grid: Grid, panel: str) -> list[Cells]:
    """The layers of a panel, and its bands."""
    across = (-0.5, importance.width_of(panel) - 0.5)
    inside: list[list[Place]] = [
        [(layer, column) for column in importance.columns_of(panel)] for layer in range(importance.num_layers)
    ]
    parts = [(inside, (-0.5, importance.num_layers - 0.5))] if inside and inside[0] else []
    parts += [([[(None, band)]], importance.band_edges(band)) for band in importance.bands if band.panel == panel]
    return [
        Cells(
            _values(grid, places, ranks=False),
            [["\n".join(describe(grid, *place)) for place in line] for line in places],
            np.array([[place in grid.cells for place in line] for line in places]), across, edges,
            _values(grid, places, ranks=True),
        )
        for places, edges in parts
    ]  # fmt: skip


def _values(grid: Grid, places: Sequence[Sequence[Place]], *, ranks: bool) -> NDArray[np.float64]:
    def value(place: tuple[int | None, Column]) -> float | None:
        cell = grid.cells.get(place)
        if cell is None:
            return None
        return cell.rank_share(grid.num_ranked) if ranks else cell.score

    return np.array([[value(place) for place in line] for line in places], float)


def _dots(importance: Importance, grid: Grid, panel: str, size: float) -> list[Marks]:
    """Dots whose areas are the core shares of their cells."""
    columns, found = importance.columns_of(panel), []
    for (layer, column), cell in grid.cells.items():
        if column.panel == panel and cell.mark:
            if layer is None:
                at = ((importance.width_of(panel) - 1) / 2, sum(importance.band_edges(column)) / 2)
            else:
                at = (columns.index(column), layer)
            found.append((*at, max(cell.mark**0.5 * size, 2)))
    places = np.array(sorted(found), float).reshape(-1, 3)
    return [Marks("core", places[:, :2], sizes=places[:, 2].tolist())] if found else []
