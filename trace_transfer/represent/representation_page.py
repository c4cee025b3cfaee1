"""The page of representations: a panel per model, buttons, the numbers as a table, and its script."""

from __future__ import annotations

from html import escape
from string import Template
from textwrap import wrap
from typing import Any

from trace_transfer.page_head import HEAD
from trace_transfer.palette import INK, shortened
from trace_transfer.represent.representation_view import (
    OTHERS,
    Representation,
    colour_of,
    columns_of,
    symbol_of,
    table_of,
)

WIDTH = 1220  # px that a window of 1280 x 800 has
LARGEST_PANEL, GAP, TITLE = 520, 16, 56  # px: side of a panel, between panels, two lines above
LEAST_SCALE = 0.72  # of all that; in a narrower window the page scrolls, so that titles keep their room
AROUND = 250  # px of heading, buttons and table that are seen with a single row of panels
CHARACTER_WIDTH = 8.0  # px of a panel's title
HOVER_WIDTH = 56  # characters of a line
EDGE = "#b5b5b5"
SHAPES = {
    "circle": '<circle cx="7" cy="7" r="5"/>',
    "diamond": '<path d="M7 .8L13.2 7 7 13.2.8 7z"/>',
    "square": '<rect x="2.4" y="2.4" width="9.2" height="9.2"/>',
    "triangle-up": '<path d="M7 1.2L13 12H1z"/>',
    "triangle-down": '<path d="M7 12.8L1 2h12z"/>',
}


def page(representation: Representation) -> str:
    """The text of the page; the same for the same files."""
    from plotly.io import to_html

    config = {
        "displaylogo": False,
        "modeBarButtons": [["toImage", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
        "toImageButtonOptions": {"filename": "representation", "scale": 2},
    }
    plot = to_html(
        figure(representation), config, include_mathjax=False, full_html=False, div_id="plot", validate=False
    )
    _, rows, _, width, height = _sizes(representation)
    ratio = width / height
    least = int(width * LEAST_SCALE)
    fitting = f"max({least}px, (100vh - {AROUND}px) * {ratio:.4f})" if rows == 1 else f"{WIDTH}px"
    return PAGE.substitute(
        title=escape(representation.title),
        subtitle=escape(representation.subtitle),
        buttons=_buttons(representation),
        plot=plot,
        table=_table(representation),
        others=_note(representation),
        ratio=f"{ratio:.4f}",
        least=least,
        fitting=fitting,
    )


def _sizes(representation: Representation) -> tuple[int, int, float, float, float]:
    """Columns, rows, the side of a panel, and width and height of all, px."""
    columns = columns_of(len(representation.panels))
    rows = -(-len(representation.panels) // columns)
    panel = min((WIDTH - (columns - 1) * GAP) / columns, LARGEST_PANEL)
    return columns, rows, panel, columns * panel + (columns - 1) * GAP, rows * (panel + TITLE)


def figure(representation: Representation) -> dict[str, Any]:
    """Traces (`meta` says of what: kind, and task if of one) and layout, as plotly takes them."""
    columns, _, panel, width, height = _sizes(representation)
    layout: dict[str, Any] = {
        "template": {},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 1, "r": 1, "t": 0, "b": 1},
        "hoverlabel": {"bgcolor": "white", "bordercolor": INK, "font": {"size": 13, "color": INK}, "align": "left"},
        "hovermode": "closest",
        "showlegend": False,
        "annotations": [],
    }
    traces: list[dict[str, Any]] = []
    for index, shown in enumerate(representation.panels):
        row, column = divmod(index, columns)
        left, top = column * (panel + GAP), height - row * (panel + TITLE)
        axes = {"xaxis": f"x{index + 1}", "yaxis": f"y{index + 1}"}
        x_range, y_range = representation.ranges[index]
        line = {
            "showticklabels": False, "ticks": "", "showgrid": False, "zeroline": False, "showline": True,
            "mirror": True, "linecolor": EDGE,
        }  # fmt: skip
        # Panels are square because the frame keeps its ratio; a scale anchor would shrink them while it is resized.
        layout[f"xaxis{index + 1}"] = {
            **line, "range": x_range, "domain": [left / width, (left + panel) / width], "anchor": axes["yaxis"],
        }  # fmt: skip
        layout[f"yaxis{index + 1}"] = {
            **line, "range": y_range, "anchor": axes["xaxis"],
            "domain": [(top - TITLE - panel) / height, (top - TITLE) / height],
        }  # fmt: skip
        name = escape(shortened(shown.label, int(panel / CHARACTER_WIDTH)), quote=False)
        layout["annotations"].append(
            {
                "text": f"<b>{name}</b><br>{escape(shown.told)}", "showarrow": False, "align": "center",
                "x": (left + panel / 2) / width, "xref": "paper", "xanchor": "center",
                "y": (top - TITLE + 3) / height, "yref": "paper", "yanchor": "bottom",
            }
        )  # fmt: skip
        traces += [{**trace, **axes} for trace in _traces(representation, index)]
    return {"data": traces, "layout": layout}


def _traces(representation: Representation, index: int) -> list[dict[str, Any]]:
    """The others' texts below, then the ellipses, then the points."""
    size = _marker_size(sum(representation.num_texts))
    traces: list[dict[str, Any]] = []
    if representation.has_others:
        traces.append(
            {
                "type": "scatter", "mode": "markers", "hoverinfo": "skip", "meta": {"kind": "others"},
                **_xy(representation.others(index)), "marker": {"color": OTHERS, "size": size * 0.7},
            }
        )  # fmt: skip
    for task, ellipse in enumerate(representation.ellipses[index]):
        traces.append(
            {
                "type": "scatter", "mode": "lines", "hoverinfo": "skip", "meta": {"kind": "ellipse", "task": task},
                **_xy(ellipse.outline()), "line": {"color": colour_of(task), "width": 1.5}, "fill": "toself",
                "fillcolor": _faint(colour_of(task)),
            }
        )  # fmt: skip
    for task in range(len(representation.tasks)):
        part = representation.of_task(task)
        traces.append(
            {
                "type": "scatter", "mode": "markers", "meta": {"kind": "points", "task": task},
                **_xy(representation.panels[index].points[part]),
                "text": [_hover(text) for text in representation.texts[part]],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "color": colour_of(task), "symbol": symbol_of(task)[0], "size": size, "opacity": 0.85,
                    "line": {"color": "white", "width": 0.6},
                },
            }
        )  # fmt: skip
    return traces


def _xy(points: Any) -> dict[str, list[float]]:
    return {"x": [round(float(x), 3) for x in points[:, 0]], "y": [round(float(y), 3) for y in points[:, 1]]}


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.08)"


def _marker_size(num_texts: int) -> float:
    return 8.0 if num_texts <= 150 else 6.5 if num_texts <= 500 else 5.0


def _hover(text: Any) -> str:
    lines = [f"<b>{escape(text['id'], quote=False)}</b>"]
    return "<br>".join(lines + [escape(line, quote=False) for line in wrap(text["words"], HOVER_WIDTH)])


def _buttons(representation: Representation) -> str:
    tasks = "\n".join(
        f'<button type="button" data-task="{task}" aria-pressed="true"><svg width="14" height="14" '
        f'fill="{colour_of(task)}" stroke="white">{SHAPES[symbol_of(task)[0]]}</svg>{escape(name)} ({count})</button>'
        for task, (name, count) in enumerate(zip(representation.tasks, representation.num_texts, strict=True))
    )
    kinds = {"ellipse": "95 % ellipses", **({"others": "other models"} if representation.has_others else {})}
    shown = "\n".join(
        f'<button type="button" data-kind="{kind}" aria-pressed="true">{name}</button>' for kind, name in kinds.items()
    )
    return (
        f'<div class="views">\n<div role="group" aria-label="Tasks"><span>Tasks</span>\n{tasks}\n</div>\n'
        f'<div role="group" aria-label="Show"><span>Show</span>\n{shown}\n</div>\n</div>'
    )


def _table(representation: Representation) -> str:
    heading, rows = table_of(representation)
    cells = "".join(f'<th scope="col">{escape(text)}</th>' for text in heading)
    lines = [f"<tr>{cells}</tr>"]
    for name, *values in rows:
        numbers = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{numbers}</tr>')
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _note(representation: Representation) -> str:
    """How the panels compare, if there are several."""
    if len(representation.panels) == 1:
        return ""
    if not representation.unified:
        return SEPARATE_NOTE
    return OTHERS_NOTE + ("" if representation.same_kind else KINDS_NOTE)


OTHERS_NOTE = (
    "All panels share one space and one scale, so that they can be compared; grey dots are the same texts as the other "
    "models represent them."
)
KINDS_NOTE = (
    " The models are not of one kind: though equally wide, their coordinates have nothing to do with each other, and "
    "texts lie apart by model first."
)
SEPARATE_NOTE = (
    "The models are not equally wide, so that each has a space of its own: where a point lies in one panel says "
    "nothing about another."
)

PAGE = Template(
    HEAD
    + """\
.views, .views > div { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; }
.views { gap: 6px 28px; margin-bottom: 10px; }
.views span { color: #555; }
.views button { display: flex; align-items: center; gap: 6px; }
.views button[aria-pressed=true] { background: #eef2f4; border-color: #2f4858; color: #1a1a1a; }
.views button[aria-pressed=false] { color: #767676; text-decoration: line-through; }
.views button:hover { cursor: pointer; }
.frame { position: relative; aspect-ratio: $ratio; min-width: ${least}px; width: min(100%, $fitting); }
table { border-collapse: collapse; margin: 12px 0; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid #e2e2e2; font-weight: normal; }
th:first-child { text-align: left; overflow-wrap: anywhere; min-width: 120px; }
th[scope=col] { color: #555; vertical-align: bottom; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$subtitle</p>
$buttons
<div class="scroll"><div class="frame">$plot</div></div>
<noscript><p>The plot needs JavaScript; no network is needed.</p></noscript>
<div class="scroll">$table</div>
<p>Each dot is one text; point at it for its first words. Ellipses hold 95 % of a normal distribution with the
covariance of a task's dots. The numbers are of the embeddings themselves, not of the picture: the silhouette is 1
where each text lies among its own task and far from the others, and 0 where tasks overlap; S is the mean distance
between the tasks' centroids, the spread the mean distance of a task's texts from its own. Distances compare only
between models of one kind. t-SNE keeps neighbours together; how far apart its groups lie, and how large they are,
says little. $others Press a task to hide it; drag to enlarge, double-click to go back.</p>
<script>
"use strict";
const plot = document.getElementById("plot"), hidden = {task: new Set(), kind: new Set()};

function show() {
  const visible = plot.data.map(({meta}) => !hidden.kind.has(meta.kind) && !hidden.task.has(String(meta.task)));
  Plotly.restyle(plot, {visible});
}

for (const what of ["task", "kind"])
  document.querySelectorAll(`button[data-$${what}]`).forEach(button => button.addEventListener("click", () => {
    const value = button.dataset[what], isHidden = hidden[what].has(value);
    hidden[what][isHidden ? "delete" : "add"](value);
    button.setAttribute("aria-pressed", isHidden);
    show();
  }));
new ResizeObserver(() => Plotly.Plots.resize(plot)).observe(plot);
</script>
</body>
</html>
"""
)
