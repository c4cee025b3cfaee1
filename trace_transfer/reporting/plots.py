"""The report's own figures: forgetting curves, sweeps, costs; methods are told apart by colour, dash and mark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from trace_transfer.pages import Plot
from trace_transfer.reporting.records import EvaluationRecord, Interval, MethodSummary, Summary, SweepSummary

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe and Ito's colours that can be seen on white and on black, and a grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a")
DASHES = ("solid", "dash", "dot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
GREY, FAINT = "#8a8a8a", "rgba(138, 138, 138, 0.5)"
FRONT_HEIGHT = 340
PANEL_HEIGHT, COLUMNS, BETWEEN = 300, 3, 110  # px of a panel, panels in a row, px between rows
BELOW, LABELS = 82, 60  # px of an axis with its title, of slanted labels
LEGEND_ROW, LEGEND_COLUMNS = 22, 5  # px; entries beside each other
# What a plot with more lines shows at first; the others are behind its legend.
SHOWN = ("sequential", "joint", "dmt", "lora", "trace-lf", "transfer-lf", "random", "depth-map")
BASELINES = ("sequential", "joint", "lora", "dmt")
PARTS = (("identify_seconds", "identify", 4), ("map_seconds", "map", 3), ("train_seconds", "train", 0))
COSTS = (
    ("peak_bytes", "peak memory of training, GB", 1e9),
    ("bytes", "left on the disk, MB", 1e6),
    ("trained", "elements trained, million", 1e6),
)


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method → how its lines and marks look, the same in every plot; no two are alike in grey either."""
    found = {}
    for number, method in enumerate(methods):
        colour, turn = COLOURS[number % len(COLOURS)], number // len(COLOURS)
        found[method] = {
            "line": {"color": colour, "width": 2, "dash": DASHES[turn % len(DASHES)]},
            "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[(number + turn) % len(SYMBOLS)]},
        }
    return found


def first_shown(methods: Sequence[str]) -> tuple[str, ...]:
    """Methods whose lines are drawn at first: all where they are few, else those that the questions are about."""
    if len(methods) <= len(SHOWN):
        return tuple(methods)
    return tuple([name for name in SHOWN if name in methods] or methods)[: len(SHOWN)]


@dataclass(frozen=True)
class Panel:
    """Its title and those of its axes; `share` of values that are shown in percent."""

    title: str
    x_title: str
    y_title: str
    share: bool


@dataclass(frozen=True)
class Line:
    """A method in a panel, with its intervals."""

    panel: int
    method: str
    x: Sequence[Any]
    points: Sequence[Interval]


def curves(summary: Summary) -> Plot | None:
    """A panel per task: the score 0, 1, 2, … stages after it was learned, a line per method."""
    found = [curve for curve in summary.curves if curve.points]
    records = {record.name: record for record in summary.evaluations}
    measured = {curve.task: records[curve.evaluation] for curve in found if curve.evaluation in records}
    tasks, methods = list(measured), list(dict.fromkeys(curve.method for curve in found))
    if not tasks:
        return None
    panels = [Panel(task, "stages after it was learned", _metric(one), one.share) for task, one in measured.items()]
    lines = []
    for curve in found:
        # Side by side, so that intervals do not hide each other.
        shift = 0.25 * (methods.index(curve.method) / max(len(methods) - 1, 1) - 0.5)
        x = [_rounded(stage + shift) for stage in range(len(curve.points))]
        lines.append(Line(tasks.index(curve.task), curve.method, x, curve.points))
    figure = _panels(summary, panels, lines, first_shown(methods))
    figure.update_xaxes(dtick=1)
    figure.update_traces(hovertemplate="%{y:.3~f}<extra>%{fullData.name}</extra>")
    return _plot(figure, "Scores after a task was learned")


def front(summary: Summary) -> Plot | None:
    """Learned against lost: a mark per method with both intervals, and of tuned methods a line over their rates."""
    from plotly.graph_objects import Figure

    scale = 100 if summary.measures_are_shares else 1
    both = [one for one in summary.methods if {"learning", "backward_transfer"} <= one.measures.keys()]
    if not both:
        return None
    looks, shown = styles([one.method for one in both]), first_shown([one.method for one in both])
    tuned = {one.method: one.points for one in summary.tuning.methods} if summary.tuning else {}
    figure = Figure()
    for one in both:
        look, drawn = looks[one.method], True if one.method in shown else "legendonly"
        points = [(point, point.lost) for point in tuned.get(one.method, ()) if point.lost]
        if points:
            figure.add_scatter(
                x=[_rounded(scale * point.learned.mean) for point, _ in points], mode="lines+markers",
                y=[_rounded(scale * lost.mean) for _, lost in points], legendgroup=one.method, showlegend=False,
                error_x=_bars([point.learned for point, _ in points], scale) | {"color": FAINT}, visible=drawn,
                error_y=_bars([lost for _, lost in points], scale) | {"color": FAINT}, line=look["line"],
                marker={**look["marker"], "size": 6, "symbol": f"{look['marker']['symbol']}-open"},
                text=[f"learning rate {point.rate:g}" for point, _ in points], name=escape(one.name),
                hovertemplate="%{text}: learned %{x:.3f}, lost %{y:.3f}<extra>%{fullData.name}</extra>",
            )  # fmt: skip
        learned, kept = one.measures["learning"], one.measures["backward_transfer"]
        low, high = (None if end is None else -end for end in (kept.high, kept.low))
        lost = Interval(mean=-kept.mean, low=low, high=high, num=kept.num)
        figure.add_scatter(
            x=[_rounded(scale * learned.mean)], y=[_rounded(scale * lost.mean)], error_x=_bars([learned], scale),
            error_y=_bars([lost], scale), mode="markers", marker={**look["marker"], "size": 11},
            name=escape(one.name), legendgroup=one.method, visible=drawn,
            hovertemplate="learned %{x:.3f}, lost %{y:.3f}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.add_scatter(x=[0], y=[0], mode="markers", name="base model", hoverinfo="name",
                       marker={"color": GREY, "size": 11, "symbol": "x-thin-open"})  # fmt: skip
    unit = ", points" if summary.measures_are_shares else ""
    place = {"zeroline": False, "ticks": "outside", "ticklen": 3, "automargin": True}
    figure.update_xaxes(title={"text": f"learned{unit} (more is better)", "standoff": 8}, **place)
    figure.update_yaxes(title={"text": f"lost{unit} (less is better)", "standoff": 6}, **place)
    below = BELOW + LEGEND_ROW * -(-(len(both) + 1) // LEGEND_COLUMNS)
    figure.update_layout(
        height=FRONT_HEIGHT + 20 + below, margin={"l": 62, "r": 16, "t": 20, "b": below},
        legend={"orientation": "h", "x": 0, "y": -(BELOW - 20) / FRONT_HEIGHT, "yanchor": "top", "itemwidth": 40},
    )  # fmt: skip
    return _plot(figure, "Learned and lost")


def sweep(summary: Summary, swept: SweepSummary) -> Plot | None:
    """A panel of the average and one per evaluation, a line per method over the values of the axis."""
    methods = list(dict.fromkeys(one.method for point in swept.points for one in point.methods))
    numeric = all(isinstance(p.value, int | float) and not isinstance(p.value, bool) for p in swept.points)
    x = [point.value if numeric else point.label for point in swept.points]
    axis, shares = swept.axis.replace("_", " "), summary.measures_are_shares
    panels = [Panel("average", axis, f"average score{', %' if shares else ''}", shares)]
    panels += [Panel(one.name, axis, _metric(one), one.share) for one in summary.evaluations]
    lines = []
    for method in methods:
        of_method = [
            (place, one) for place, point in zip(x, swept.points, strict=True)
            for one in point.methods if one.method == method
        ]  # fmt: skip
        for number, panel in enumerate(panels):
            values = [(place, _score(one, panel.title, number)) for place, one in of_method]
            known = [(place, value) for place, value in values if value is not None]
            if known:
                lines.append(Line(number, method, [place for place, _ in known], [value for _, value in known]))
    if not lines:
        return None
    long = not numeric and max(map(len, map(str, x))) > 8
    figure = _panels(summary, panels, lines, methods, LABELS if long else 0)
    if numeric:
        figure.update_xaxes(tickvals=x)
    else:
        figure.update_xaxes(type="category", tickangle=-35 if long else 0, tickfont_size=11)
    if baseline := best_baseline(summary):
        name, level = baseline
        figure.add_scatter(
            x=[x[0], x[-1]], y=[_rounded(100 * level if shares else level)] * 2, mode="lines", legendgroup="baseline",
            name=escape(f"best baseline: {name}"), hoverinfo="name+y",
            line={"color": GREY, "width": 1.5, "dash": "longdash"}, row=1, col=1,
        )  # fmt: skip
    return _plot(figure, f"Sweep over {axis}")


def _score(method: MethodSummary, evaluation: str, panel: int) -> Interval | None:
    return method.final.get(evaluation) if panel else method.measures.get("average")


def best_baseline(summary: Summary) -> tuple[str, float] | None:
    """The baseline of the highest average in the main comparison, as the paper's figure 5 overlays it."""
    found = [
        (one.measures["average"].mean, one.name)
        for one in summary.methods
        if one.method in BASELINES and "average" in one.measures
    ]
    return (max(found)[1], max(found)[0]) if found else None


def _metric(found: EvaluationRecord) -> str:
    """`exact_match, % (more is better)`."""
    unit = ", %" if found.share else ""
    return f"{found.metric}{unit} ({'more' if found.higher_is_better else 'less'} is better)"


def _panels(
    summary: Summary, panels: Sequence[Panel], lines: Sequence[Line], shown: Sequence[str], labels: int = 0
) -> Figure:
    """Panels in rows of three above a legend, whose entries show and hide a method in all of them."""
    from plotly.subplots import make_subplots

    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // COLUMNS)
    inner = rows * PANEL_HEIGHT + (rows - 1) * (BETWEEN + labels)
    figure = make_subplots(
        rows, columns, horizontal_spacing=0.075, vertical_spacing=(BETWEEN + labels) / inner if rows > 1 else 0,
        subplot_titles=[f"<b>{escape(panel.title)}</b>" for panel in panels],
        specs=[[{} if row * columns + column < len(panels) else None for column in range(columns)]
               for row in range(rows)],
    )  # fmt: skip
    names = {one.method: escape(one.name) for one in summary.methods}
    looks, told = styles(list(names)), set()
    for line in lines:
        panel, share = panels[line.panel], 100 if panels[line.panel].share else 1
        figure.add_scatter(
            x=list(line.x), y=[_rounded(share * point.mean) for point in line.points], mode="lines+markers",
            name=names.get(line.method, line.method), legendgroup=line.method, showlegend=line.method not in told,
            error_y=_bars(line.points, share), visible=True if line.method in shown else "legendonly",
            hovertemplate="%{x}: %{y:.3f}<extra>%{fullData.name}</extra>", **looks.get(line.method, {}),
            row=line.panel // COLUMNS + 1, col=line.panel % COLUMNS + 1,
        )  # fmt: skip
        told.add(line.method)
    for number, panel in enumerate(panels):
        place = {"row": number // COLUMNS + 1, "col": number % COLUMNS + 1}
        figure.update_xaxes(title={"text": escape(panel.x_title), "standoff": 8}, **place)
        figure.update_yaxes(title={"text": escape(panel.y_title), "standoff": 6}, **place)
    figure.update_xaxes(zeroline=False, ticks="outside", ticklen=3, automargin=True)
    figure.update_yaxes(zeroline=False, ticks="outside", ticklen=3, automargin=True)
    below = BELOW + labels + LEGEND_ROW * -(-(len(told) + 1) // LEGEND_COLUMNS)
    figure.update_layout(
        height=inner + 40 + below, margin={"l": 62, "r": 16, "t": 40, "b": below},
        legend={"orientation": "h", "x": 0, "y": -(BELOW - 20 + labels) / inner, "yanchor": "top", "itemwidth": 40},
    )  # fmt: skip
    return figure


def _bars(points: Sequence[Interval], scale: float) -> dict[str, Any]:
    """From the ends of the intervals; none where too few seeds give none."""
    return {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
        "array": [_rounded(scale * ((p.mean if p.high is None else p.high) - p.mean)) for p in points],
        "arrayminus": [_rounded(scale * (p.mean - (p.mean if p.low is None else p.low))) for p in points],
    }  # fmt: skip


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def costs(summary: Summary) -> Plot | None:
    """Bars: minutes by part, memory, bytes and trained elements of each method."""
    from plotly.subplots import make_subplots

    methods = [one for one in reversed(summary.methods) if one.costs]  # the first at the top
    if not methods:
        return None
    known = [entry for entry in COSTS if any(entry[0] in one.costs for one in methods)]
    figure = make_subplots(1, 1 + len(known), shared_yaxes=True, horizontal_spacing=0.035)
    bars = [(1, key, title, 60.0, COLOURS[colour], True) for key, title, colour in PARTS]
    bars += [(number, key, title, unit, GREY, False) for number, (key, title, unit) in enumerate(known, 2)]
    for column, key, title, unit, colour, legend in bars:
        values = [_rounded(one.costs[key].mean / unit) if key in one.costs else None for one in methods]
        if any(value is not None for value in values):
            figure.add_bar(
                orientation="h", x=values, y=[escape(one.name) for one in methods], name=title, showlegend=legend,
                marker_color=colour, hovertemplate="%{y}: %{x:.4g}<extra>%{fullData.name}</extra>", row=1, col=column,
            )  # fmt: skip
    for column, title in enumerate(("time, minutes", *(title for _, title, _ in known)), 1):
        figure.update_xaxes(title={"text": title, "standoff": 8}, rangemode="tozero", nticks=5, row=1, col=column)
    figure.update_yaxes(automargin=True)
    height = 24 * len(methods) + 20
    figure.update_layout(
        barmode="stack", bargap=0.35, height=height + 112, margin={"l": 10, "r": 16, "t": 62, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1.02 + 24 / height, "yanchor": "bottom", "traceorder": "normal"},
    )  # fmt: skip
    return _plot(figure, "What each method took")


def _plot(figure: Figure, title: str) -> Plot:
    from plotly.graph_objects import layout

    figure.update_layout(template=layout.Template(), font={"family": "system-ui, sans-serif", "size": 13})
    spec = json.loads(figure.to_json())
    return Plot(title, {"data": spec["data"], "layout": spec["layout"]}, int(spec["layout"]["height"]))
