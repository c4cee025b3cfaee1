"""One builder of figures: panels of coloured cells, points and lines, as an interactive plot and as a PNG.

A figure is data, sizes are px. A page shows one of its rows at a time (plotly), a PNG all of them below each other
(matplotlib).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
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
GREY = "#808080"
RIM = "#404040"  # of hollow marks; their place in the legend is seen on a dark page, too
STEPS = (1, 2, 5, 10, 20, 50, 100)
LEFT, RIGHT, TOP, BOTTOM = 76, 100, 40, 60  # px around the panels
HEADING = 34  # px of a heading above a panel
TICK_WIDTH, TICK_HEIGHT, CHARACTER = 24, 17, 8.2  # px of a tick's label, of a character
LEGEND_LINE, LEGEND_LENGTH, LEGEND_COLUMNS = 22, 32, 5  # px of a line, characters of a name, entries beside each other
LINE, LEAST_TEXT = 17, 620  # px of a line of text, of the width that texts above have at least
LEAST, PHONE = 0.5, 340  # of its width, and px, to which a plot may shrink; below it is scrolled
PX_PER_INCH, POINTS_PER_PX, DPI = 100, 0.72, 150
SAVED: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.25}  # texts stand outside of the panels' area
SYMBOLS = {"circle": "o", "diamond": "D", "square": "s", "triangle-up": "^", "triangle-down": "v"}


@dataclass(frozen=True)
class Cells:
    """A grid of coloured cells [rows, columns], from its lower left."""

    values: NDArray[np.float64]  # NaN where there is none: grey if `there`, else nothing
    texts: Sequence[Sequence[str]]  # what each cell says, lines separated by newlines
    there: NDArray[np.bool_]
    x: tuple[float, float]  # x, y: where the grid begins and ends
    y: tuple[float, float]
    ranks: NDArray[np.float64] | None = None  # what to colour by instead, from 0 to 1


@dataclass(frozen=True)
class Marks:
    """Points [points, 2] of one kind, the line through them, or both."""

    name: str
    places: NDArray[np.floating]
    colour: str = "white"
    sizes: Sequence[float] | float = 0  # px of each point or of all; 0 draws a line alone
    symbol: str = "circle"
    edge: str = INK
    dash: str = ""  # of the line, in plotly's words; "" draws points alone
    texts: Sequence[str] = ()
    opacity: float = 1.0
    hollow: bool = False  # points are rings with a dark rim
    filled: bool = False  # the line is faint inside
    # `x` or `y` → how far intervals reach below and above, [points, 2]; in the plot alone
    bars: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    shown: bool = True  # False leaves it to the legend at first


@dataclass(frozen=True)
class Axis:
    """From where to where (None: as the marks need), its title and labels; without `ticks` it counts layers."""

    start: float | None = None
    stop: float | None = None
    title: str = ""
    ticks: Mapping[float, str] | None = None

    @property
    def length(self) -> float:
        return 1.0 if self.start is None or self.stop is None else self.stop - self.start


@dataclass(frozen=True)
class Panel:
    """`gap` is what lies between it and the panel before; `beside` are labels at its right end, `note` stands in it."""

    x: Axis
    y: Axis
    width: float
    height: float
    cells: Sequence[Cells] = ()
    marks: Sequence[Marks] = ()
    title: str = ""
    gap: float = 0
    beside: Mapping[float, str] = field(default_factory=dict)
    note: str = ""

    @property
    def is_upright(self) -> bool:
        """Whether the labels of the columns have no room beside each other."""
        labels = self.x.ticks or {}
        room = self.width / max(self.x.length, len(labels) if self.x.start is None else 1)
        return max(map(len, labels.values()), default=0) * CHARACTER > room


@dataclass(frozen=True)
class Row:
    """Panels that are seen together, `columns` of them beside each other; `scale` is where colours begin and end."""

    name: str
    panels: Sequence[Panel]
    scale: tuple[float, float] | None = None
    scale_title: str = ""
    columns: int = 100

    @property
    def heading(self) -> float:
        lines = max((panel.title.count("\n") + 1 for panel in self.panels if panel.title), default=0)
        return HEADING / 2 * (lines + 1) if lines else 0

    @property
    def below(self) -> float:
        """Room for the labels of the columns."""
        if not any(panel.x.title or panel.x.ticks for panel in self.panels):
            return BOTTOM / 3
        longest = max((len(text) for panel in self.panels for text in (panel.x.ticks or {}).values()), default=0)
        return max(BOTTOM, longest * CHARACTER + 36) if any(panel.is_upright for panel in self.panels) else BOTTOM

    @property
    def layout(self) -> tuple[list[tuple[float, float]], float, float]:
        """Left and top of each panel, from the upper left of all; width and height of all, headings included."""
        places, width, height = [], 0.0, 0.0
        for start in range(0, len(self.panels), self.columns):
            left, line = 0.0, self.panels[start : start + self.columns]
            height += self.heading + (self.below if start and any(panel.x.title for panel in line) else 0)
            for panel in line:
                places.append((left + panel.gap, height))
                left += panel.gap + panel.width
            width = max(width, left)
            height += max(panel.height for panel in line)
        return places, width, height


@dataclass(frozen=True)
class Figure:
    """What a page and a PNG show."""

    title: str
    subtitle: str
    rows: Sequence[Row]
    note: str = ""  # a line below; `no_value` says what grey cells are
    no_value: str = ""
    caption: str = ""  # caption, more: Markdown of the page, below the plot and at its end
    more: str = ""
    ranks: bool = False  # whether cells of the page can be coloured by rank
    alone: bool = False  # whether the PNG shows the first row alone


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
    """A row as plotly takes it; with `ranks`, there are buttons that colour the cells by rank instead."""
    places, width, height = row.layout
    axes: dict[str, Any] = {}
    traces: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    told: set[str] = set()
    for number, (panel, (left, top)) in enumerate(zip(row.panels, places, strict=True), 1):
        mark = "" if number == 1 else str(number)
        spans = [left / width, (left + panel.width) / width], [1 - (top + panel.height) / height, 1 - top / height]
        for letter, axis, span, anchor in (("x", panel.x, spans[0], "y"), ("y", panel.y, spans[1], "x")):
            axes[f"{letter}axis{mark}"] = {
                **_axis(axis), "domain": span, "anchor": f"{anchor}{mark}",
                **({"tickangle": -90 if panel.is_upright else 0} if letter == "x" else {}),
                **({"showticklabels": False, "ticks": ""} if letter == "y" and left > 0 and axis.ticks else {}),
                **({} if panel.cells else {"showline": True, "mirror": True, "linecolor": NO_VALUE}),
            }  # fmt: skip
        found = [*_heatmaps(row, panel), *(trace for marks in panel.marks for trace in _scatters(marks, told))]
        traces += [{**trace, "xaxis": f"x{mark}", "yaxis": f"y{mark}"} for trace in found]
        annotations += _annotations(panel, mark)
    heat = next((trace for trace in traces if "zmin" in trace), None)
    if heat is not None:
        heat |= {"showscale": True, "colorbar": {"title": {"text": row.scale_title, "side": "top"}, "thickness": 14,
                                                 "x": 1, "xpad": 46 if any(p.beside for p in row.panels) else 10,
                                                 "outlinewidth": 0}}  # fmt: skip
    top = TOP + LEGEND_LINE * max(-(-len(told) // LEGEND_COLUMNS) - 1, 0)
    layout = {
        "template": {}, "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white", "plot_bgcolor": "white", "hovermode": "closest",
        "margin": {"l": LEFT, "r": RIGHT, "t": top, "b": row.below},
        "hoverlabel": {"bgcolor": "white", "bordercolor": INK, "font": {"size": 13, "color": INK}, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1 + 6 / height, "yanchor": "bottom"}, "showlegend": bool(told),
        "annotations": annotations, **axes, **({"updatemenus": _by_rank(row, traces)} if ranks else {}),
    }  # fmt: skip
    whole = int(width + LEFT + RIGHT)
    shrinks = len(row.panels) == 1 and not row.panels[0].cells  # as far as a telephone asks
    least = PHONE if shrinks else min(max(int(whole * LEAST), PHONE), whole)
    return Plot(title or row.name, {"data": traces, "layout": layout}, int(height + top + row.below), whole, least)


def _axis(axis: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {"showgrid": axis.start is None, "zeroline": False, "ticks": "outside", "ticklen": 3}
    if axis.start is not None:
        found |= {"range": [axis.start, axis.stop], "minallowed": axis.start, "maxallowed": axis.stop}
    if axis.title:
        found["title"] = {"text": escape(axis.title, quote=False), "standoff": 8}
    if axis.ticks is not None:
        return {**found, "tickvals": list(axis.ticks), "ticktext": list(map(escape, axis.ticks.values()))}
    return {**found, "dtick": 1} if axis.start is not None and axis.length <= 12 else found


def _annotations(panel: Panel, mark: str) -> list[dict[str, Any]]:
    """The heading of a panel, what stands in it, and labels at its right end."""
    inside = {"xref": f"x{mark} domain", "yref": f"y{mark} domain", "x": 0.5, "showarrow": False}
    found: list[dict[str, Any]] = []
    if panel.title:
        found.append({**inside, "text": _lines(panel.title), "y": 1, "yanchor": "bottom", "yshift": 4})
    if panel.note:
        found.append({**inside, "text": escape(panel.note), "y": 0.5, "font": {"color": "#555555"}})
    return found + [
        {**inside, "text": escape(text), "x": 1, "xanchor": "left", "y": at, "yref": f"y{mark}", "font": {"size": 12}}
        for at, text in panel.beside.items()
    ]


def _heatmaps(row: Row, panel: Panel) -> list[dict[str, Any]]:
    from plotly.colors import get_colorscale

    traces: list[dict[str, Any]] = []
    for cells in panel.cells:
        across, up = (edges.tolist() for edges in _edges(cells))
        place = {"type": "heatmap", "x": across, "y": up, "showscale": False}
        bare = np.isnan(cells.values) & cells.there
        if bare.any():
            grey = [[0 if one else None for one in line] for line in bare.tolist()]
            scale = [[0, NO_VALUE], [1, NO_VALUE]]
            traces.append({**place, "z": grey, "colorscale": scale, "hoverinfo": "skip"})
        low, high = row.scale or (0.0, 1.0)
        texts = [[escape(text, quote=False).replace("\n", "<br>") for text in line] for line in cells.texts]
        traces.append(
            {**place, "z": cells.values.tolist(), "text": texts, "hovertemplate": "%{text}<extra></extra>",
             "colorscale": get_colorscale(COLOURS), "zmin": low, "zmax": high,
             "customdata": None if cells.ranks is None else cells.ranks.tolist()}
        )  # fmt: skip
    return traces


def _scatters(marks: Marks, told: set[str]) -> list[dict[str, Any]]:
    """A name that was not told before stands in the legend."""
    colour, sizes = marks.colour, marks.sizes if isinstance(marks.sizes, float | int) else list(marks.sizes)
    hover = {"text": list(map(_lines, marks.texts)), "hovertemplate": "%{text}<extra></extra>"}
    drawn: dict[str, Any] = {
        "type": "scatter", "name": escape(marks.name), "legendgroup": marks.name, "showlegend": marks.name not in told,
        "mode": "+".join(["lines"] * bool(marks.dash) + ["markers"] * bool(sizes)),
        "x": marks.places[:, 0].tolist(), "y": marks.places[:, 1].tolist(),
        **(hover if marks.texts else {"hoverinfo": "skip"}), **({} if marks.shown else {"visible": "legendonly"}),
    }  # fmt: skip
    told.add(marks.name)
    for letter, bars in marks.bars.items():
        drawn[f"error_{letter}"] = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
                                    "arrayminus": bars[:, 0].tolist(), "array": bars[:, 1].tolist()}  # fmt: skip
    mark: dict[str, Any] = {"symbol": marks.symbol, "size": sizes, "opacity": marks.opacity, "color": colour}
    mark["line"] = {"color": marks.edge, "width": 1}
    traces = []
    if marks.dash:
        drawn["line"] = {"color": colour, "width": 1.5, "dash": marks.dash}
        if colour == "white":  # upon a dark line, to be seen on any colour; grey in the legend, to be seen on any page
            traces.append({**drawn, "x": [None], "y": [None], "line": {**drawn["line"], "color": GREY}})
            traces.append({**drawn, "showlegend": False, "line": {"color": "rgba(0,0,0,0.55)", "width": 2}})
    if marks.filled:
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        drawn |= {"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.08)"}
    if marks.hollow:
        mark |= {"symbol": f"{marks.symbol}-open", "line": {"width": 2}}
        traces.append({**drawn, "marker": {**mark, "color": RIM, "line": {"width": 4}}})
    if sizes:
        drawn["marker"] = mark
    return [*traces, {**drawn, "showlegend": drawn["showlegend"] and not traces}]


def _lines(text: str) -> str:
    """The first line is bold."""
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


def _edges(cells: Cells) -> list[NDArray[np.float64]]:
    """Of the columns and of the rows."""
    counts = cells.values.shape[::-1]
    return [np.linspace(*span, count + 1) for span, count in zip((cells.x, cells.y), counts, strict=True)]


# ---- the page and the picture


def write_figure(path: Path, figure: Figure) -> list[Path]:
    """Write PATH.html, a page that needs no network, and PATH.png, all rows below each other in 150 dpi."""
    files = [path.with_suffix(".html"), path.with_suffix(".png")]
    plots = [plot(row, ranks=figure.ranks) for row in figure.rows]
    text = document(
        "figure.md.j2", title=figure.title, subtitle=figure.subtitle, caption=Markdown(figure.caption),
        more=Markdown(figure.more), note=figure.note,
    )  # fmt: skip
    write_text(files[0], page(text, Figures({"figure": plots})))
    with replacing(files[1]) as temporary:
        picture(figure).savefig(temporary, format="png", **SAVED)
    return files


def picture(figure: Figure, paper: str = "white") -> Drawing:
    """Drawn without pyplot and so without any global state; all texts are text, never formulas. Save with `SAVED`."""
    from matplotlib.figure import Figure as Drawing

    rows = figure.rows[:1] if figure.alone else figure.rows
    layouts = [row.layout for row in rows]
    width = max(wide for _, wide, _ in layouts)
    height = sum(high + row.below for row, (_, _, high) in zip(rows, layouts, strict=True))
    drawing = Drawing(figsize=(width / PX_PER_INCH, height / PX_PER_INCH), dpi=DPI, facecolor=paper)

    def at(across: float, down: float) -> tuple[float, float]:
        return across / width, 1 - down / height

    told: dict[str, Any] = {}
    top = 0.0
    for row, (places, wide, high) in zip(rows, layouts, strict=True):
        for panel, (across, down) in zip(row.panels, places, strict=True):
            box = *at(across, top + down + panel.height), panel.width / width, panel.height / height
            _draw(drawing.add_axes(box, facecolor=paper), row, panel, told, first=across <= panel.gap)
        if row.scale:
            right = wide + (46 if any(panel.beside for panel in row.panels) else 12)
            _colour_bar(drawing, row, (*at(right, top + high), 13 / width, (high - row.heading) / height))
        if len(rows) > 1:
            name = shortened(row.name, int(0.8 * high / CHARACTER))
            drawing.text(*at(-LEFT - LINE, top + high / 2), name, rotation=90, fontsize=11, fontweight="bold",
                         va="center", ha="center", parse_math=False)  # fmt: skip
        top += high + row.below
    room = max(width, LEAST_TEXT)
    subtitle = wrap(figure.subtitle, int(room * 0.14), max_lines=2, placeholder=" …")
    above = [(line, -24 - LINE * number, 10.0) for number, line in enumerate(reversed(subtitle))]
    for text, down, size in (*above, (figure.note, height + 4, 8.5)):
        line = shortened(text, int(room * 1.4 / size))
        drawing.text(*at(width / 2, down), line, fontsize=size, color=MUTED, ha="center", parse_math=False)
    drawing.text(*at(width / 2, -32 - LINE * len(subtitle)), shortened(figure.title, int(room / 13)), fontsize=13,
                 fontweight="bold", ha="center", parse_math=False)  # fmt: skip
    _legend(drawing, figure, told, room, at(width / 2, height + (14 if figure.note else -8)))
    return drawing


def _draw(axes: Axes, row: Row, panel: Panel, told: dict[str, Any], *, first: bool) -> None:
    import matplotlib
    from matplotlib.lines import Line2D

    low, high = row.scale or (0.0, 1.0)
    for cells in panel.cells:
        bare = np.where(np.isnan(cells.values) & cells.there, 0.0, np.nan)
        grey = matplotlib.colors.ListedColormap([NO_VALUE])
        axes.pcolormesh(*_edges(cells), np.ma.masked_invalid(bare), cmap=grey, rasterized=True)
        values = np.ma.masked_invalid(cells.values)
        axes.pcolormesh(*_edges(cells), values, cmap=COLOURS, vmin=low, vmax=high, rasterized=True)
    for marks in panel.marks:
        drawn: list[Any] = []
        across, up = marks.places[:, 0], marks.places[:, 1]
        if marks.filled:
            axes.fill(across, up, facecolor=marks.colour, alpha=0.08)
        if marks.dash:
            style: Any = "-" if marks.dash == "solid" else (0, (4, 4))
            if marks.colour == "white":  # its legend is seen on a light page and on a dark one
                drawn.append(Line2D([], [], color=GREY, linestyle=style))
                axes.plot(across, up, color="black", alpha=0.5, linewidth=1.6)
            drawn += axes.plot(across, up, color=marks.colour, linewidth=1, linestyle=style)
        if np.any(marks.sizes):
            sizes = np.square(np.asarray(marks.sizes, dtype=np.float64) * POINTS_PER_PX)
            look: dict[str, Any] = {"s": sizes, "marker": SYMBOLS[marks.symbol], "zorder": 3}
            if marks.hollow:
                rings = ((RIM, 2.6), (marks.colour, 1.4))
                drawn += [axes.scatter(across, up, facecolors="none", edgecolors=colour, linewidths=wide, **look)
                          for colour, wide in rings]  # fmt: skip
            else:
                drawn.append(axes.scatter(across, up, color=marks.colour, edgecolors=marks.edge, linewidths=0.6,
                                          alpha=marks.opacity, **look))  # fmt: skip
        told.setdefault(marks.name, drawn[0])
    _label(axes, panel, first=first)


def _label(axes: Axes, panel: Panel, *, first: bool) -> None:
    from matplotlib.ticker import MultipleLocator

    axes.set_xlim(panel.x.start, panel.x.stop)
    axes.set_ylim(panel.y.start, panel.y.stop)
    plain: dict[str, Any] = {"parse_math": False}
    for axis, ticks, size, needed in (
        (axes.xaxis, panel.x, panel.width, TICK_WIDTH), (axes.yaxis, panel.y, panel.height, TICK_HEIGHT)
    ):  # fmt: skip
        if ticks.ticks is None:
            axis.set_major_locator(MultipleLocator(tick_step(size / ticks.length, needed)))
        else:
            axis.set_ticks(list(ticks.ticks), list(ticks.ticks.values()), **plain)
        axis.set_label_text(ticks.title if axis is axes.xaxis or first else "", fontsize=10, **plain)
    axes.tick_params(labelsize=9, length=3)
    axes.tick_params(axis="x", rotation=90 if panel.is_upright else 0)
    if not first and panel.y.ticks is not None:
        axes.tick_params(axis="y", length=0, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(not panel.cells)
        spine.set_color(NO_VALUE)
    for at, label in panel.beside.items():
        axes.text(axes.get_xlim()[1], at, f" {label}", va="center", fontsize=9, **plain)
    inside: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", **plain}
    axes.text(0.5, 0.5, panel.note, color="#555555", fontsize=9.5, **inside)
    for number, line in enumerate(reversed(panel.title.split("\n"))):
        weight = "bold" if number == panel.title.count("\n") else "normal"
        axes.text(0.5, 1 + (6 + LINE * number) / panel.height, line, fontsize=10, fontweight=weight, **inside)


def _colour_bar(drawing: Drawing, row: Row, box: tuple[float, float, float, float]) -> None:
    import matplotlib

    colours = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(*(row.scale or (0.0, 1.0))), COLOURS)
    bar = drawing.colorbar(colours, cax=drawing.add_axes(box))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, length=2)
    bar.ax.set_title(row.scale_title, fontsize=9.5, loc="left")


def _legend(drawing: Drawing, figure: Figure, told: Mapping[str, Any], room: float, at: tuple[float, float]) -> None:
    from matplotlib.lines import Line2D

    marks = dict(told)
    bare = any((np.isnan(c.values) & c.there).any() for row in figure.rows for p in row.panels for c in p.cells)
    if bare and figure.no_value:
        marks[figure.no_value] = Line2D([], [], marker="s", color=NO_VALUE, linestyle="none", markersize=8)
    names = [shortened(name, LEGEND_LENGTH).replace("$", r"\$") for name in marks]  # a legend would read a formula
    most = int(room / (max(map(len, names), default=1) * 0.9 * CHARACTER + 48))
    drawing.legend(handles=list(marks.values()), labels=names, loc="upper center", bbox_to_anchor=at, fontsize=9.5,
                   frameon=False, ncols=max(min(most, len(names)), 1))  # fmt: skip
