"""The report's own figures: forgetting curves, sweeps, learned and lost; methods differ in colour, dash, mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trace_transfer import figures
from trace_transfer.figures import Axis, Marks, Panel, Row
from trace_transfer.pages import Plot
from trace_transfer.reporting.finished_run import grouped
from trace_transfer.reporting.numbers import number
from trace_transfer.reporting.records import EvaluationRecord, Interval, Summary, SweepSummary

# Okabe and Ito's colours that can be seen on white and on black, and a grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a")
DASHES = ("solid", "dash", "dot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
GREY = "#8a8a8a"
WIDTH, HEIGHT, COLUMNS, GAP = 980, 300, 3, 70  # px of all panels, of one; panels in a row, px between them
# What a plot with more lines shows at first; the others are behind its legend.
SHOWN = ("sequential", "joint", "dmt", "lora", "trace-lf", "transfer-lf", "random", "depth-map")
BASELINES = ("sequential", "joint", "lora", "dmt")

Point = tuple[float, Interval]  # its place on the axis


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Method → how its lines and marks look, the same in every plot; no two are alike in grey either."""
    found = {}
    for place, method in enumerate(methods):
        colour, turn = COLOURS[place % len(COLOURS)], place // len(COLOURS)
        symbol, dash = SYMBOLS[(place + turn) % len(SYMBOLS)], DASHES[turn % len(DASHES)]
        found[method] = {"colour": colour, "edge": colour, "dash": dash, "symbol": symbol, "sizes": 8}
    return found


def first_shown(methods: Sequence[str]) -> tuple[str, ...]:
    """Methods whose lines are drawn at first: all where they are few, else those that the questions are about."""
    if len(methods) <= len(SHOWN):
        return tuple(methods)
    return tuple([name for name in SHOWN if name in methods] or methods)[: len(SHOWN)]


def curves(summary: Summary) -> list[Plot]:
    """A panel per task: the score 0, 1, 2, … stages after it was learned, a line per method."""
    found, panels = [curve for curve in summary.curves if curve.points], []
    methods = list(dict.fromkeys(curve.method for curve in found))
    most = max((len(curve.points) for curve in found), default=0)
    stages = Axis(title="stages after it was learned", ticks={float(stage): str(stage) for stage in range(most)})
    for task, own in grouped((curve.task, curve) for curve in found).items():
        record, lines = summary.columns[own[0].evaluation], []
        for curve in own:
            # Side by side, so that intervals do not hide each other.
            shift = 0.25 * (methods.index(curve.method) / max(len(methods) - 1, 1) - 0.5)
            points = [(stage + shift, point) for stage, point in enumerate(curve.points)]
            lines.append(_line(summary, curve.method, points, record.share, first_shown(methods)))
        panels.append(_panel(task, stages, _metric(record), lines))
    return _plot(panels, "Scores after a task was learned")


def sweep(summary: Summary, swept: SweepSummary) -> list[Plot]:
    """A panel of the average and one per evaluation, a line per method over the values of the axis."""
    methods = list(dict.fromkeys(one.method for point in swept.points for one in point.methods))
    numeric = all(isinstance(p.value, int | float) and not isinstance(p.value, bool) for p in swept.points)
    x = [float(point.value) if numeric else float(place) for place, point in enumerate(swept.points)]
    labels = [f"{point.value:g}" if numeric else point.label for point in swept.points]
    axis = Axis(title=swept.axis.replace("_", " "), ticks=dict(zip(x, labels, strict=True)))
    shares, baselines = summary.measures_are_shares, [one for one in summary.methods if one.method in BASELINES]
    parts = [("average", f"average score{', %' if shares else ''}", shares)]
    parts += [(one.name, _metric(one), one.share) for one in summary.evaluations]
    panels = []
    for place, (name, title, share) in enumerate(parts):
        lines = []
        for method in methods:
            points = [
                (at, one.final[name] if place else one.measures["average"])
                for at, point in zip(x, swept.points, strict=True)
                for one in point.methods if one.method == method
            ]  # fmt: skip
            lines.append(_line(summary, method, points, share, methods))
        if not place and baselines:  # the best, as the paper's figure 5 overlays it
            best = max(baselines, key=lambda one: one.measures["average"].mean)
            level = number(best.measures["average"].mean, share).value
            ends = np.array([[x[0], level], [x[-1], level]])
            lines.append(Marks(f"best baseline: {best.name}", ends, GREY, dash="longdash"))
        panels.append(_panel(name, axis, title, lines))
    return _plot(panels, f"Sweep over {axis.title}")


def front(summary: Summary) -> list[Plot]:
    """Learned against lost: a mark per method with both intervals, and of tuned methods a line over their rates."""
    shares = summary.measures_are_shares
    both = [one for one in summary.methods if {"learning", "backward_transfer"} <= one.measures.keys()]
    looks, shown = styles([one.method for one in both]), first_shown([one.method for one in both])
    tuned = {one.method: one.points for one in summary.tuning.methods} if summary.tuning else {}
    marks = []
    for one in both:
        kept, look = one.measures["backward_transfer"], looks[one.method] | {"shown": one.method in shown}
        low, high = (None if end is None else -end for end in (kept.high, kept.low))
        lost = Interval(mean=-kept.mean, low=low, high=high, num=kept.num)
        points = [(point.learned, point.lost, f"\nlearning rate {point.rate:g}")
                  for point in tuned.get(one.method, ()) if point.lost]  # fmt: skip
        if points:
            marks.append(_marks(one.name, points, shares, **look | {"sizes": 5}))
        chosen = [(one.measures["learning"], lost, "")]
        marks.append(_marks(one.name, chosen, shares, **look | {"dash": "", "sizes": 11}))
    origin = Marks("base model", np.zeros((1, 2)), GREY, 11, "x-thin", GREY, hollow=True, texts=["base model"])
    unit = ", points" if shares else ""
    axes = Axis(title=f"learned{unit} (more is better)"), Axis(title=f"lost{unit} (less is better)")
    return _plot([Panel(*axes, WIDTH, HEIGHT + 40, marks=[*marks, origin])], "Learned and lost") if both else []


def _metric(found: EvaluationRecord) -> str:
    unit = ", %" if found.share else ""
    return f"{found.metric}{unit} ({'more' if found.higher_is_better else 'less'} is better)"


def _line(summary: Summary, method: str, points: Sequence[Point], share: bool, shown: Sequence[str]) -> Marks:
    names = {one.method: one.name for one in summary.methods}
    look, name = styles([*dict.fromkeys([*names, method])])[method], names.get(method, method)
    found = [(at, number(point, share)) for at, point in points]
    places = np.array([(at, point.value) for at, point in found])
    texts = [f"{name}\n{point.text}" for _, point in found]
    return Marks(name, places, texts=texts, bars={"y": _bars([point for _, point in points], share)},
                 shown=method in shown, **look)  # fmt: skip


def _marks(name: str, points: Sequence[tuple[Interval, Interval, str]], share: bool, **look: Any) -> Marks:
    learned, lost, more = zip(*points, strict=True)
    told = [[number(one, share) for one in side] for side in (learned, lost)]
    texts = [f"{name}{end}\nlearned {one.text}\nlost {other.text}" for one, other, end in zip(*told, more, strict=True)]
    places = np.array([[one.value for one in side] for side in told]).T
    return Marks(name, places, texts=texts, bars={"x": _bars(learned, share), "y": _bars(lost, share)}, **look)


def _bars(points: Sequence[Interval], share: bool) -> np.ndarray:
    """How far the ends of the intervals are below and above; 0 where too few seeds give none."""
    ends = [(p.mean - (p.mean if p.low is None else p.low), (p.mean if p.high is None else p.high) - p.mean)
            for p in points]  # fmt: skip
    return np.array(ends, dtype=np.float64) * (100 if share else 1)


def _panel(title: str, x: Axis, y_title: str, marks: Sequence[Marks]) -> Panel:
    return Panel(x, Axis(title=y_title), (WIDTH - GAP * (COLUMNS - 1)) / COLUMNS, HEIGHT, marks=marks, title=title)


def _plot(panels: Sequence[Panel], title: str) -> list[Plot]:
    """Panels in rows of three, below a legend whose entries show and hide a method in all of them; none of no panel."""
    placed = [replace(panel, gap=GAP if number % COLUMNS else 0) for number, panel in enumerate(panels)]
    return [figures.plot(Row(title, placed, columns=COLUMNS))] if panels else []
