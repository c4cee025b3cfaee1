"""Importance heatmaps (the paper's figures 6, A.1 and A.2): as a page, as a picture, in a report, in the terminal.

Reads: core files of one model, of one or more tasks and warm-start lengths. A row of the figure is a task: a pair of
panels, projections and norms, for each warm-start length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.style import Style

from trace_transfer import figures
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import UserError
from trace_transfer.families.registry import FamilyRegistry
from trace_transfer.figures import Axis, Cells, Panel, Points, tick_step
from trace_transfer.identification.importance import (
    NORMS,
    Cell,
    Column,
    Grid,
    Importance,
    Row,
    describe,
    epochs_title,
    importance_of,
    others_note,
)
from trace_transfer.pages import escaped
from trace_transfer.terminal import Page
from trace_transfer.terminal_pictures import RAMP, VIRIDIS

__all__ = ["Importance", "importance_of", "write_importance_html", "write_importance_png"]

Place = tuple[int | None, Column]  # a layer, and a column; a band has no layer

COLUMN, NARROW_COLUMN, WIDEST = 46, 22, 1060  # px of a column, of one among many, of all cells
NARROW = 3  # characters of a column of the terminal where its label has no room and stands upright
GREY = (150, 150, 150)
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


def write_importance_html(
    path: Path, cores: Sequence[CoreFile] | Importance, registry: FamilyRegistry | None = None
) -> None:
    """Write the interactive page, one task at a time.

    Raises:
        UserError: the core files cannot stand in one figure, see `importance_of`.
    """
    importance = cores if isinstance(cores, Importance) else importance_of(cores, registry=registry)
    named = (*importance.columns, *importance.bands)
    key = "; ".join(f"**{escaped(column.label)}** {escaped(column.meaning)}" for column in named)
    figures.write_html(path, figure(importance), f"{CAPTION}{key}.", ranks=True)


def write_importance_png(
    path: Path, cores: Sequence[CoreFile] | Importance, registry: FamilyRegistry | None = None
) -> None:
    """Draw all tasks and warm-start lengths as one PNG.

    Raises:
        UserError: the core files cannot stand in one figure, see `importance_of`.
    """
    importance = cores if isinstance(cores, Importance) else importance_of(cores, registry=registry)
    figures.write_png(path, figure(importance))


def figure(importance: Importance) -> figures.Figure:
    """A row for each task."""
    rows = [row(importance, one) for one in importance.rows]
    note = others_note(importance)
    title = f"Parameter importance: {importance.model_name}"
    return figures.Figure(title, importance.subtitle, rows, note, no_value="no score")


def row(importance: Importance, shown: Row) -> figures.Row:
    """Panels of one task, by warm-start length."""
    low, high = importance.extent
    columns = len(importance.epochs) * importance.num_columns
    width = min(max(WIDEST / columns, NARROW_COLUMN), COLUMN)
    height = min(max((high - low) * LAYER, SMALLEST), LARGEST)
    dot = min(max(min(height / (high - low), width) * DOT, 4), 12)
    panels: list[Panel] = []
    for grid, epochs in zip(shown.grids, importance.epochs, strict=True):
        for number, name in enumerate(importance.panels):
            labels = {float(at): column.label for at, column in enumerate(importance.columns_of(name))}
            told = name == importance.panels[0]
            panels.append(
                Panel(
                    Axis(-0.5, importance.width_of(name) - 0.5, ticks=labels),
                    Axis(low, high, "layer" if told and not panels else "", _ticks(importance, height)),
                    width * importance.width_of(name), height,
                    cells=() if grid is None else _cells(importance, grid, name),
                    points=() if grid is None else _dots(importance, grid, name, dot),
                    title=epochs_title(epochs) if told and len(importance.epochs) > 1 else "",
                    gap=0 if not panels else GAP if number else PAIR_GAP,
                    beside={} if told or grid is None else {
                        sum(importance.band_edges(band)) / 2: band.label for band in importance.bands
                        if band.panel == name
                    },
                    note=f"no core file of {epochs_title(epochs)}" if grid is None and told else "",
                )
            )  # fmt: skip
    return figures.Row(shown.name, panels, shown.scale, "score")


def _ticks(importance: Importance, height: float) -> dict[float, str]:
    """Layers as there is room, and the bands of the first panel."""
    low, high = importance.extent
    step = tick_step(height / (high - low), figures.TICK_HEIGHT)
    bands = {
        sum(importance.band_edges(band)) / 2: band.label
        for band in importance.bands if band.panel == importance.panels[0]
    }  # fmt: skip
    return {**{float(layer): str(layer) for layer in range(0, importance.num_layers, step)}, **bands}


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


def _values(grid: Grid, places: Sequence[Sequence[tuple[int | None, Column]]], *, ranks: bool) -> NDArray[np.float64]:
    def value(place: tuple[int | None, Column]) -> float | None:
        cell = grid.cells.get(place)
        if cell is None:
            return None
        return cell.rank_share(grid.num_ranked) if ranks else cell.score

    return np.array([[value(place) for place in line] for line in places], float)


def _dots(importance: Importance, grid: Grid, panel: str, size: float) -> list[Points]:
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
    return [Points("core", places[:, :2], places[:, 2].tolist())] if len(found) else []


# ---- in the terminal


def draw_importance(core: CoreFile, page: Page) -> None:
    """Draw a core file's scores, or say why they cannot be drawn."""
    try:
        importance = importance_of([core])
    except UserError as error:
        page.line(f"(no heatmap: {error})")
        return
    (row,) = importance.rows
    (grid,) = row.present
    names = [str(importance.num_layers - 1), *(band.label for band in importance.bands if band.panel != NORMS)]
    margin = max(map(len, names)) + 1
    widths = _widths(importance, page.width - margin)
    for line in _headings(importance, widths, margin):
        page.row([(line, "")])
    for level in sorted({band.level for band in importance.bands if band.level > 0}, reverse=True):
        _draw_bands(importance, row, grid, level, widths, margin, page)
    for layer in reversed(range(importance.num_layers)):
        cells = [_cell(grid.cells.get((layer, column)), row, widths[column], page) for column in importance.columns]
        _draw_line(str(layer), importance, cells, margin, page)
    for level in sorted({band.level for band in importance.bands if band.level < 0}, reverse=True):
        _draw_bands(importance, row, grid, level, widths, margin, page)
    _draw_key(importance, row, page)


def _widths(importance: Importance, room: int) -> dict[Column, int]:
    """Characters of each column: its label and a space where all have room, else all narrow."""
    full = {column: max(len(column.label) + 1, NARROW) for column in importance.columns}
    return full if sum(full.values()) + 1 <= room else dict.fromkeys(importance.columns, NARROW)


def _headings(importance: Importance, widths: dict[Column, int], margin: int) -> list[str]:
    labels = [column.label for column in importance.columns]
    gaps = [_gap(importance, index) for index in range(len(labels))]
    if all(len(column.label) < width for column, width in widths.items()):
        texts = [[label] for label in labels]
    else:
        height = max(map(len, labels))
        texts = [list(label.rjust(height)) for label in labels]
    return [
        " " * margin
        + "".join(
            gap + _centred(part[line], widths[c]) for gap, part, c in zip(gaps, texts, importance.columns, strict=True)
        )
        for line in range(len(texts[0]) if texts else 0)
    ]


def _gap(importance: Importance, index: int) -> str:
    """A space before the first norm."""
    columns = importance.columns
    return " " if index and columns[index].panel != columns[index - 1].panel else ""


def _draw_line(
    name: str, importance: Importance, cells: list[tuple[str, Style | str]], margin: int, page: Page
) -> None:
    parts: list[tuple[str, Style | str]] = [(f"{name:>{margin - 1}} ", "")]
    for index, cell in enumerate(cells):
        parts += [(_gap(importance, index), ""), cell]
    page.row(parts)


def _draw_bands(
    importance: Importance, row: Row, grid: Grid, level: int, widths: dict[Column, int], margin: int, page: Page
) -> None:
    """The bands of one level: across the projections, across the norms."""
    bands = {band.panel: band for band in importance.bands if band.level == level}
    name = next((band.label for band in bands.values() if band.panel == importance.panels[0]), "")
    parts: list[tuple[str, Style | str]] = [(f"{name:>{margin - 1}} ", "")]
    for number, panel in enumerate(importance.panels):
        width = sum(widths[column] for column in importance.columns_of(panel)) or NARROW
        cell = grid.cells.get((None, bands[panel])) if panel in bands else None
        parts += [(" " if number else "", ""), _cell(cell, row, width, page)]
        if number and panel in bands:
            parts.append((f" {bands[panel].label}", ""))
    page.row(parts)


def _cell(cell: Cell | None, row: Row, width: int, page: Page) -> tuple[str, Style | str]:
    if cell is None:
        return " " * width, ""
    low, high = row.scale
    level = None if cell.score is None else min(max((cell.score - low) / (high - low), 0.0), 1.0)
    if not page.colour:
        character = "?" if level is None else RAMP[min(int(level * len(RAMP)), len(RAMP) - 1)]
        left, right = ("[", "]") if cell.mark == 1 else ("(", ")") if cell.mark else (" ", " ")
        return _centred(f"{left}{character}{right}", width), ""
    red, green, blue = GREY if level is None else VIRIDIS[round(level * (len(VIRIDIS) - 1))]
    ink = "#000000" if 0.3 * red + 0.6 * green + 0.1 * blue > 120 else "#ffffff"
    mark = "●" if cell.mark == 1 else "·" if cell.mark else " "
    return _centred(mark, width), Style(bgcolor=f"rgb({red},{green},{blue})", color=ink)


def _centred(text: str, width: int) -> str:
    """In the middle of a narrow column; of a wider one without its last character, which keeps labels apart."""
    return text.center(width) if width == NARROW else text.center(width - 1) + " "


def _draw_key(importance: Importance, row: Row, page: Page) -> None:
    low, high = row.scale
    if page.colour:
        key, marks = f"score {low:.3g} dark … {high:.3g} bright", "● core, · core in part"
    else:
        key, marks = f"score '{RAMP}' from {low:.3g} to {high:.3g}", "[ ] core, ( ) core in part"
    gaps = (", grey no score" if page.colour else ", ? no score") if importance.has_gaps else ""
    page.line(f"{key}, {marks}{gaps}")
    page.line("; ".join(f"{column.label} {column.meaning}" for column in importance.columns if column.panel == NORMS))
    if importance.others:
        names = importance.others
        page.line(
            f"not drawn, of no known component: {len(names):,} ({', '.join(names[:3])}{', …' if names[3:] else ''})"
        )
