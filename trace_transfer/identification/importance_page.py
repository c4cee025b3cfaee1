"""The page around the figure of importance heatmaps: heading, buttons, what the labels stand for, and its script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import Template

from trace_transfer.identification.importance_html import MARGIN, figure, gaps
from trace_transfer.identification.importance_view import DOT, Column, Importance, others_note
from trace_transfer.page_head import GREY, HEAD
from trace_transfer.palette import STEPS

LEAST_COLUMN, LARGEST_COLUMN = 15, 84  # px; in a window that gives less than the least the page scrolls instead
LEAST_LAYER = 6  # px
AROUND = 288  # px of heading, buttons and caption above and below the figure
TICK_HEIGHT, LABEL_WIDTH = 17, 7.6  # px that a layer's label needs, that a character of a module's label needs


def page(importance: Importance) -> str:
    """The text of the page; the same for the same core files."""
    from plotly.io import to_html

    config = {
        "displaylogo": False,
        "modeBarButtons": [["toImage", "resetScale2d"]],
        "toImageButtonOptions": {"filename": "importance", "scale": 2},
    }
    plot = to_html(figure(importance), config, include_mathjax=False, full_html=False, div_id="plot", validate=False)
    columns = len(importance.epochs) * importance.num_columns
    beside = gaps(importance) + MARGIN["l"] + MARGIN["r"]
    low, high = importance.extent
    return PAGE.substitute(
        title=escape(f"Parameter importance: {importance.model_name}"),
        subtitle=escape(importance.subtitle),
        buttons=_buttons(importance),
        plot=plot,
        part_legend=PART_LEGEND if importance.has_parts else "",
        gap_legend=GAP_LEGEND if importance.has_gaps else "",
        key=_key(importance),
        others=f"<p>{escape(others_note(importance))}.</p>" if importance.others else "",
        steps=list(STEPS),
        needed=TICK_HEIGHT,
        dot=DOT,
        label_width=LABEL_WIDTH,
        margin=[MARGIN["l"] + MARGIN["r"], MARGIN["t"], MARGIN["b"]],
        around=AROUND,
        lowest=int((high - low) * LEAST_LAYER + MARGIN["t"] + MARGIN["b"]),
        narrowest=columns * LEAST_COLUMN + beside,
        widest=columns * LARGEST_COLUMN + beside,
    )


def _buttons(importance: Importance) -> str:
    tasks = {str(number): row.name for number, row in enumerate(importance.rows)}
    groups = [_group("Task", "row", tasks)] if len(tasks) > 1 else []
    groups.append(_group("Colour by", "colour", {"score": "score", "rank": "rank"}))
    return '<div class="views">\n' + "\n".join(groups) + "\n</div>"


def _group(name: str, what: str, choices: dict[str, str]) -> str:
    """Buttons of which one is pressed, at first the first."""
    first = next(iter(choices))
    buttons = "\n".join(
        f'<button type="button" data-{what}="{value}" aria-pressed="{str(value == first).lower()}">'
        f"{escape(text)}</button>"
        for value, text in choices.items()
    )
    return f'<div role="group" aria-label="{name}"><span>{name}</span>\n{buttons}\n</div>'


def _key(importance: Importance) -> str:
    """What the labels stand for."""
    named: Sequence[Column] = (*importance.columns, *importance.bands)
    return "; ".join(f"<b>{escape(column.label)}</b> {escape(column.meaning)}" for column in named)


SMALL = '<svg width="14" height="14"><circle cx="7" cy="7" r="2.8" class="mark"/></svg>'
PART_LEGEND = f"<span>{SMALL}core in part</span>"
GAP_LEGEND = f"<span>{GREY}no score</span>"

PAGE = Template(
    HEAD
    + """\
.views, .views > div { display: flex; flex-wrap: wrap; align-items: baseline; gap: 6px; }
.views { gap: 6px 28px; margin-bottom: 8px; }
.views span { color: #555; }
.frame { position: relative; width: 100%; min-width: ${narrowest}px; max-width: ${widest}px;
  height: calc(100vh - ${around}px); min-height: ${lowest}px; max-height: 1400px; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$subtitle</p>
$buttons
<div class="legend">
<span><svg width="14" height="14"><circle cx="7" cy="7" r="5.5" class="mark"/></svg>core</span>
$part_legend
$gap_legend
</div>
<div class="scroll"><div class="frame">$plot</div></div>
<noscript><p>The plot needs JavaScript; no network is needed.</p></noscript>
<p>Each cell is the score of a module's weight (a bias is named when you point at it): layers upwards from 0, modules
to the right. All warm-start lengths of a task share one scale, from the least to the largest score in its layers; what
is outside them may lie beyond it. A few large scores can leave all others dark: ranks show those. Point at a cell for
its parameter, score and rank; drag to enlarge layers, double-click to go back. $key.</p>
$others
<script>
"use strict";
const plot = document.getElementById("plot");

/* As many layer labels as have room, module labels upright where they have room, and marks within their cells. */
function fit() {
  const box = plot.getBoundingClientRect(), [across, top, below] = $margin, {layers, bands} = plot.layout.meta;
  const names = Object.keys(plot.layout).filter(name => name.startsWith("xaxis"));
  const axes = names.map(name => plot.layout[name]), [left, right] = axes[0].domain;
  const column = Math.max(box.width - across, 1) * (right - left) / (axes[0].range[1] - axes[0].range[0]);
  const longest = Math.max(...axes.flatMap(axis => axis.ticktext.map(text => text.length)), 0) * $label_width;
  const upright = longest < column, [from, to] = plot.layout.yaxis.range;
  const bottom = upright ? 30 : Math.max(below, longest + 14);
  const layer = Math.max(box.height - top - bottom, 1) / Math.abs(to - from);
  const step = $steps.find(step => step * layer >= $needed) || $steps.at(-1);
  const side = Math.min(Math.max(Math.min(layer, column) * $dot, 4), 14);
  if (plot.dataset.fit === String([step, bottom, side])) return;
  plot.dataset.fit = String([step, bottom, side]);
  const shown = [...Array(layers).keys()].filter(layer => layer % step === 0);
  const change = {"margin.b": bottom,
    "yaxis.tickvals": [...shown, ...bands[0]], "yaxis.ticktext": [...shown.map(String), ...bands[1]]};
  names.forEach(name => change[name + ".tickangle"] = upright ? 0 : -90);
  const marks = plot.data.flatMap((trace, i) => trace.name === "core" ? [i] : []);
  const sizes = marks.map(i => plot.data[i].customdata.map(share => Math.max(share * side, 2)));
  Plotly.update(plot, {"marker.size": sizes, "marker.line.width": side < 6 ? 0.7 : 1}, change, marks);
}

function press(what, value) {
  document.querySelectorAll(`button[data-$${what}]`).forEach(button =>
    button.setAttribute("aria-pressed", button.dataset[what] === value));
}

function show(row) {
  Plotly.restyle(plot, {visible: plot.data.map(trace => String(trace.meta) === row)});
  press("row", row);
}

const heats = plot.data.flatMap((trace, i) => trace.type === "heatmap" && trace.customdata ? [i] : []);
const scores = heats.map(i => ({z: plot.data[i].z, zmin: plot.data[i].zmin, zmax: plot.data[i].zmax}));

function colour(by) {
  const ranks = heats.map(i => ({z: plot.data[i].customdata, zmin: 0, zmax: 1}));
  const shown = by === "rank" ? ranks : scores;
  const change = {"colorbar.title.text": by, "colorbar.tickvals": by === "rank" ? [[0, 1]] : null,
    "colorbar.ticktext": by === "rank" ? [["last", "best"]] : null};
  ["z", "zmin", "zmax"].forEach(name => change[name] = shown.map(one => one[name]));
  Plotly.restyle(plot, change, heats);
  press("colour", by);
}

for (const [what, action] of [["row", show], ["colour", colour]])
  document.querySelectorAll(`button[data-$${what}]`).forEach(button =>
    button.addEventListener("click", () => action(button.dataset[what])));
plot.on("plotly_relayout", fit);
fit();
new ResizeObserver(() => { Plotly.Plots.resize(plot); fit(); }).observe(plot);
</script>
</body>
</html>
"""
)
