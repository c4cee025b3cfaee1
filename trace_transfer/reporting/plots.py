"""The report's plots, as plotly takes them: forgetting curves, sweeps, costs.

Methods are told apart by colour, by dash and by mark, so that no two are alike in grey either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any

from trace_transfer.reporting.blocks import Plot
from trace_transfer.reporting.contents import ReportContents
from trace_transfer.reporting.records import Interval, MethodSummary, SweepPoint, SweepSummary

# Okabe and Ito's colours that can be seen on white and on black, and a grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a")
DASHES = ("solid", "dash", "dot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
GREY = "#8a8a8a"
PANEL_HEIGHT, COLUMNS = 300, 3
GAP_X, GAP_Y = 0.075, 110  # share of the width; px
LABELS = 60  # px of slanted labels
AXIS = 62  # px of tick labels and title below an axis
LEGEND_ROW, LEGEND_COLUMNS = 22, 5  # px; entries beside each other
SHOWN = 8  # lines that one plot shows at first; the others are behind the legend


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method → how its lines and marks look, the same in every plot."""
    found = {}
    for number, method in enumerate(methods):
        colour, turn = COLOURS[number % len(COLOURS)], number // len(COLOURS)
        found[method] = {
            "line": {"color": colour, "width": 2, "dash": DASHES[turn % len(DASHES)]},
            "marker": {"color": colour, "size": 8, "symbol": SYMBOLS[(number + turn) % len(SYMBOLS)]},
        }
    return found


def scaled(found: Interval, share: bool) -> Interval:
    """Of a share in percent."""
    if not share:
        return found
    ends = {name: None if (end := getattr(found, name)) is None else 100 * end for name in ("low", "high")}
    return Interval(mean=100 * found.mean, num=found.num, **ends)


def error_bars(points: Sequence[Interval]) -> dict[str, Any]:
    """From the ends of the intervals; none where a single seed gives none."""
    return {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
        "array": [_rounded((p.high if p.high is not None else p.mean) - p.mean) for p in points],
        "arrayminus": [_rounded(p.mean - (p.low if p.low is not None else p.mean)) for p in points],
    }  # fmt: skip


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")


def panels(titles: Sequence[str], legend: int, labels: int = 0, **axis: Any) -> tuple[dict[str, Any], int]:
    """A layout of panels in rows of three, and its height in px.

    Args:
        legend: entries, which stand below the panels.
        labels: px that slanted labels need below each row.
        axis: of every x axis.
    """
    columns = min(len(titles), COLUMNS)
    rows = -(-len(titles) // COLUMNS)
    below = AXIS + 20 + labels + LEGEND_ROW * (-(-legend // LEGEND_COLUMNS) if legend else 0)
    gap = GAP_Y + labels
    inner = rows * PANEL_HEIGHT + (rows - 1) * gap
    height = inner + 40 + below
    width = (1 - GAP_X * (columns - 1)) / columns
    layout: dict[str, Any] = {
        "template": {}, "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 62, "r": 16, "t": 40, "b": below}, "showlegend": legend > 0, "annotations": [],
        "legend": {"orientation": "h", "x": 0, "y": -(AXIS + labels) / inner, "yanchor": "top", "itemwidth": 40},
    }  # fmt: skip
    for number, title in enumerate(titles):
        row, column = divmod(number, COLUMNS)
        left, top = column * (width + GAP_X), 1 - row * (PANEL_HEIGHT + gap) / inner
        mark = str(number + 1) if number else ""
        bottom = top - PANEL_HEIGHT / inner
        common = {"showgrid": True, "zeroline": False, "ticks": "outside", "ticklen": 3, "automargin": True}
        layout[f"xaxis{mark}"] = {
            **common, "domain": [_rounded(left), _rounded(min(left + width, 1))], "anchor": f"y{mark}", **axis,
        }  # fmt: skip
        layout[f"yaxis{mark}"] = {
            **common, "domain": [_rounded(max(bottom, 0)), _rounded(top)], "anchor": f"x{mark}",
        }  # fmt: skip
        layout["annotations"].append(
            {"text": f"<b>{escape(title)}</b>", "showarrow": False, "x": _rounded(left), "y": _rounded(top),
             "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom", "yshift": 4}
        )  # fmt: skip
    return layout, height


def axis(layout: dict[str, Any], letter: str, number: int) -> dict[str, Any]:
    found: dict[str, Any] = layout[f"{letter}axis{number + 1 if number else ''}"]
    return found


def line(
    method: str, title: str, x: Sequence[Any], points: Sequence[Interval], number: int, look: dict[str, Any],
    *, first: bool, shown: bool,
) -> dict[str, Any]:  # fmt: skip
    """A method in a panel; the first one of it stands in the legend, and shows and hides all."""
    mark = str(number + 1) if number else ""
    return {
        "type": "scatter", "mode": "lines+markers", "name": escape(title), "legendgroup": method, "showlegend": first,
        "x": list(x), "y": [_rounded(point.mean) for point in points], "error_y": error_bars(points),
        "xaxis": f"x{mark}", "yaxis": f"y{mark}", "visible": True if shown else "legendonly",
        "hovertemplate": "%{x}: %{y:.3f}<extra>" + escape(title) + "</extra>", **look,
    }  # fmt: skip


def metric_title(contents: ReportContents, evaluation: str) -> str:
    """`exact_match, % (more is better)`."""
    found = contents.evaluation_of[evaluation]
    unit = ", %" if found.share else ""
    return f"{found.metric}{unit} ({'more' if found.higher_is_better else 'less'} is better)"


def _is_share(contents: ReportContents, evaluation: str | None) -> bool:
    return evaluation in contents.evaluation_of and contents.evaluation_of[evaluation].share


def curves_plot(contents: ReportContents) -> Plot | None:
    """A panel per task: the score 0, 1, 2, … stages after it was learned, a line per method."""
    curves = [curve for curve in contents.summary.curves if curve.points]
    tasks = list(dict.fromkeys(curve.task for curve in curves))
    if not tasks:
        return None
    methods = [one.method for one in contents.summary.methods if any(c.method == one.method for c in curves)]
    looks, shown = styles([one.method for one in contents.summary.methods]), first_shown(methods)
    layout, height = panels(tasks, len(methods), dtick=1)
    traces: list[dict[str, Any]] = []
    for number, task in enumerate(tasks):
        axis(layout, "x", number)["title"] = {"text": "stages after it was learned", "standoff": 8}
        for place, method in enumerate(methods):
            curve = next((one for one in curves if (one.method, one.task) == (method, task)), None)
            if curve is None:
                continue
            if curve.evaluation in contents.evaluation_of:
                title = {"text": escape(metric_title(contents, curve.evaluation)), "standoff": 6}
                axis(layout, "y", number)["title"] = title
            shift = 0.25 * (place / max(len(methods) - 1, 1) - 0.5)  # so that intervals do not hide each other
            x = [_rounded(stage + shift) for stage in range(len(curve.points))]
            points = [scaled(point, _is_share(contents, curve.evaluation)) for point in curve.points]
            first = not any(trace["legendgroup"] == method for trace in traces)
            name = contents.title(method)
            trace = line(method, name, x, points, number, looks[method], first=first, shown=method in shown)
            traces.append({**trace, "hovertemplate": "%{y:.3~f}<extra>" + escape(name) + "</extra>"})
    return Plot("Scores after a task was learned", {"data": traces, "layout": layout}, height)


def first_shown(methods: Sequence[str]) -> tuple[str, ...]:
    """Methods whose lines are drawn at first: all where they are few, else those that the questions are about."""
    if len(methods) <= SHOWN:
        return tuple(methods)
    wanted = ("sequential", "joint", "dmt", "lora", "trace-lf", "transfer-lf", "random", "depth-map")
    return tuple([name for name in wanted if name in methods] or methods)[:SHOWN]


def sweep_plot(contents: ReportContents, sweep: SweepSummary) -> Plot | None:
    """A panel of the average and one per evaluation, a line per method over the values of the axis."""
    methods = list(dict.fromkeys(one.method for point in sweep.points for one in point.methods))
    names = [one.name for one in contents.summary.evaluations if any(_value(p, None, one.name) for p in sweep.points)]
    if not methods or not names:
        return None
    numeric = all(isinstance(p.value, int | float) and not isinstance(p.value, bool) for p in sweep.points)
    long = not numeric and max(len(point.label) for point in sweep.points) > 8
    layout, height = panels(["average", *names], len(methods) + 1, LABELS if long else 0)
    looks = {**styles(methods), **styles([one.method for one in contents.summary.methods])}
    traces: list[dict[str, Any]] = []
    for number, name in enumerate([None, *names]):
        share = contents.summary.measures_are_shares if name is None else contents.evaluation_of[name].share
        own = axis(layout, "x", number)
        own["title"] = {"text": escape(sweep.axis.replace("_", " ")), "standoff": 8}
        if numeric:
            own["tickvals"] = [point.value for point in sweep.points]
        else:
            own.update(type="category", tickangle=-35 if long else 0, tickfont={"size": 11})
        title = f"average score{', %' if share else ''}" if name is None else metric_title(contents, name)
        axis(layout, "y", number)["title"] = {"text": escape(title), "standoff": 6}
        for method in methods:
            found = [(p, scaled(value, share)) for p in sweep.points if (value := _value(p, method, name)) is not None]
            if found:
                x = [p.value if numeric else p.label for p, _ in found]
                first = not any(trace["legendgroup"] == method for trace in traces)
                points = [value for _, value in found]
                title = contents.title(method)
                traces.append(line(method, title, x, points, number, looks[method], first=first, shown=True))
    if baseline := best_baseline(contents):
        title, level = baseline
        ends = [sweep.points[0], sweep.points[-1]]
        share = contents.summary.measures_are_shares
        traces.append(
            {"type": "scatter", "mode": "lines", "x": [p.value if numeric else p.label for p in ends],
             "y": [_rounded(100 * level if share else level)] * 2, "xaxis": "x", "yaxis": "y",
             "name": escape(f"best baseline: {title}"), "legendgroup": "baseline", "hoverinfo": "name+y",
             "line": {"color": GREY, "width": 1.5, "dash": "longdash"}}
        )  # fmt: skip
    return Plot(f"Sweep over {sweep.axis.replace('_', ' ')}", {"data": traces, "layout": layout}, height)


def _value(point: SweepPoint, method: str | None, evaluation: str | None) -> Interval | None:
    """Of a method (None for any) on an evaluation (None for the average)."""
    for one in point.methods:
        if method in (None, one.method):
            found = one.measures.get("average") if evaluation is None else one.final.get(evaluation)
            if found is not None:
                return found
    return None


BASELINES = ("sequential", "joint", "lora", "dmt")


def best_baseline(contents: ReportContents) -> tuple[str, float] | None:
    """The baseline of the highest average in the main comparison, as the paper's figure 5 overlays it."""
    found = [
        (one.measures["average"].mean, contents.title(one.method))
        for one in contents.summary.methods
        if one.method in BASELINES and "average" in one.measures
    ]
    return (max(found)[1], max(found)[0]) if found else None


COSTS: tuple[tuple[str, str, float], ...] = (
    ("peak_bytes", "peak memory of training, GB", 1e9),
    ("bytes", "left on the disk, MB", 1e6),
    ("trained", "elements trained, million", 1e6),
)
PARTS = (("identify_seconds", "identify"), ("map_seconds", "map"), ("train_seconds", "train"))


def cost_plot(contents: ReportContents) -> Plot | None:
    """Bars: minutes by part, memory, bytes and trained elements of each method."""
    methods = [one for one in contents.summary.methods if one.costs]
    if not methods:
        return None
    names = [contents.title(one.method) for one in methods][::-1]
    known = [entry for entry in COSTS if any(entry[0] in one.costs for one in methods)]
    titles = ["time, minutes", *(title for _, title, _ in known)]
    bars = 24 * len(methods) + 20
    layout: dict[str, Any] = {
        "template": {}, "font": {"family": "system-ui, sans-serif", "size": 13}, "barmode": "stack", "bargap": 0.35,
        "margin": {"l": 10, "r": 16, "t": 62, "b": 50}, "annotations": [],
        "legend": {"orientation": "h", "x": 0, "y": 1.02 + 24 / bars, "yanchor": "bottom", "traceorder": "normal"},
    }  # fmt: skip
    gap, traces = 0.035, []
    width = (1 - gap * (len(titles) - 1)) / len(titles)

    def bar(number: int, title: str, colour: str, of: Callable[[MethodSummary], float | None], **more: Any) -> None:
        mark = str(number + 1) if number else ""
        traces.append(
            {"type": "bar", "orientation": "h", "name": title, "y": names, "xaxis": f"x{mark}", "yaxis": f"y{mark}",
             "x": [_rounded(value) if (value := of(one)) is not None else None for one in reversed(methods)],
             "marker": {"color": colour}, "hovertemplate": "%{y}: %{x:.4g}<extra>" + title + "</extra>", **more}
        )  # fmt: skip

    for number, title in enumerate(titles):
        mark, left = str(number + 1) if number else "", number * (width + gap)
        layout[f"xaxis{mark}"] = {
            "domain": [_rounded(left), _rounded(min(left + width, 1))], "anchor": f"y{mark}", "rangemode": "tozero",
            "title": {"text": title, "standoff": 8}, "showgrid": True, "zeroline": True, "nticks": 5,
        }  # fmt: skip
        layout[f"yaxis{mark}"] = {
            "anchor": f"x{mark}", "type": "category", "showticklabels": not number, "automargin": True,
            "categoryorder": "array", "categoryarray": names,
        }  # fmt: skip
    for (key, title), colour in zip(PARTS, (COLOURS[4], COLOURS[3], COLOURS[0]), strict=True):
        if any(key in one.costs for one in methods):
            bar(0, title, colour, partial(_cost, key=key, unit=60))
    for number, (key, title, unit) in enumerate(known, 1):
        bar(number, title, COLOURS[6], partial(_cost, key=key, unit=unit), showlegend=False)
    return Plot("What each method took", {"data": traces, "layout": layout}, bars + 112)


def _cost(method: MethodSummary, key: str, unit: float) -> float | None:
    return method.costs[key].mean / unit if key in method.costs else None
