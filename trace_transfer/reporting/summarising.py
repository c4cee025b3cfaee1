"""`summarise`: a run's scores and costs → the numbers of its tables, with intervals over seeds.

Measures are those of `continual`, of the evaluations that measure tasks, with a loss's sign flipped; an average
over metrics of different kinds is told in a note. Differences are paired by seed. A sweep has the values that its own
cells have: the run's base setting stands in the main comparison, and is not repeated in the sweep.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import numpy as np

from trace_transfer.evaluation.records import ScoreMatrix
from trace_transfer.records import library_versions
from trace_transfer.reporting import records
from trace_transfer.reporting.continual import MEASURES, Found, Front, matched
from trace_transfer.reporting.finished_run import FinishedCell, FinishedRun, grouped
from trace_transfer.reporting.intervals import Values, holm, interval, paired
from trace_transfer.reporting.records import MATCHED, TUNING
from trace_transfer.reporting.summary_tables import AXES
from trace_transfer.reporting.verdicts import compare, judged, told

# What a step's seconds are counted as.
COUNTED_AS = {
    "warm-start": "identify", "evidence": "identify", "identify": "identify", "match": "map", "map": "map",
    "train": "train", "evaluate": "evaluate", "baseline": "evaluate",
}  # fmt: skip


def summarise(run: FinishedRun) -> records.Summary:
    """The numbers of a run's report, and what they say."""
    main = _by_method(cell for cell in run.cells if cell.record.axis is None)
    methods, fronts = _methods(run, main), _fronts(run)
    summary = records.Summary(
        name=run.record.name, reference=run.record.reference, evaluations=_evaluations(run),
        base={score.name: score.value for score in run.evaluations}, measures=tuple(measure for measure, _ in MEASURES),
        methods=methods, curves=tuple(curve for cells in main.values() for curve in _curves(run, cells)),
        matrices=tuple(_matrix(run, cells) for cells in main.values()), sweeps=_sweeps(run),
        tuning=_tuning(run, fronts), libraries=library_versions(),
    )  # fmt: skip
    values = {one.method: {name: dict(zip(one.seeds, each, strict=True)) for name, each in one.single.items()}
              for one in methods}  # fmt: skip

    def ask(name: str, other: str, measure: str) -> Found:
        if measure == MATCHED and name in values and other in values and run.record.tuning:
            if lacking := [run.title(one) for one in (name, other) if one not in fronts]:
                return Found(None, reason=f"{' and '.join(lacking)} cannot forget, or not all its rates are trained")
            rates = run.record.tuning.chosen
            titles = run.title(name), run.title(other)
            return matched(fronts[name], fronts[other], (rates[name], rates[other]), titles)
        ours, theirs = (values.get(one, {}).get(measure) for one in (name, other))
        return Found(paired(ours, theirs) if ours and theirs else None)

    return told(compare(summary, ask, run.record.comparisons), ask)


def final_average(matrix: ScoreMatrix, of_task: Mapping[str, str]) -> float:
    """Mean score of what measures tasks after the last stage; of a loss the sign is flipped."""
    taught = set(of_task.values())
    return fmean(one.value * (1 if one.higher_is_better else -1) for one in matrix.stages[-1].scores
                 if one.name in taught)  # fmt: skip


def by_seed(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Seed → its value, or the mean of its draws."""
    return {seed: fmean(draws) for seed, draws in grouped(values).items()}


def _by_method(cells: Iterable[FinishedCell]) -> dict[str, list[FinishedCell]]:
    return grouped((cell.record.method, cell) for cell in cells)


def _methods(run: FinishedRun, by_method: Mapping[str, list[FinishedCell]]) -> tuple[records.MethodSummary, ...]:
    """All methods at one setting; differences are to the reference at the same setting, if it has cells there."""
    measures = {name: _measures(run, cells) for name, cells in by_method.items()}
    finals = {
        name: {
            score.name: by_seed((cell.record.seed, float(cell.values_SE[-1, column])) for cell in cells)
            for column, score in enumerate(run.evaluations)
        }
        for name, cells in by_method.items()
    }
    better = {one.name: one.higher_is_better for one, _ in MEASURES}
    better |= {one.name: one.higher_is_better for one in run.evaluations}
    differences = _differences(measures, run.record.reference, better)
    final_differences = _differences(finals, run.record.reference, better)
    said = {one.name: one for one in run.record.methods}
    return tuple(
        records.MethodSummary(
            method=name, title=said[name].title, what=said[name].what, needs=said[name].needs,
            seeds=tuple(dict.fromkeys(cell.record.seed for cell in cells)),
            measures={one: interval(list(values.values())) for one, values in measures[name].items()},
            final={one: interval(list(values.values())) for one, values in finals[name].items()},
            differences=differences[name], final_differences=final_differences[name], costs=_costs(cells),
            single={one: tuple(values.values()) for one, values in measures[name].items()},
            single_final={one: tuple(values.values()) for one, values in finals[name].items()},
        )
        for name, cells in by_method.items()
    )  # fmt: skip


def _differences(
    values: Mapping[str, Mapping[str, Values]], reference: str, better: Mapping[str, bool]
) -> dict[str, dict[str, records.Interval]]:
    found: dict[str, dict[str, records.Interval]] = {method: {} for method in values}
    theirs = values.get(reference, {})
    for name in theirs:
        known = {method: one for method, own in values.items()
                 if method != reference and name in own and (one := paired(own[name], theirs[name]))}  # fmt: skip
        tested = {method: one.p for method, one in known.items() if one.p is not None}
        adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
        for method, one in known.items():
            found[method][name] = judged(one, adjusted.get(method), higher_is_better=better[name])
    return found


def _measures(run: FinishedRun, cells: list[FinishedCell]) -> dict[str, Values]:
    names = [score.name for score in run.evaluations]
    columns = [names.index(name) for name in run.taught]
    signs = np.array([1.0 if run.evaluations[column].higher_is_better else -1.0 for column in columns])
    found: dict[str, Values] = {}
    for measure, of in MEASURES:
        values = []
        for cell in cells:
            value = of(cell.values_SE[:, columns] * signs, np.array([cell.first[name] for name in run.taught]))
            values += [] if value is None else [(cell.record.seed, value)]
        if values:
            found[measure.name] = by_seed(values)
    return found


def _costs(cells: list[FinishedCell]) -> dict[str, records.Interval]:
    each: list[tuple[str, float]] = []
    for cell in cells:
        own = dict.fromkeys((*(f"{part}_seconds" for part in COUNTED_AS.values()), "seconds", "cpu_seconds"), 0.0)
        for step in cell.steps:
            part, cost = COUNTED_AS.get(step.kind), step.cost
            if part is None:
                continue
            own[f"{part}_seconds"] += cost.seconds
            if part != "evaluate":
                own["seconds"] += cost.seconds
                own["cpu_seconds"] += cost.cpu_seconds
            if part == "identify":
                own["identify_peak_bytes"] = max(own.get("identify_peak_bytes", 0), cost.peak_bytes)
            if part == "train":
                own |= {"peak_bytes": cost.peak_bytes, "bytes": cost.bytes}
                own |= {} if cost.trained is None else {"trained": cost.trained}
        each += own.items()
    return {name: interval(values) for name, values in grouped(each).items()}


def _curves(run: FinishedRun, cells: list[FinishedCell]) -> Iterable[records.Curve]:
    names = [score.name for score in run.evaluations]
    for task in run.record.tasks:
        evaluation = run.record.of_task[task]
        points: list[tuple[int, tuple[int, float]]] = []
        for cell in cells:
            first = next(number for number, stage in enumerate(cell.matrix.stages) if task in stage.learned)
            values = cell.values_SE[first:, names.index(evaluation)]
            points += [(later, (cell.record.seed, value)) for later, value in enumerate(values.tolist())]
        found = [interval(list(by_seed(values).values())) for _, values in sorted(grouped(points).items())]
        yield records.Curve(method=cells[0].record.method, task=task, evaluation=evaluation, points=tuple(found))


def _matrix(run: FinishedRun, cells: list[FinishedCell]) -> records.MatrixSummary:
    labels = [(cell.record.order, tuple(stage.label for stage in cell.matrix.stages)) for cell in cells]
    (shared, num), *_ = Counter(labels).most_common()  # of equals the first
    same = [cell.values_SE for cell, of_it in zip(cells, labels, strict=True) if of_it == shared]
    return records.MatrixSummary(
        method=cells[0].record.method, order=shared[0], stages=shared[1],
        evaluations=tuple(score.name for score in run.evaluations),
        means=tuple(map(tuple, np.mean(same, axis=0).tolist())), num=num,
    )  # fmt: skip


def _sweeps(run: FinishedRun) -> tuple[records.SweepSummary, ...]:
    swept = grouped((str(cell.record.axis), cell) for cell in run.cells if cell.record.axis not in (None, TUNING))
    found = []
    for axis, of_axis in swept.items():
        values = grouped((json.dumps(cell.record.value), cell) for cell in of_axis)
        points = [
            records.SweepPoint(value=cells[0].record.value, label=_label(axis, cells[0].record.value),
                       methods=_methods(run, _by_method(cells)))
            for cells in values.values()
        ]  # fmt: skip
        found.append(records.SweepSummary(axis=axis, paper=AXES[axis][2] if axis in AXES else "", points=tuple(points)))
    return tuple(found)


def _label(axis: str, value: Any) -> str:
    """A value as the paper writes it: `5 %` of a ratio, `maths → code` of an order."""
    if isinstance(value, (list, tuple)):
        return " → ".join(map(str, value))
    if axis.rpartition(".")[2] == "ratio" and isinstance(value, (int, float)):
        return f"{value * 100:g} %"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _evaluations(run: FinishedRun) -> tuple[records.EvaluationRecord, ...]:
    of = grouped((run.record.of_task[task], task) for task in run.record.tasks)
    return tuple(
        records.EvaluationRecord(
            name=score.name, metric=score.metric, higher_is_better=score.higher_is_better,
            num_examples=score.num_examples, task=", ".join(of[score.name]) if score.name in of else None,
        )
        for score in run.evaluations
    )  # fmt: skip


def _tuned(run: FinishedRun) -> dict[str, dict[float, list[FinishedCell]]]:
    cells = sorted((one for one in run.cells if one.record.axis == TUNING), key=lambda one: one.record.value)
    return {method: grouped((cell.record.value, cell) for cell in own) for method, own in _by_method(cells).items()}


def _fronts(run: FinishedRun) -> dict[str, Front]:
    """Of the methods that can forget, over the seeds that have every rate."""
    fronts, tuning = {}, run.record.tuning
    for method, rates in _tuned(run).items():
        measures = [_measures(run, cells) for cells in rates.values()]
        seeds = [seed for seed in measures[0]["learning"] if all(seed in one["learning"] for one in measures)]
        whole = tuning is not None and tuple(rates) == tuning.rates[method] and seeds
        if whole and all("backward_transfer" in one for one in measures):
            learned_RS, kept_RS = (
                np.array([[one[name][seed] for seed in seeds] for one in measures])
                for name in ("learning", "backward_transfer")
            )
            fronts[method] = Front(tuple(rates), tuple(seeds), learned_RS, -kept_RS)
    return fronts


def _tuning(run: FinishedRun, fronts: Mapping[str, Front]) -> records.TuningSummary | None:
    tuning, found = run.record.tuning, []
    if tuning is None:
        return None
    for method, rates in _tuned(run).items():
        if method not in tuning.chosen:  # not all its rates are trained yet
            continue
        points, front = [], fronts.get(method)
        for number, (rate, cells) in enumerate(rates.items()):
            measures = _measures(run, cells)
            averages = [value for seed, value in measures["average"].items() if seed in tuning.seeds]
            learned = interval(front.learned_RS[number].tolist() if front else list(measures["learning"].values()))
            lost = interval(front.lost_RS[number].tolist()) if front else None
            if averages:
                points.append(records.RatePoint(rate=rate, average=interval(averages), learned=learned, lost=lost))
        (lowest, *_), (*_, highest), chosen = tuning.rates[method], tuning.rates[method], tuning.chosen[method]
        edges = {lowest: "lowest", highest: "highest"} if lowest < highest else {}
        found.append(records.TunedMethod(method=method, chosen=chosen, edge=edges.get(chosen), points=tuple(points)))
    seeds = tuple(dict.fromkeys(seed for front in fronts.values() for seed in front.seeds))
    return records.TuningSummary(seeds=tuning.seeds, front_seeds=seeds, methods=tuple(found))
