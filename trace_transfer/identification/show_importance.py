"""The importance heatmap of one core file in the terminal: layers upwards, modules to the right."""

from __future__ import annotations

from rich.style import Style

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import UserError
from trace_transfer.identification.importance import NORMS, Cell, Column, Grid, Importance, Row, importance_of
from trace_transfer.terminal import Page
from trace_transfer.terminal_pictures import RAMP, VIRIDIS

NARROW = 3  # characters of a column where its label has no room and stands upright
GREY = (150, 150, 150)


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
