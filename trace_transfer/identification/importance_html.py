"""The interactive figure of importance heatmaps: one task at a time, a pair of panels per warm-start length."""

from __future__ import annotations

from html import escape
from typing import Any

from trace_transfer.identification.importance_view import (
    PROJECTIONS,
    Cell,
    Column,
    Grid,
    Importance,
    Row,
    describe,
    epochs_title,
)
from trace_transfer.palette import COLOURS, INK, NO_VALUE

WIDTH = 1060  # px that a window of 1280 × 800 has for the cells
GAP, PAIR_GAP = 14, 44  # px between the panels of a pair, between pairs
MARGIN = {"l": 58, "r": 112, "t": 30, "b": 50}


def figure(importance: Importance) -> dict[str, Any]:
    """Traces (`meta` is the number of their row) and layout, as plotly takes them."""
    return {"data": _traces(importance), "layout": _layout(importance)}


def gaps(importance: Importance) -> int:
    """Pixels between panels, all together."""
    pairs = len(importance.epochs)
    return pairs * (len(importance.panels) - 1) * GAP + (pairs - 1) * PAIR_GAP


def _domains(importance: Importance) -> list[list[float]]:
    """Where each panel begins and ends, pair by pair, as shares of the figure's width without its margins."""
    room = WIDTH - gaps(importance)
    column = room / (len(importance.epochs) * importance.num_columns)
    domains, at = [], 0.0
    for _ in importance.epochs:
        for panel in importance.panels:
            width = column * importance.width_of(panel)
            domains.append([round(at / WIDTH, 5), round(min((at + width) / WIDTH, 1), 5)])
            at += width + GAP
        at += PAIR_GAP - GAP
    return domains


def _layout(importance: Importance) -> dict[str, Any]:
    low, high = importance.extent
    below = {band.label: sum(importance.band_edges(band)) / 2 for band in importance.bands if band.level < 0}
    above = [band for band in importance.bands if band.level > 0]
    left = {**below, **{band.label: sum(importance.band_edges(band)) / 2 for band in above if _first(importance, band)}}
    domains = _domains(importance)
    layout: dict[str, Any] = {
        "template": {},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": MARGIN,
        "hoverlabel": {"bgcolor": "white", "bordercolor": INK, "font": {"size": 13, "color": INK}, "align": "left"},
        "showlegend": False,
        "yaxis": {
            "range": [low, high],
            "minallowed": low,
            "maxallowed": high,
            "title": {"text": "layer", "standoff": 4},
            "tickvals": [*range(importance.num_layers), *left.values()],
            "ticktext": [*map(str, range(importance.num_layers)), *left],
            "ticks": "outside",
            "ticklen": 3,
            "showgrid": False,
            "zeroline": False,
        },
        "annotations": [],
        "meta": {"layers": importance.num_layers, "bands": [list(left.values()), list(left)]},
    }
    size = len(importance.panels)
    for index, domain in enumerate(domains):
        panel = importance.panels[index % size]
        labels = [column.label for column in importance.columns_of(panel)]
        layout[f"xaxis{_number(index)}"] = {
            "domain": domain,
            "range": [-0.5, importance.width_of(panel) - 0.5],
            "fixedrange": True,
            "tickvals": list(range(len(labels))),
            "ticktext": labels,
            "ticks": "outside",
            "ticklen": 3,
            "tickcolor": "white",
            "showgrid": False,
            "zeroline": False,
        }
        for band in above:
            if band.panel == panel and not _first(importance, band):
                layout["annotations"].append(
                    {
                        "text": band.label, "showarrow": False, "x": 1, "xref": f"x{_number(index)} domain",
                        "xanchor": "left", "y": sum(importance.band_edges(band)) / 2, "yref": "y", "font": {"size": 12},
                    }
                )  # fmt: skip
    if len(importance.epochs) > 1:
        for pair, epochs in enumerate(importance.epochs):
            start, stop = domains[pair * size][0], domains[(pair + 1) * size - 1][1]
            layout["annotations"].append(
                {
                    "text": f"<b>{epochs_title(epochs)}</b>", "showarrow": False, "x": (start + stop) / 2,
                    "xref": "paper", "xanchor": "center", "y": 1, "yref": "paper", "yanchor": "bottom", "yshift": 6,
                }
            )  # fmt: skip
    return layout


def _first(importance: Importance, band: Column) -> bool:
    """Whether a band's label stands on the axis of layers, at the left of the first panel."""
    return band.panel == importance.panels[0]


def _number(index: int) -> str:
    return str(index + 1) if index else ""


def _traces(importance: Importance) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for number, row in enumerate(importance.rows):
        of_row: list[dict[str, Any]] = []
        for pair, (grid, epochs) in enumerate(zip(row.grids, importance.epochs, strict=True)):
            for place, panel in enumerate(importance.panels):
                axis = f"x{_number(pair * len(importance.panels) + place)}"
                if grid is None:
                    of_row += [_missing(importance, panel, epochs, axis)]
                    continue
                of_row += _cells(importance, row, grid, panel, axis)
                for band in importance.bands:
                    of_row += _band(importance, row, grid, band, axis) if band.panel == panel else []
                of_row.append(_marks(importance, grid, panel, axis))
        bar = next((trace for trace in of_row if trace.get("zmin") is not None), None)
        if bar is not None:
            title = {"text": "score", "side": "top"}
            bar.update(
                showscale=True, colorbar={"title": title, "thickness": 14, "x": 1, "xpad": 46, "outlinewidth": 0}
            )
        traces += [{**trace, "visible": number == 0, "meta": number} for trace in of_row]
    return traces


def _missing(importance: Importance, panel: str, epochs: float, axis: str) -> dict[str, Any]:
    """What stands where a task has no core file of a warm-start length."""
    return {
        "type": "scatter", "mode": "text", "xaxis": axis, "yaxis": "y", "hoverinfo": "skip",
        "x": [(importance.width_of(panel) - 1) / 2], "y": [(importance.num_layers - 1) / 2],
        "text": [f"no core file<br>of {epochs_title(epochs)}" if panel == PROJECTIONS else ""],
        "textfont": {"color": "#555555"},
    }  # fmt: skip


def _heat(row: Row, grid: Grid, cells: list[list[Cell | None]], text: list[list[str]], axis: str) -> dict[str, Any]:
    """Cells coloured by score; `customdata` is what to colour them by instead, their rank."""
    from plotly.colors import get_colorscale

    low, high = row.scale
    return {
        "type": "heatmap", "text": text, "hovertemplate": "%{text}<extra></extra>",
        "z": [[_rounded(cell.score) if cell else None for cell in line] for line in cells],
        "customdata": [[_rounded(c.rank_share(grid.num_ranked)) if c else None for c in line] for line in cells],
        "colorscale": get_colorscale(COLOURS), "zmin": low, "zmax": high, "showscale": False,
        "xaxis": axis, "yaxis": "y",
    }  # fmt: skip


def _grey(cells: list[list[Cell | None]], axis: str) -> dict[str, Any]:
    """Cells without a score, grey; they lie under the others, which have gaps there and say why."""
    return {
        "type": "heatmap", "hoverinfo": "skip", "showscale": False, "xaxis": axis, "yaxis": "y",
        "z": [[0 if cell and cell.score is None else None for cell in line] for line in cells],
        "colorscale": [[0, NO_VALUE], [1, NO_VALUE]],
    }  # fmt: skip


def _cells(importance: Importance, row: Row, grid: Grid, panel: str, axis: str) -> list[dict[str, Any]]:
    columns, layers = importance.columns_of(panel), range(importance.num_layers)
    if not columns:
        return []
    found = [[grid.cells.get((layer, column)) for column in columns] for layer in layers]
    heat = _heat(row, grid, found, [[_hover(grid, layer, column) for column in columns] for layer in layers], axis)
    gaps = any(cell and cell.score is None for line in found for cell in line)
    return [*([_grey(found, axis)] if gaps else []), heat]


def _band(importance: Importance, row: Row, grid: Grid, band: Column, axis: str) -> list[dict[str, Any]]:
    found = [[grid.cells.get((None, band))]]
    edges = {"x": [-0.5, importance.width_of(band.panel) - 0.5], "y": list(importance.band_edges(band))}
    heat = _heat(row, grid, found, [[_hover(grid, None, band)]], axis)
    cell = found[0][0]
    return [*([{**_grey(found, axis), **edges}] if cell and cell.score is None else []), {**heat, **edges}]


def _marks(importance: Importance, grid: Grid, panel: str, axis: str) -> dict[str, Any]:
    """Dots whose areas are the core shares of their cells."""
    columns = importance.columns_of(panel)
    points = []
    for (layer, column), cell in grid.cells.items():
        if column.panel != panel or not cell.mark:
            continue
        if layer is None:
            x, y = (importance.width_of(panel) - 1) / 2, sum(importance.band_edges(column)) / 2
        else:
            x, y = columns.index(column), layer
        points.append((x, y, round(cell.mark**0.5, 4)))
    points.sort()
    return {
        "type": "scatter", "mode": "markers", "name": "core", "xaxis": axis, "yaxis": "y", "hoverinfo": "skip",
        "x": [x for x, _, _ in points], "y": [y for _, y, _ in points], "customdata": [size for _, _, size in points],
        "marker": {
            "color": "white", "opacity": 1, "size": [8 * size for _, _, size in points],
            "line": {"color": INK, "width": 1},
        },
    }  # fmt: skip


def _rounded(score: float | None) -> float | None:
    return None if score is None else float(f"{score:.5g}")


def _hover(grid: Grid, layer: int | None, column: Column) -> str:
    return "<br>".join(escape(line, quote=False) for line in describe(grid, layer, column))
