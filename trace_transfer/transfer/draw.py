"""The similarity of all layers of two models and the pairs chosen among them, as an interactive page and as a picture.

Writes: a self-contained HTML file (plotly.js is inside, nothing is fetched) that holds every representation compared,
and a PNG of the one that the match was made with. Both have layer 0 at the lower left: depth grows up and to the right.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from trace_transfer.files import replacing, write_text
from trace_transfer.page_head import GREY, HEAD
from trace_transfer.palette import COLOURS, INK, NO_VALUE, STEPS, Pair, colour_range, tick_step
from trace_transfer.transfer.heatmap_view import Heatmap, View, axis_title

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Heatmap", "View", "write_html", "write_png"]

PLOT_WIDTH, PLOT_HEIGHT = 1010, 490  # px that a window of 1280 × 800 has for the cells
SMALLEST_WIDTH, SMALLEST_HEIGHT = 400, 190
LEAST_CELL, LARGEST_CELL = 5, 80  # px; in a window that gives less than the least the page scrolls instead
MARGIN = {"l": 76, "r": 96, "t": 26, "b": 58}
AROUND = 254  # px of heading, buttons and caption above and below the figure
TICK_WIDTH, TICK_HEIGHT = 24, 17  # px that a tick label needs
CHARACTER_WIDTH = 8.5  # px of an axis title


def write_png(path: Path, heatmap: Heatmap) -> None:
    """Draw the used view as a PNG, 1350 px wide."""
    from trace_transfer.transfer.heatmap_png import picture

    with replacing(path) as temporary:
        picture(heatmap).savefig(temporary, format="png")


def write_html(path: Path, heatmap: Heatmap) -> None:
    """Write the interactive page: all views, of which the used one is shown first."""
    from plotly.io import to_html

    config = {
        "displaylogo": False,
        "modeBarButtons": [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
        "toImageButtonOptions": {"filename": "layer_match", "scale": 2},
    }
    plot = to_html(figure_of(heatmap), config, include_mathjax=False, full_html=False, div_id="plot")
    write_text(path, _page(heatmap, plot))


def figure_of(heatmap: Heatmap) -> Figure:
    """The plotly figure of the page: all views as traces, those of the one used visible."""
    from plotly import graph_objects as go

    rows, columns = heatmap.shape
    width, height = plot_size(rows, columns)
    traces = _diagonal(rows, columns)
    for view in heatmap.views:
        traces += _traces(view, view is heatmap.used)
    layout = go.Layout(
        template=go.layout.Template(),
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor=NO_VALUE,
        margin=MARGIN,
        hoverlabel={"bgcolor": "white", "bordercolor": INK, "font": {"size": 13, "color": INK}},
        showlegend=False,
        xaxis=_axis("target", heatmap.target_name, columns, width, TICK_WIDTH),
        yaxis=_axis("source", heatmap.source_name, rows, height, TICK_HEIGHT),
    )
    return go.Figure(traces, layout)


def plot_size(rows: int, columns: int) -> tuple[float, float]:
    """Width and height of all cells in px: square where there is room, never too flat or too thin to read."""
    cell = min(PLOT_WIDTH / columns, PLOT_HEIGHT / rows, LARGEST_CELL)
    return max(columns * cell, SMALLEST_WIDTH), max(rows * cell, SMALLEST_HEIGHT)


def _axis(side: str, name: str, count: int, length: float, needed: float) -> dict[str, Any]:
    edges = [-0.5, count - 0.5]
    title = axis_title(side, name, int(length / CHARACTER_WIDTH))
    return {
        "title": {"text": escape(title, quote=False), "standoff": 8},  # plotly reads a few tags
        "range": edges,
        "minallowed": edges[0],
        "maxallowed": edges[1],
        "tick0": 0,
        "dtick": tick_step(length / count, needed),
        "ticks": "outside",
        "ticklen": 3,
        "showgrid": False,
        "zeroline": False,
    }


def _traces(view: View, visible: bool) -> list[dict[str, Any]]:
    low, high = colour_range(view.similarity)
    cells = {
        "type": "heatmap",
        "z": [[round(value, 4) if np.isfinite(value) else None for value in row] for row in view.similarity.tolist()],
        "text": _hover_texts(view),
        "hovertemplate": "source layer %{y} → target layer %{x}<br>%{text}<extra></extra>",
        "colorscale": COLOURS,
        "zmin": low,
        "zmax": high,
        "colorbar": {"title": {"text": "CKA"}, "thickness": 14, "x": 1.01, "len": 1, "ypad": 0, "outlinewidth": 0},
    }
    runner_ups = _marks("runner-up", view.other_runner_ups, "diamond", "rgba(255,255,255,0.4)")
    chosen = _marks("chosen pair", view.pairs, "circle", "white")
    return [{**trace, "visible": visible, "meta": view.name} for trace in (cells, runner_ups, chosen)]


def _hover_texts(view: View) -> list[list[str]]:
    texts = [
        [f"CKA {value:.3f}" if np.isfinite(value) else "no CKA: a degenerate layer" for value in row]
        for row in view.similarity.tolist()
    ]
    for source, target in dict.fromkeys(view.pairs):
        margin = view.margins.get((source, target))
        texts[source][target] += ", chosen" + (
            f", margin {margin:.3f}" if margin is not None and np.isfinite(margin) else ""
        )
    for source, target in dict.fromkeys(view.runner_ups):
        texts[source][target] += ", runner-up"
    return texts


def _marks(name: str, pairs: tuple[Pair, ...], symbol: str, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [target for _, target in pairs],
        "y": [source for source, _ in pairs],
        "marker": {"symbol": symbol, "color": colour, "size": 8, "line": {"color": INK, "width": 1.2}},
        "hoverinfo": "skip",
    }


def _diagonal(rows: int, columns: int) -> list[dict[str, Any]]:
    """White dashes on a dark line, to be seen on any colour."""
    line = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "x": [0, columns - 1], "y": [0, rows - 1]}
    return [
        {**line, "line": {"color": "rgba(0,0,0,0.55)", "width": 2}},
        {**line, "line": {"color": "white", "width": 1, "dash": "5px,5px"}},
    ]


def _page(heatmap: Heatmap, plot: str) -> str:
    rows, columns = heatmap.shape
    cells_width, cells_height = plot_size(rows, columns)
    width, height = cells_width + MARGIN["l"] + MARGIN["r"], cells_height + MARGIN["t"] + MARGIN["b"]
    smallest = max(columns * LEAST_CELL, SMALLEST_WIDTH, rows * LEAST_CELL * cells_width / cells_height)
    return PAGE.substitute(
        title=escape(heatmap.title),
        subtitle=escape(heatmap.subtitle),
        buttons=_buttons(heatmap) if len(heatmap.views) > 1 else "",
        plot=plot,
        gaps=GAP_LEGEND if heatmap.has_gaps else "",
        source=escape(heatmap.source_name),
        target=escape(heatmap.target_name),
        steps=list(STEPS),
        needed=[TICK_WIDTH, TICK_HEIGHT],
        margin=[MARGIN["l"] + MARGIN["r"], MARGIN["t"] + MARGIN["b"]],
        ratio=f"{width / height:.4f}",
        around=AROUND,
        smallest=int(smallest + MARGIN["l"] + MARGIN["r"]),
        largest=int(width * 1.8),
    )


def _buttons(heatmap: Heatmap) -> str:
    buttons = "\n".join(
        f'<button type="button" data-view="{escape(view.name)}" aria-pressed="{str(view.used).lower()}">'
        f"{escape(view.title)}{' (used for the match)' if view.used else ''}</button>"
        for view in heatmap.views
    )
    return f'<div class="views" role="group" aria-label="Representation">\n{buttons}\n</div>'


GAP_LEGEND = f"<span>{GREY}no value (degenerate layer)</span>"

PAGE = Template(
    HEAD
    + """\
.views { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 8px; }
.frame { position: relative; aspect-ratio: $ratio; max-width: ${largest}px; min-width: ${smallest}px;
  width: min(100%, (100vh - ${around}px) * $ratio); }
</style>
</head>
<body>
<h1>$title</h1>
<p>$subtitle</p>
$buttons
<div class="legend">
<span><svg width="14" height="14"><circle cx="7" cy="7" r="5.5" class="mark"/></svg>chosen pair</span>
<span><svg width="14" height="14"><path d="M7 .5L13.5 7 7 13.5.5 7z" class="mark"/></svg>runner-up</span>
<span><svg width="30" height="14"><path d="M0 7H30" class="mark" stroke-dasharray="5 4"/></svg>equal depth</span>
$gaps
</div>
<div class="scroll"><div class="frame">$plot</div></div>
<noscript><p>The plot needs JavaScript; no network is needed.</p></noscript>
<p>Each cell compares one layer of $source (row) with one layer of $target (column) on the same texts. CKA is 1 where
both hold the same information up to rotation and scale, and about 0 where they have nothing in common. A dot marks a
pair of layers that was matched, a diamond the next best choice for it; on the dashed line both layers are equally deep
in their models. Point at a cell for its values, drag to enlarge, double-click to go back.</p>
<script>
"use strict";
const plot = document.getElementById("plot");
const buttons = [...document.querySelectorAll("button[data-view]")];

/* As many tick labels as have room, and marks of about half a cell, at any window size and enlargement. */
function fit() {
  const box = plot.getBoundingClientRect(), margin = $margin, needed = $needed, steps = $steps;
  const cells = ["xaxis", "yaxis"].map((axis, i) => {
    const [from, to] = plot.layout[axis].range;
    return Math.max((i ? box.height : box.width) - margin[i], 1) / Math.abs(to - from);
  });
  const dticks = cells.map((cell, i) => steps.find(step => step * cell >= needed[i]) || steps.at(-1));
  const size = Math.round(Math.min(Math.max(Math.min(...cells) * 0.5, 5), 15));
  const marks = plot.data.flatMap((trace, i) => trace.meta && trace.marker ? [i] : []);
  if (plot.dataset.fit === String([dticks, size])) return;
  plot.dataset.fit = String([dticks, size]);
  const line = size < 7 ? 0.8 : 1.2;
  const sizes = marks.map(i => plot.data[i].marker.symbol === "diamond" ? size * 0.9 : size);
  Plotly.update(plot, {"marker.size": sizes, "marker.line.width": line},
    {"xaxis.dtick": dticks[0], "yaxis.dtick": dticks[1]}, marks);
}

function show(name) {
  const shown = plot.data.flatMap((trace, i) => trace.meta ? [i] : []);
  Plotly.restyle(plot, {visible: shown.map(i => plot.data[i].meta === name)}, shown);
  buttons.forEach(button => button.setAttribute("aria-pressed", button.dataset.view === name));
}

buttons.forEach(button => button.addEventListener("click", () => show(button.dataset.view)));
plot.on("plotly_relayout", fit);
new ResizeObserver(() => { Plotly.Plots.resize(plot); fit(); }).observe(plot);
</script>
</body>
</html>
"""
)
