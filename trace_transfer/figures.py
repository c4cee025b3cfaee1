"""One builder of figures: panels of coloured cells, points and lines, as an interactive plot and as a PNG.

A figure is data, sizes are px. A page shows one of its rows at a time (plotly), a PNG all of them below each other
(matplotlib).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import accumulate
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trace_transfer.files import replacing, write_text
from trace_transfer.pages import Figures, Markdown, Plot, document, page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Pair = tuple[int, int]

COLOURS = "viridis"  # perceptually uniform, safe for the colour-blind; white marks in a dark outline show on all of it
NO_VALUE = "#c4c4c4"
INK = "#1a1a1a"
MUTED = "#767676"  # read on white and on dark
RIM = "#404040"  # of hollow marks; their place in the legend is seen on a dark page, too
DARK = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "#e8e8e8")  # of matplotlib
STEPS = (1, 2, 5, 10, 20, 50, 100)
LEFT, RIGHT, TOP, BOTTOM = 76, 100, 40, 60  # px around the panels
HEADING, BESIDE = 34, 56  # px of a heading above a panel, between rows of panels in a PNG
TICK_WIDTH, TICK_HEIGHT, CHARACTER = 24, 17, 8.2  # px of a tick's label, of a character
LEGEND_LINE, LEGEND_LENGTH = 20, 32  # px of a line, characters of a name in it
SUBTITLE_LINE = 17  # px
LEAST, PHONE = 0.5, 340  # of its width, and px, to which a plot may shrink; below it is scrolled
PX_PER_INCH, POINTS_PER_PX = 100, 0.72
DPI = 150
SYMBOLS = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^", "triangle-down": "v"}


@dataclass(frozen=True)
class Cells:
    """A grid of coloured cells [rows, columns], from its lower left.

    Attributes:
        values: NaN where there is none: grey if `there`, else nothing.
        texts: what each cell says, lines separated by newlines.
        x, y: where the grid begins and ends.
        ranks: what to colour by instead, from 0 to 1.
    """

    values: NDArray[np.float64]
    texts: Sequence[Sequence[str]]
    there: NDArray[np.bool_]
    x: tuple[float, float]
    y: tuple[float, float]
    ranks: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Points:
    """Marks of one kind, [points, 2]; `sizes` in px, of each or of all; a `hollow` mark is a ring with a dark rim."""

    name: str
    places: NDArray[np.floating]
    sizes: Sequence[float] | float
    symbol: str = "circle"
    colour: str = "white"
    edge: str = INK
    texts: Sequence[str] = ()
    opacity: float = 1.0
    hollow: bool = False


@dataclass(frozen=True)
class Line:
    """A line [points, 2]; a filled one is faint inside."""

    name: str
    places: NDArray[np.floating]
    colour: str
    dashed: bool = False
    filled: bool = False


@dataclass(frozen=True)
class Axis:
    """From where to where, its title and labels; without `ticks` it counts layers."""

    start: float
    stop: float
    title: str = ""
    ticks: Mapping[float, str] | None = None


@dataclass(frozen=True)
class Panel:
    """`gap` is what lies between it and the panel before; `beside` are labels at its right end, `note` stands in it."""

    x: Axis
    y: Axis
    width: float
    height: float
    cells: Sequence[Cells] = ()
    lines: Sequence[Line] = ()
    points: Sequence[Points] = ()
    title: str = ""
    gap: float = 0
    beside: Mapping[float, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Panels that are seen together, `columns` of them beside each other; `scale` is where colours begin and end."""

    name: str
    panels: Sequence[Panel]
    scale: tuple[float, float] | None = None
    scale_title: str = ""
    columns: int = 100

    @property
    def lines(self) -> list[Sequence[Panel]]:
        """The panels, line by line."""
        return [self.panels[start : start + self.columns] for start in range(0, len(self.panels), self.columns)]

    @property
    def heading(self) -> float:
        lines = max((panel.title.count("\n") + 1 for panel in self.panels if panel.title), default=0)
        return HEADING / 2 * (lines + 1) if lines else 0

    @property
    def below(self) -> float:
        """Room for the labels of the columns, upright where they have none beside each other."""
        if not any(panel.x.title or panel.x.ticks for panel in self.panels):
            return BOTTOM / 3
        longest = max((len(text) for panel in self.panels for text in (panel.x.ticks or {}).values()), default=0)
        return max(BOTTOM, longest * CHARACTER + 18) if any(map(_is_upright, self.panels)) else BOTTOM

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of all panels, headings included."""
        widths = [sum(panel.width + panel.gap for panel in line) for line in self.lines]
        heights = [max(panel.height for panel in line) + self.heading for line in self.lines]
        return max(widths), sum(heights) + self.below * (len(heights) - 1 if any(p.x.title for p in self.panels) else 0)

    @property
    def places(self) -> list[tuple[float, float]]:
        """Left and top of each panel, from the upper left of all."""
        found, top = [], 0.0
        for line in self.lines:
            lefts = accumulate((panel.width + panel.gap for panel in line), initial=0.0)
            found += [(left + panel.gap, top + self.heading) for left, panel in zip(lefts, line, strict=False)]
            top += max(panel.height for panel in line) + self.heading
        return found


@dataclass(frozen=True)
class Figure:
    """What a page and a PNG show; `note` is a line below, `no_value` says what grey cells are."""

    title: str
    subtitle: str
    rows: Sequence[Row]
    note: str = ""
    no_value: str = ""


def _is_upright(panel: Panel) -> bool:
    labels = panel.x.ticks or {}
    room = panel.width / max(panel.x.stop - panel.x.start, 1)
    return max(map(len, labels.values()), default=0) * CHARACTER > room


def colour_range(similarity: NDArray[np.float64]) -> tuple[float, float]:
    """Where colours begin and end: the middle 98 % of the values, so that one odd layer does not flatten the rest."""
    values = similarity[np.isfinite(similarity)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (1.5, 99.5)))
    return (low, high) if high - low > 1e-6 else (low - 0.01, high + 0.01)


def tick_step(pixels_per_layer: float, needed: float) -> int:
    """Every how many layers a label has the pixels it needs."""
    return next((step for step in STEPS if step * pixels_per_layer >= needed), STEPS[-1])


def shortened(name: str, length: int) -> str:
    """A name of at most `length` characters, its middle left out where it is longer."""
    if len(name) <= length:
        return name
    keep = max(length - 1, 2)
    return f"{name[: (keep + 1) // 2]}…{name[len(name) - keep // 2 :]}"


# ---- the interactive plot


def plot(row: Row, title: str = "", *, ranks: bool = False) -> Plot:
    """A row as plotly takes it.

    Args:
        ranks: with buttons that colour the cells by rank instead.
    """
    width, height = row.size
    axes: dict[str, Any] = {}
    traces: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    told: set[str] = set()
    for number, (panel, (left, top)) in enumerate(zip(row.panels, row.places, strict=True), 1):
        mark, under = ("" if number == 1 else str(number)), f"y{'' if number == 1 else number}"
        spans = [left / width, (left + panel.width) / width], [1 - (top + panel.height) / height, 1 - top / height]
        for letter, axis, span, anchor in (("x", panel.x, spans[0], under), ("y", panel.y, spans[1], f"x{mark}")):
            axes[f"{letter}axis{mark}"] = {
                **_axis(axis), "domain": [_short(end) for end in span], "anchor": anchor,
                **({"tickangle": -90 if _is_upright(panel) else 0} if letter == "x" else {}),
                **({"showticklabels": False, "ticks": ""} if letter == "y" and left > 0 and axis.ticks else {}),
                **({} if panel.cells else {"showline": True, "mirror": True, "linecolor": NO_VALUE}),
            }  # fmt: skip
        place = {"xaxis": f"x{mark}", "yaxis": under}
        traces += [{**trace, **place} for trace in _traces(row, panel, told)]
        annotations += [{**one, **{f"{a}ref": f"{a}{mark} domain" for a in "xy"}} for one in _texts(panel)]
        annotations += [
            {"text": escape(text), "x": 1, "xref": f"x{mark} domain", "xanchor": "left", "y": at, "yref": under,
             "showarrow": False, "font": {"size": 12}}
            for at, text in panel.beside.items()
        ]  # fmt: skip
    heat = next((trace for trace in traces if trace.get("zmin") is not None), None)
    if heat is not None:
        heat |= {"showscale": True, "colorbar": {"title": {"text": row.scale_title, "side": "top"}, "thickness": 14,
                                                 "x": 1, "xpad": 46 if any(p.beside for p in row.panels) else 10,
                                                 "outlinewidth": 0}}  # fmt: skip
    layout = {
        "template": {}, "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white", "plot_bgcolor": "white", "hovermode": "closest",
        "margin": {"l": LEFT, "r": RIGHT, "t": TOP, "b": row.below},
        "hoverlabel": {"bgcolor": "white", "bordercolor": INK, "font": {"size": 13, "color": INK}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1 + 6 / height, "yanchor": "bottom"}, "showlegend": bool(told),
        "annotations": annotations, **axes, **({"updatemenus": _by_rank(row, traces)} if ranks else {}),
    }  # fmt: skip
    whole = int(width + LEFT + RIGHT)
    spec = {"data": traces, "layout": layout}
    return Plot(
        title or row.name, spec, int(height + TOP + row.below), whole, min(max(int(whole * LEAST), PHONE), whole)
    )


def _axis(axis: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {
        "range": [axis.start, axis.stop], "minallowed": axis.start, "maxallowed": axis.stop, "showgrid": False,
        "zeroline": False, "ticks": "outside", "ticklen": 3,
    }  # fmt: skip
    if axis.title:
        found["title"] = {"text": escape(axis.title, quote=False), "standoff": 8}
    if axis.ticks is not None:
        return {**found, "tickvals": list(axis.ticks), "ticktext": list(map(escape, axis.ticks.values()))}
    return {**found, "dtick": 1} if axis.stop - axis.start <= 12 else found


def _texts(panel: Panel) -> list[dict[str, Any]]:
    """The heading of a panel, and what stands in it."""
    found: list[dict[str, Any]] = []
    if panel.title:
        first, *more = map(escape, panel.title.split("\n"))
        text = "<br>".join([f"<b>{first}</b>", *more])
        found.append({"text": text, "showarrow": False, "x": 0.5, "y": 1, "yanchor": "bottom", "yshift": 4})
    if panel.note:
        found.append({"text": escape(panel.note), "showarrow": False, "x": 0.5, "y": 0.5, "font": {"color": "#555555"}})
    return found


def _traces(row: Row, panel: Panel, told: set[str]) -> list[dict[str, Any]]:
    """Cells below, then lines, then points; a name that was not told before stands in the legend."""
    from plotly.colors import get_colorscale

    traces: list[dict[str, Any]] = []
    for cells in panel.cells:
        edges = {name: _edges(*span, count) for name, span, count in
                 zip("xy", (cells.x, cells.y), cells.values.shape[::-1], strict=True)}  # fmt: skip
        bare = np.isnan(cells.values) & cells.there
        if bare.any():
            grey = [[0 if one else None for one in line] for line in bare.tolist()]
            traces.append({"type": "heatmap", "z": grey, "colorscale": [[0, NO_VALUE], [1, NO_VALUE]],
                           "showscale": False, "hoverinfo": "skip", **edges})  # fmt: skip
        low, high = row.scale or (0.0, 1.0)
        texts = [["<br>".join(escape(part, quote=False) for part in text.split("\n")) for text in line]
                 for line in cells.texts]  # fmt: skip
        traces.append(
            {"type": "heatmap", "z": _numbers(cells.values), "text": texts, "hovertemplate": "%{text}<extra></extra>",
             "colorscale": get_colorscale(COLOURS), "zmin": low, "zmax": high, "showscale": False,
             "customdata": None if cells.ranks is None else _numbers(cells.ranks), **edges}
        )  # fmt: skip
    for line in panel.lines:
        look: dict[str, Any] = {"color": line.colour, "width": 1.5, "dash": "5px,5px" if line.dashed else "solid"}
        drawn = {**_xy(line.places), "mode": "lines", "hoverinfo": "skip"}
        if line.dashed:  # upon a dark line, to be seen on any colour and in the legend
            traces.append({**_named(line.name, told), **drawn, "line": {"color": "rgba(0,0,0,0.55)", "width": 2}})
        fill = {"fill": "toself", "fillcolor": _faint(line.colour)} if line.filled else {}
        traces.append({**_named(line.name, told), **drawn, "line": look, **fill})
    for points in panel.points:
        sizes = points.sizes if isinstance(points.sizes, float | int) else list(points.sizes)
        outline = {"color": points.edge, "width": 1}
        hover = {"text": [_lines(text) for text in points.texts], "hovertemplate": "%{text}<extra></extra>"}
        drawn = {**_xy(points.places), "mode": "markers", **(hover if points.texts else {"hoverinfo": "skip"})}
        mark: dict[str, Any] = {"symbol": points.symbol, "size": sizes, "opacity": points.opacity}
        if points.hollow:
            mark["symbol"] += "-open"
            rim = {**mark, "color": RIM, "line": {"width": 4}}
            traces.append({**_named(points.name, told), **drawn, "marker": rim})
            outline = {"width": 2}
        mark |= {"color": points.colour, "line": outline}
        traces.append({**_named(points.name, told), **drawn, "marker": mark})
    return traces


def _named(name: str, told: set[str]) -> dict[str, Any]:
    new = bool(name) and name not in told
    told |= {name} if name else set()
    return {"type": "scatter", "name": escape(name), "legendgroup": name, "showlegend": new}


def _lines(text: str) -> str:
    first, *more = (escape(line, quote=False) for line in text.split("\n"))
    return "<br>".join([f"<b>{first}</b>", *more])


def _by_rank(row: Row, traces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    heats = [number for number, trace in enumerate(traces) if trace.get("customdata") is not None]
    low, high = row.scale or (0.0, 1.0)
    buttons = [
        {"label": f"colour by {label}", "method": "restyle",
         "args": [{"z": [traces[number][key] for number in heats], "zmin": start, "zmax": stop,
                   "colorbar.title.text": label}, heats]}
        for label, key, start, stop in ((row.scale_title, "z", low, high), ("rank", "customdata", 0, 1))
    ]  # fmt: skip
    return [{"type": "buttons", "direction": "right", "buttons": buttons, "x": 1, "xanchor": "right", "y": 1,
             "yanchor": "bottom", "showactive": True, "pad": {"b": 4}, "font": {"size": 12}}]  # fmt: skip


def _edges(start: float, stop: float, count: int) -> list[float]:
    return [_short(edge) for edge in np.linspace(start, stop, count + 1).tolist()]


def _numbers(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[_short(value) if np.isfinite(value) else None for value in line] for line in values.tolist()]


def _xy(places: NDArray[np.floating]) -> dict[str, list[float]]:
    return {letter: [_short(float(one)) for one in places[:, column]] for column, letter in enumerate("xy")}


def _short(number: float) -> float:
    return float(f"{number:.5g}")


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.08)"


# ---- the page and the picture


def write_html(path: Path, figure: Figure, caption: str, more: str = "", *, ranks: bool = False) -> None:
    """A page of a figure, which needs no network; `more` is Markdown below it."""
    plots = [plot(row, row.name, ranks=ranks) for row in figure.rows]
    text = document(
        "figure.md.j2", title=figure.title, subtitle=figure.subtitle, caption=Markdown(caption), more=Markdown(more),
        note=figure.note,
    )  # fmt: skip
    write_text(path, page(text, Figures({"figure": plots})))


def write_png(path: Path, figure: Figure) -> None:
    """All rows below each other, 150 dpi."""
    drawing = picture(figure)
    with replacing(path) as temporary:
        drawing.savefig(temporary, format="png")


def picture(figure: Figure, paper: str = "white") -> Drawing:
    """Drawn without pyplot and so without any global state; all texts are text, never formulas."""
    from matplotlib.figure import Figure as Drawing

    sizes = [row.size for row in figure.rows]
    named = len(figure.rows) > 1
    left = LEFT + (20 if named else 0)
    width = max(left + max(wide for wide, _ in sizes) + RIGHT, 620)
    columns, lines = _legend_size(figure, width)
    middle: dict[str, Any] = {"x": (left + (width - left - RIGHT) / 2) / width, "ha": "center", "parse_math": False}
    room = width - 2 * abs(middle["x"] * width - width / 2) - 20
    subtitle = wrap(figure.subtitle, int(room / 10.0 * 1.4), max_lines=2, placeholder=" …")
    above = 82 + SUBTITLE_LINE * max(len(subtitle) - 1, 0)
    below = 36 + LEGEND_LINE * lines + (20 if figure.note else 0)
    height = above + sum(high + row.below for row, (_, high) in zip(figure.rows, sizes, strict=True)) + below
    drawing = Drawing(figsize=(width / PX_PER_INCH, height / PX_PER_INCH), dpi=DPI, facecolor=paper)
    told: dict[str, Any] = {}
    top = float(above)
    for row, (wide, high) in zip(figure.rows, sizes, strict=True):
        start = left + (width - left - wide - RIGHT) / 2
        for panel, (across, down) in zip(row.panels, row.places, strict=True):
            box = (start + across) / width, 1 - (top + down + panel.height) / height
            axes = drawing.add_axes((*box, panel.width / width, panel.height / height), facecolor=paper)
            _draw(axes, row, panel, told, first=across - panel.gap <= 0)
        if row.scale:
            right = start + wide + (46 if any(panel.beside for panel in row.panels) else 12)
            bar = right / width, 1 - (top + high) / height, 13 / width, (high - row.heading) / height
            _colour_bar(drawing, row, bar)
        if named:
            name = shortened(row.name, int(0.8 * high / CHARACTER))
            look: dict[str, Any] = {
                "rotation": 90,
                "fontsize": 11,
                "fontweight": "bold",
                "va": "center",
                "ha": "center",
            }
            drawing.text(14 / width, 1 - (top + high / 2) / height, name, parse_math=False, **look)
        top += high + row.below
    for text, down, size in (
        (figure.title, 32, 13.0),
        *((line, 57 + SUBTITLE_LINE * number, 10.0) for number, line in enumerate(subtitle)),
        (figure.note, height - 26 - LEGEND_LINE * lines, 8.5),
    ):
        if text:
            style: dict[str, Any] = {"fontweight": "bold"} if text == figure.title else {"color": MUTED}
            line = shortened(text, int(room / size * (1.05 if text == figure.title else 1.4)))
            drawing.text(s=line, y=1 - down / height, fontsize=size, **style, **middle)
    _legend(drawing, figure, told, columns, (middle["x"], 6 / height))
    return drawing


def _draw(axes: Axes, row: Row, panel: Panel, told: dict[str, Any], *, first: bool) -> None:
    import matplotlib

    low, high = row.scale or (0.0, 1.0)
    colours = matplotlib.colormaps[COLOURS]
    for cells in panel.cells:
        edges = [np.array(_edges(*span, count)) for span, count in
                 zip((cells.x, cells.y), cells.values.shape[::-1], strict=True)]  # fmt: skip
        bare = np.where(np.isnan(cells.values) & cells.there, 0.0, np.nan)
        grey = matplotlib.colors.ListedColormap([NO_VALUE])
        axes.pcolormesh(*edges, np.ma.masked_invalid(bare), cmap=grey, rasterized=True)
        values = np.ma.masked_invalid(cells.values)
        axes.pcolormesh(*edges, values, cmap=colours, vmin=low, vmax=high, rasterized=True)
    for line in panel.lines:
        if line.filled:
            axes.fill(line.places[:, 0], line.places[:, 1], facecolor=line.colour, alpha=0.08)
        style = (0, (4, 4)) if line.dashed else "-"
        across, up = line.places[:, 0], line.places[:, 1]
        under = axes.plot(across, up, color="black", alpha=0.5, linewidth=1.6) if line.dashed else []
        drawn = [*under, *axes.plot(across, up, color=line.colour, linewidth=1, linestyle=style)]
        told.setdefault(line.name, drawn[0])
    for points in panel.points:
        sizes = np.square(np.asarray(points.sizes, dtype=np.float64) * POINTS_PER_PX)
        at: dict[str, Any] = {
            "x": points.places[:, 0],
            "y": points.places[:, 1],
            "s": sizes,
            "marker": SYMBOLS[points.symbol],
        }
        if points.hollow:
            rim = axes.scatter(**at, facecolors="none", edgecolors=RIM, linewidths=2.6, zorder=3)
            axes.scatter(**at, facecolors="none", edgecolors=points.colour, linewidths=1.4, zorder=3)
            told[points.name] = rim
            continue
        told[points.name] = axes.scatter(
            **at, color=points.colour, edgecolors=points.edge, linewidths=0.6, alpha=points.opacity, zorder=3
        )
    _label(axes, panel, first=first)


def _label(axes: Axes, panel: Panel, *, first: bool) -> None:
    from matplotlib.ticker import MultipleLocator

    axes.set_xlim(panel.x.start, panel.x.stop)
    axes.set_ylim(panel.y.start, panel.y.stop)
    text: dict[str, Any] = {"fontsize": 10, "parse_math": False}
    for axis, ticks, size, needed in (
        (axes.xaxis, panel.x, panel.width, TICK_WIDTH), (axes.yaxis, panel.y, panel.height, TICK_HEIGHT)
    ):  # fmt: skip
        if ticks.ticks is None:
            axis.set_major_locator(MultipleLocator(tick_step(size / (ticks.stop - ticks.start), needed)))
        else:
            axis.set_ticks(list(ticks.ticks), list(ticks.ticks.values()), parse_math=False)
        axis.set_label_text(ticks.title if axis is axes.xaxis or first else "", **text)
    axes.tick_params(labelsize=9, length=3)
    axes.tick_params(axis="x", rotation=90 if _is_upright(panel) else 0)
    if not first and panel.y.ticks is not None:
        axes.tick_params(axis="y", length=0, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(not panel.cells)
        spine.set_color(NO_VALUE)
    for at, label in panel.beside.items():
        axes.text(panel.x.stop, at, f" {label}", va="center", fontsize=9, parse_math=False)
    if panel.note:
        axes.text(0.5, 0.5, panel.note, transform=axes.transAxes, ha="center", color="#555555", fontsize=9.5,
                  parse_math=False)  # fmt: skip
    for number, line in enumerate(reversed(panel.title.split("\n")) if panel.title else ()):
        weight = "bold" if number == panel.title.count("\n") else "normal"
        axes.text(0.5, 1 + (6 + 17 * number) / panel.height, line, transform=axes.transAxes, ha="center", fontsize=10,
                  fontweight=weight, parse_math=False)  # fmt: skip


def _colour_bar(drawing: Drawing, row: Row, box: tuple[float, float, float, float]) -> None:
    import matplotlib

    norm = matplotlib.colors.Normalize(*(row.scale or (0.0, 1.0)))
    mappable = matplotlib.cm.ScalarMappable(norm, matplotlib.colormaps[COLOURS])
    bar = drawing.colorbar(mappable, cax=drawing.add_axes(box))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, length=2)
    bar.ax.set_title(row.scale_title, fontsize=9.5, loc="left")


def _legend_size(figure: Figure, width: float) -> tuple[int, int]:
    """Columns and lines of the legend, which has room beside each other for the longest name."""
    panels = [panel for row in figure.rows for panel in row.panels]
    lines = {line.name for panel in panels for line in panel.lines}
    points = {mark.name for panel in panels for mark in panel.points}
    names = {shortened(name, LEGEND_LENGTH) for name in (*lines, *points, figure.no_value) if name}
    widest = max(map(len, names), default=0) * 0.9 * CHARACTER + 48
    columns = max(min(int((width - 20) / widest), len(names)), 1)
    return columns, -(-len(names) // columns)


def _legend(drawing: Drawing, figure: Figure, told: Mapping[str, Any], columns: int, at: tuple[float, float]) -> None:
    from matplotlib.lines import Line2D

    marks = {name: mark for name, mark in told.items() if name}
    bare = any((np.isnan(c.values) & c.there).any() for row in figure.rows for p in row.panels for c in p.cells)
    if bare and figure.no_value:
        marks[figure.no_value] = Line2D([], [], marker="s", color=NO_VALUE, linestyle="none", markersize=8)
    names = [shortened(name, LEGEND_LENGTH).replace("$", r"\$") for name in marks]  # a legend would read a formula
    drawing.legend(handles=list(marks.values()), labels=names, loc="lower center", ncols=columns,
                   fontsize=9.5, frameon=False, bbox_to_anchor=at)  # fmt: skip
