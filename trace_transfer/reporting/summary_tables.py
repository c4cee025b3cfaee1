"""The tables of a run's summary as data; `tables` writes them as Markdown, for a terminal or as CSV.

Shares are in percent and their differences in percentage points; other metrics keep their unit; the header says which.
A number is followed by its 95 % interval (Student's t over seeds).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from trace_transfer.files import SIZES
from trace_transfer.reporting.numbers import TIMES
from trace_transfer.reporting.records import (
    Comparison,
    EvaluationRecord,
    Interval,
    MethodSummary,
    Summary,
    SweepSummary,
)
from trace_transfer.reporting.verdicts import WORDS, title_of
from trace_transfer.tables import NOTHING, Cell, Number, Table

STATED = ", which the run file stated beforehand"
AXES = {
    "ratio": ("r", "Effect of the ratio r"),
    "alpha": ("α", "Effect of the trade-off α between L2 and Fisher"),
    "warm_start_epochs": ("warm-start epochs", "Effect of the epochs of the warm start"),
    "order": ("task order", "Effect of the order of the tasks"),
    "match": ("layer match", "Effect of how layers are matched"),
    "seed": ("seed", "Effect of the seed"),
}


def tables(summary: Summary) -> tuple[Table, ...]:
    """All tables that the summary has rows for, in the order in which a reader wants them."""
    every = (
        scores(summary),
        measures(summary),
        differences(summary),
        questions(summary),
        times(summary),
        sizes(summary),
        tuning(summary),
        curves(summary),
        *matrices(summary),
        *(sweep(summary, one) for one in summary.sweeps),
        details(summary),
    )
    return tuple(table for table in every if table.rows)


def short_tables(summary: Summary) -> tuple[Table, ...]:
    """Those that fit a terminal."""
    every = (
        scores(summary),
        measures(summary),
        differences(summary),
        questions(summary),
        times(summary),
        sizes(summary),
    )
    return tuple(table for table in every if table.rows)


def scores(summary: Summary) -> Table:
    """Final scores: methods by evaluations and their average, the form of the paper's Tables 1, 3 and 4."""
    taught = [record for record in summary.evaluations if record.task is not None]
    rows: list[tuple[Cell, ...]] = [("Base model", NOTHING, *_base_cells(summary))]
    rows += [(one.name, str(len(one.seeds)), *_final_cells(summary, one)) for one in summary.methods]
    untaught = [record.name for record in summary.evaluations if record.task is None]
    return Table(
        "scores",
        "Scores after the last task",
        ("method", "seeds", *_final_header(summary)),
        tuple(rows),
        "The average is of what measures a task"
        + (f", without {', '.join(untaught)}" if untaught else "")
        + ("." if all(one.higher_is_better for one in taught) else ", with the sign of losses flipped."),
    )


def measures(summary: Summary, *, note: bool = True) -> Table:
    """Continual-learning measures of each method; the note says what they are."""
    of_base = {"average": Interval(mean=base_average(summary), num=1)}
    rows = [("Base model", *(_of(summary, name, of_base) for name in _names(summary)))]
    rows += [(one.name, *(_of(summary, name, one.measures) for name in _names(summary))) for one in summary.methods]
    told = " ".join(f"{one.title}: {one.formula} ({one.source})." for one in summary.measures) if note else ""
    header = _measure_header(summary, "method")
    return Table("measures", "What was learned and what was kept", header, tuple(rows), told)


def differences(summary: Summary) -> Table:
    """Each method minus the reference."""
    base, average = base_average(summary), _method(summary, summary.reference).measures["average"]
    low, high = (None if end is None else base - end for end in (average.high, average.low))
    below = {"average": Interval(mean=base - average.mean, low=low, high=high, num=average.num)}
    every = [(one.name, one.differences) for one in summary.methods if one.differences]
    rows = [
        (title, *(_of(summary, name, found, signed=True) for name in _names(summary)))
        for title, found in ([("Base model", below), *every] if every else [])
    ]
    return Table(
        "differences",
        f"Difference from {_title(summary, summary.reference)}",
        _measure_header(summary, "method", difference=True),
        tuple(rows),
        "Method minus reference, paired by seed; whether one may be chance says its verdict, in the table of all "
        "differences in full.",
    )


def details(summary: Summary) -> Table:
    """Each difference in full: both intervals, n and p."""
    rows: list[tuple[Cell, ...]] = []
    records = {record.name: record for record in summary.evaluations}
    for one in summary.methods:
        for name, found in one.differences.items():
            scale, digits = (100.0, 2) if summary.measures_are_shares else (1.0, 4)
            rows.append((one.name, title_of(summary, name), *_detail(found, scale, digits)))
        for name, found in one.final_differences.items():
            scale, digits = (100.0, 2) if records[name].share else (1.0, 4)
            rows.append((one.name, name, *_detail(found, scale, digits)))
    return Table(
        "differences_detail",
        f"Differences from {_title(summary, summary.reference)} in full",
        ("method", "of", "n", "mean", "t low", "t high", "bootstrap low", "bootstrap high", "p", "p (Holm)", "verdict"),
        tuple(rows),
        "Percentage points of shares, else the metric's unit. Student's t and paired bootstrap (BCa) intervals, 95 %; "
        "p of the paired t test, adjusted over the methods, and over all questions where it answers one. With five "
        "seeds a bootstrap interval holds the truth in about 84 % of cases, Student's in 95 %.",
    )


def _detail(found: Interval, scale: float, digits: int) -> tuple[Cell, ...]:
    each = (found.mean, found.low, found.high, found.bootstrap_low, found.bootstrap_high)
    numbers = (NOTHING if one is None else Number(one * scale, digits=digits, signed=True) for one in each)
    return (str(found.num), *numbers, _p(found.p), _p(found.p_adjusted), _verdict(found))


def questions(summary: Summary) -> Table:
    """What the run was asked, and the differences that answer it."""
    rows = [
        (one.question, f"{_title(summary, one.method)} − {_title(summary, one.other)}",
         title_of(summary, one.measure).lower(),
         _of(summary, one.measure, {one.measure: one.difference}, signed=True), _p(one.difference.p_adjusted),
         _smallest(summary, one), _verdict(one.difference))
        for one in summary.comparisons
    ]  # fmt: skip
    unit = ", points" if summary.measures_are_shares else ""
    return Table(
        "questions",
        "What the methods say about each other",
        ("question", "pair", "measure", f"difference{unit}", "p (Holm)", f"smallest found{unit}", "verdict"),
        tuple(rows),
        f"Paired by seed; p of the paired t test, adjusted over all rows{STATED if summary.stated else ''}. Smallest "
        "found: the difference that so many seeds find with a probability of 80 %, by how much their pairs deviate and "
        "with Holm's strictest threshold.",
    )


def tuning(summary: Summary) -> Table:
    """What each learning rate came to, and which were chosen."""
    rows: list[tuple[Cell, ...]] = []
    for one in summary.tuning.methods if summary.tuning else ():
        for point in one.points:
            chosen = f"chosen{f' ({one.edge} tried)' if one.edge else ''}" if point.rate == one.chosen else NOTHING
            found = {"average": point.average, "learning": point.learned}
            lost = {"forgetting": point.lost} if point.lost else {}
            cells = (_of(summary, name, found | lost) for name in ("average", "learning", "forgetting"))
            rows.append((_title(summary, one.method), f"{point.rate:g}", *cells, chosen))
    units = (", %", ", points", ", points") if summary.measures_are_shares else ("", "", "")
    header = (f"{name}{unit}" for name, unit in zip(("average", "learned", "lost"), units, strict=True))
    return Table(
        "tuning", "Learning rates", ("method", "learning rate", *header, ""), tuple(rows),
        "The average is over the seeds of the tuning, and its highest mean is chosen; learned is learning, lost is "
        "backward transfer with its sign flipped, both over the seeds that trained every rate.",
    )  # fmt: skip


def _smallest(summary: Summary, one: Comparison) -> Cell:
    if one.smallest_found is None:
        return NOTHING
    return _of(summary, "forgetting", {"forgetting": Interval(mean=one.smallest_found, num=one.difference.num)})


def times(summary: Summary) -> Table:
    """What each method took, by what for."""
    columns = [("identify", "identify_seconds"), ("map", "map_seconds"), ("train", "train_seconds"),
               ("these three", "seconds"), ("processor time of these", "cpu_seconds"),
               ("evaluate", "evaluate_seconds")]  # fmt: skip
    where = [NOTHING if one.needs == "none" else one.needs for one in summary.methods]
    header, cells = _cost_columns(summary, [(words, name, TIMES) for words, name in columns])
    rows = zip((one.name for one in summary.methods), where, *cells, strict=True)
    note = "A step that several models share is counted in full for each: what the method would cost alone."
    return Table("times", "Time", ("method", "identified on", *header), tuple(rows), note)


def sizes(summary: Summary) -> Table:
    """Memory, files and trained elements of each method."""
    columns = [
        ("trained parameters", "trained", ((1.0, ""),)),
        ("peak memory, identify", "identify_peak_bytes", SIZES),
        ("peak memory, train", "peak_bytes", SIZES),
        ("files of training", "bytes", SIZES),
    ]
    header, cells = _cost_columns(summary, columns)
    rows = zip((one.name for one in summary.methods), *cells, strict=True)
    note = "Memory is the largest resident memory of a step's process."
    return Table("sizes", "Memory and files", ("method", *header), tuple(rows), note)


def _cost_columns(
    summary: Summary, columns: Sequence[tuple[str, str, Sequence[tuple[float, str]]]]
) -> tuple[list[str], list[list[Cell]]]:
    """Headings and cells; the unit of a column is that of its largest value."""
    header, cells = [], []
    for words, name, units in columns:
        most = max((one.costs[name].mean for one in summary.methods if name in one.costs), default=0.0)
        scale, unit = next((found for found in units if most >= found[0]), units[-1])
        header.append(f"{words}, {unit}" if unit else words)
        cells.append([_cost(one.costs.get(name), scale) for one in summary.methods])
    return header, cells


def curves(summary: Summary) -> Table:
    """Score of each task 0, 1, 2, … stages after it was learned."""
    most = max((len(curve.points) for curve in summary.curves), default=0)
    records = {record.name: record for record in summary.evaluations}
    rows: list[tuple[Cell, ...]] = []
    for curve in summary.curves:
        record = records[curve.evaluation]
        points = [_interval(record, point) for point in curve.points]
        unit = _unit(record)
        task = f"{curve.task}{', ' + unit if unit else ''}"
        rows.append((_title(summary, curve.method), task, *points, *[NOTHING] * (most - len(points))))
    return Table(
        "curves",
        "Scores of each task 0, 1, 2, … stages after it was learned",
        ("method", "task", *map(str, range(most))),
        tuple(rows),
        "Where orders differ, a later stage is of fewer models: those that learned the task early enough.",
    )


def matrices(summary: Summary) -> tuple[Table, ...]:
    """For each method the scores after each stage."""
    records = {record.name: record for record in summary.evaluations}
    return tuple(
        Table(
            f"matrix_{matrix.method}",
            f"{_title(summary, matrix.method)}: scores after each stage",
            ("after", *(_headed(records[name]) for name in matrix.evaluations)),
            tuple(
                (label, *(_score(records[name], value) for name, value in zip(matrix.evaluations, row, strict=True)))
                for label, row in zip(matrix.stages, matrix.means, strict=True)
            ),
            f"Mean of {matrix.num} {'model' if matrix.num == 1 else 'models'} with the order "
            f"{' → '.join(matrix.order)}.",
        )
        for matrix in summary.matrices
    )


def sweep(summary: Summary, sweep: SweepSummary) -> Table:
    """A table in the form of the paper's."""
    axis, title = AXES.get(sweep.axis, (sweep.axis, f"Effect of {sweep.axis}"))
    swept = list(dict.fromkeys(one.method for point in sweep.points for one in point.methods))
    found = {(one.method, point.label): one for point in sweep.points for one in point.methods}
    reference = _method(summary, summary.reference)
    rows: list[tuple[Cell, ...]] = [
        ("Base model", NOTHING, *_base_cells(summary)),
        (f"{reference.name} (main comparison)", NOTHING, *_final_cells(summary, reference)),
    ]
    notes = []
    for method in swept:
        of_method = [
            (point.label, found[method, point.label]) for point in sweep.points if (method, point.label) in found
        ]
        rows += [(one.name, label, *_final_cells(summary, one)) for label, one in of_method]
        if sweep.axis == "order" and len(of_method) > 1:
            notes.append(_spread(summary, [one for _, one in of_method]))
    if sweep.paper:
        notes.append(f"In the form of {sweep.paper} of the paper.")
    return Table(f"sweep_{sweep.axis}", title, ("method", axis, *_final_header(summary)), tuple(rows), " ".join(notes))


def _spread(summary: Summary, points: Sequence[MethodSummary]) -> str:
    """Mean ± standard deviation over orders, and the range, as the paper tells it (section 5.3)."""
    scale, digits = (100.0, 1) if summary.measures_are_shares else (1.0, 3)
    values = [one.measures["average"].mean * scale for one in points]
    return (
        f"{points[0].name}: average over {len(values)} orders {statistics.fmean(values):.{digits}f} ± "
        f"{statistics.stdev(values):.{digits}f} (standard deviation), from {min(values):.{digits}f} to "
        f"{max(values):.{digits}f}."
    )


def _final_header(summary: Summary) -> tuple[str, ...]:
    unit = ", %" if summary.measures_are_shares else ""
    return (*(_headed(record) for record in summary.evaluations), f"average{unit}")


def _final_cells(summary: Summary, method: MethodSummary) -> tuple[Cell, ...]:
    finals = (_interval(record, method.final[record.name]) for record in summary.evaluations)
    return (*finals, _of(summary, "average", method.measures))


def base_average(summary: Summary) -> float:
    """Of what measures a task, with the sign of losses flipped."""
    taught = [record for record in summary.evaluations if record.task is not None]
    return statistics.fmean(summary.base[one.name] * (1 if one.higher_is_better else -1) for one in taught)


def _base_cells(summary: Summary) -> tuple[Cell, ...]:
    own = (_score(record, summary.base[record.name]) for record in summary.evaluations)
    return (*own, _of(summary, "average", {"average": Interval(mean=base_average(summary), num=1)}))


def _method(summary: Summary, name: str) -> MethodSummary:
    return next(one for one in summary.methods if one.method == name)


def _unit(record: EvaluationRecord) -> str:
    return "%" if record.share else "nats per token" if record.metric == "loss" else record.metric


def _headed(record: EvaluationRecord) -> str:
    return f"{record.name}, {_unit(record)}" + ("" if record.higher_is_better else " (less is better)")


def _score(record: EvaluationRecord, value: float) -> Number:
    return Number(value * 100, digits=1) if record.share else Number(value, digits=3)


def _interval(record: EvaluationRecord, found: Interval) -> Number:
    scale, digits = (100.0, 1) if record.share else (1.0, 3)
    return _scaled(found, scale, digits, signed=False)


def _scaled(found: Interval, scale: float, digits: int, *, signed: bool) -> Number:
    low, high = (None if one is None else one * scale for one in (found.low, found.high))
    return Number(found.mean * scale, low, high, digits, signed)


def _names(summary: Summary) -> list[str]:
    return [measure.name for measure in summary.measures]


def _measure_header(summary: Summary, first: str, *, difference: bool = False) -> tuple[str, ...]:
    def headed(name: str, title: str, higher_is_better: bool) -> str:
        unit = ("%" if name == "average" and not difference else "points") if summary.measures_are_shares else ""
        return title.lower() + (f", {unit}" if unit else "") + ("" if higher_is_better else " (less is better)")

    return (first, *(headed(one.name, one.title, one.higher_is_better) for one in summary.measures))


def _of(summary: Summary, name: str, found: Mapping[str, Interval], *, signed: bool = False) -> Cell:
    """A measure's cell; all but the average and forgetting are written with their sign."""
    if name not in found:
        return NOTHING
    scale, digits = (100.0, 1) if summary.measures_are_shares else (1.0, 3)
    return _scaled(found[name], scale, digits, signed=signed or name not in ("average", "forgetting"))


def _cost(found: Interval | None, scale: float) -> Cell:
    """Three significant digits, without an interval where all were the same."""
    if found is None:
        return NOTHING
    if found.low is None or found.high is None or found.low == found.high:
        return Number(found.mean / scale, digits=3, significant=True)
    return Number(found.mean / scale, found.low / scale, found.high / scale, digits=3, significant=True)


def _p(value: float | None) -> str:
    return NOTHING if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _verdict(found: Interval) -> str:
    """In words; files of earlier versions have none."""
    return NOTHING if found.verdict is None else WORDS[found.verdict]


def _title(summary: Summary, method: str) -> str:
    return next((one.name for one in summary.methods if one.method == method), method)
