"""The tables of a run's summary as data; `tables` writes them as Markdown, for a terminal or as CSV.

Shares are in percent and their differences in percentage points; other metrics keep their unit; the header says which.
A number is followed by its 95 % interval (Student's t over seeds).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from trace_transfer.errors import ArtefactError
from trace_transfer.files import SIZES
from trace_transfer.reporting.numbers import TIMES, Units, measured, number, several, single, unit_of
from trace_transfer.reporting.records import EvaluationRecord, Interval, MethodSummary, Summary, SweepSummary
from trace_transfer.reporting.verdicts import WORDS, title_of
from trace_transfer.tables import NOTHING, Cell, Table

STATED = ", which the run file stated beforehand"
# Axis of a sweep → its heading, the title of its table, and where the paper has the table or figure of its form.
AXES = {
    "ratio": ("r", "Effect of the ratio r", "Table A.1 and Figure 5"),
    "alpha": ("α", "Effect of the trade-off α between L2 and Fisher", "Table A.2 and Figure 7"),
    "warm_start_epochs": ("warm-start epochs", "Effect of the epochs of the warm start", "Table 5 and Figure 6"),
    "order": ("task order", "Effect of the order of the tasks", "Table 2"),
    "match": ("layer match", "Effect of how layers are matched", ""),
}
TIME_COLUMNS: dict[str, tuple[str, Units]] = {
    "identify": ("identify_seconds", TIMES),
    "map": ("map_seconds", TIMES),
    "train": ("train_seconds", TIMES),
    "these three": ("seconds", TIMES),
    "processor time of these": ("cpu_seconds", TIMES),
    "evaluate": ("evaluate_seconds", TIMES),
}
SIZE_COLUMNS: dict[str, tuple[str, Units]] = {
    "trained parameters": ("trained", ((1.0, ""),)),
    "peak memory, identify": ("identify_peak_bytes", SIZES),
    "peak memory, train": ("peak_bytes", SIZES),
    "files of training": ("bytes", SIZES),
}
Rows = list[tuple[Cell, ...]]


def short_tables(summary: Summary) -> tuple[Table, ...]:
    """Those that the summary has rows for and that fit a terminal."""
    every = (make(summary) for make in (scores, measures, differences, questions, times, sizes))
    return tuple(table for table in every if table.rows)


def tables(summary: Summary) -> tuple[Table, ...]:
    """All tables that the summary has rows for, in the order in which a reader wants them."""
    sweeps = (sweep(summary, one) for one in summary.sweeps)
    more = (tuning(summary), curves(summary), *matrices(summary), *sweeps, details(summary))
    return (*short_tables(summary), *(table for table in more if table.rows))


def scores(summary: Summary) -> Table:
    """Final scores: methods by evaluations and their average, the form of the paper's Tables 1, 3 and 4."""
    rows: Rows = [("Base model", NOTHING, *_base_cells(summary))]
    rows += [(one.name, str(len(one.seeds)), *_final_cells(summary, one)) for one in summary.methods]
    untaught = ", ".join(record.name for record in summary.evaluations if record.task is None)
    losses = any(not record.higher_is_better for record in summary.taught)
    note = "The average is of what measures a task" + (f", without {untaught}" if untaught else "")
    note += ", with the sign of losses flipped." if losses else "."
    header = ("method", "seeds", *_final_header(summary))
    return Table("scores", "Scores after the last task", header, tuple(rows), note)


def measures(summary: Summary, *, note: bool = True) -> Table:
    """Continual-learning measures of each method; the note says what they are."""
    rows = [("Base model", *_measured(summary, {"average": single(base_average(summary))}))]
    rows += [(one.name, *_measured(summary, one.measures)) for one in summary.methods]
    told = " ".join(f"{one.title}: {one.formula} ({one.source})." for one in summary.measures) if note else ""
    return Table("measures", "What was learned and what was kept", _measure_header(summary), tuple(rows), told)


def differences(summary: Summary) -> Table:
    rows: Rows = [
        (one.name, *_measured(summary, one.differences, signed=True)) for one in summary.methods if one.differences
    ]
    base, average = base_average(summary), _method(summary, summary.reference).measures["average"]
    low, high = (None if end is None else base - end for end in (average.high, average.low))
    below = {"average": Interval(mean=base - average.mean, low=low, high=high, num=average.num)}
    rows = [("Base model", *_measured(summary, below, signed=True)), *rows] if rows else []
    return Table(
        "differences", f"Difference from {summary.title(summary.reference)}",
        _measure_header(summary, difference=True), tuple(rows),
        "Method minus reference, paired by seed; whether one may be chance says its verdict, in the table of all "
        "differences in full.",
    )  # fmt: skip


def details(summary: Summary) -> Table:
    records = summary.columns
    rows: Rows = []
    for one in summary.methods:
        every = [(title_of(summary, name), summary.measures_are_shares, found)
                 for name, found in one.differences.items()]  # fmt: skip
        every += [(name, records[name].share, found) for name, found in one.final_differences.items()]
        for name, share, found in every:
            told = (_p(found.p), _p(found.p_adjusted), WORDS.get(found.verdict, NOTHING))
            rows.append((one.name, name, str(found.num), number(found, share, signed=True), *told))
    return Table(
        "differences_detail", f"Differences from {summary.title(summary.reference)} in full",
        ("method", "of", "n", "difference", "p", "p (Holm)", "verdict"), tuple(rows),
        "Percentage points of shares, else the metric's unit; p of the paired t test, adjusted over the methods, and "
        "over all questions where it answers one.",
    )  # fmt: skip


def questions(summary: Summary) -> Table:
    shares = summary.measures_are_shares
    rows = [
        (one.question, f"{summary.title(one.method)} − {summary.title(one.other)}",
         title_of(summary, one.measure).lower(), number(one.difference, shares, signed=True),
         _p(one.difference.p_adjusted), NOTHING if one.smallest_found is None else number(one.smallest_found, shares),
         WORDS.get(one.difference.verdict, NOTHING))
        for one in summary.comparisons
    ]  # fmt: skip
    unit = ", points" if shares else ""
    return Table(
        "questions", "What the methods say about each other",
        ("question", "pair", "measure", f"difference{unit}", "p (Holm)", f"smallest found{unit}", "verdict"),
        tuple(rows),
        f"Paired by seed; p of the paired t test, adjusted over all rows{STATED if summary.stated else ''}. Smallest "
        "found: the difference that so many seeds find with a probability of 80 %, by how much their pairs deviate and "
        "with Holm's strictest threshold.",
    )  # fmt: skip


def tuning(summary: Summary) -> Table:
    rows: Rows = []
    shares = summary.measures_are_shares
    for one in summary.tuning.methods if summary.tuning else ():
        for point in one.points:
            chosen = f"chosen{f' ({one.edge} tried)' if one.edge else ''}" if point.rate == one.chosen else NOTHING
            lost = number(point.lost, shares) if point.lost else NOTHING
            cells = (number(point.average, shares), number(point.learned, shares, signed=True), lost)
            rows.append((summary.title(one.method), f"{point.rate:g}", *cells, chosen))
    units = (", %", ", points", ", points") if shares else ("", "", "")
    header = (f"{name}{unit}" for name, unit in zip(("average", "learned", "lost"), units, strict=True))
    return Table(
        "tuning", "Learning rates", ("method", "learning rate", *header, ""), tuple(rows),
        "The average is over the seeds of the tuning, and its highest mean is chosen; learned is learning, lost is "
        "backward transfer with its sign flipped, both over the seeds that trained every rate.",
    )  # fmt: skip


def times(summary: Summary) -> Table:
    where = [NOTHING if one.needs == "none" else one.needs for one in summary.methods]
    columns = _cost_columns(summary, TIME_COLUMNS)
    rows = tuple(zip((one.name for one in summary.methods), where, *columns.values(), strict=True))
    note = "A step that several models share is counted in full for each: what the method would cost alone."
    return Table("times", "Time", ("method", "identified on", *columns), rows, note)


def sizes(summary: Summary) -> Table:
    columns = _cost_columns(summary, SIZE_COLUMNS)
    rows = tuple(zip((one.name for one in summary.methods), *columns.values(), strict=True))
    note = "Memory is the largest resident memory of a step's process."
    return Table("sizes", "Memory and files", ("method", *columns), rows, note)


def _cost_columns(summary: Summary, columns: Mapping[str, tuple[str, Units]]) -> dict[str, list[Cell]]:
    """Heading → cells; the unit of a column is that of its largest value."""
    cells: dict[str, list[Cell]] = {}
    for words, (name, units) in columns.items():
        found = [one.costs.get(name) for one in summary.methods]
        scale, unit = unit_of(max((one.mean for one in found if one), default=0.0), units)
        cells[f"{words}, {unit}" if unit else words] = [measured(one, scale) if one else NOTHING for one in found]
    return cells


def curves(summary: Summary) -> Table:
    most = max((len(curve.points) for curve in summary.curves), default=0)
    records = summary.columns
    rows: Rows = []
    for curve in summary.curves:
        record = records[curve.evaluation]
        points = [number(point, record.share) for point in curve.points]
        task = f"{curve.task}, {_unit(record)}"
        rows.append((summary.title(curve.method), task, *points, *[NOTHING] * (most - len(points))))
    return Table(
        "curves", "Scores of each task 0, 1, 2, … stages after it was learned",
        ("method", "task", *map(str, range(most))), tuple(rows),
        "Where orders differ, a later stage is of fewer models: those that learned the task early enough.",
    )  # fmt: skip


def matrices(summary: Summary) -> tuple[Table, ...]:
    records = summary.columns
    found = []
    for matrix in summary.matrices:
        of = [records[name] for name in matrix.evaluations]
        rows: Rows = [
            (label, *(number(value, record.share) for record, value in zip(of, row, strict=True)))
            for label, row in zip(matrix.stages, matrix.means, strict=True)
        ]
        title = f"{summary.title(matrix.method)}: scores after each stage"
        note = f"Mean of {several(matrix.num, 'model')} with the order {' → '.join(matrix.order)}."
        found.append(Table(f"matrix_{matrix.method}", title, ("after", *map(_headed, of)), tuple(rows), note))
    return tuple(found)


def sweep(summary: Summary, sweep: SweepSummary) -> Table:
    axis, title, _ = AXES.get(sweep.axis, (sweep.axis, f"Effect of {sweep.axis}", ""))
    reference = _method(summary, summary.reference)
    rows: Rows = [
        ("Base model", NOTHING, *_base_cells(summary)),
        (f"{reference.name} (main comparison)", NOTHING, *_final_cells(summary, reference)),
    ]
    notes = []
    for method in dict.fromkeys(one.method for point in sweep.points for one in point.methods):
        found = [(point.label, one) for point in sweep.points for one in point.methods if one.method == method]
        rows += [(one.name, label, *_final_cells(summary, one)) for label, one in found]
        if sweep.axis == "order" and len(found) > 1:
            notes.append(_spread(summary, [one for _, one in found]))
    if sweep.paper:
        notes.append(f"In the form of {sweep.paper} of the paper.")
    return Table(f"sweep_{sweep.axis}", title, ("method", axis, *_final_header(summary)), tuple(rows), " ".join(notes))


def _spread(summary: Summary, points: Sequence[MethodSummary]) -> str:
    """Mean ± standard deviation over orders, and the range, as the paper tells it (section 5.3)."""
    values = [one.measures["average"].mean for one in points]
    found = (statistics.fmean(values), statistics.stdev(values), min(values), max(values))
    mean, deviation, least, most = (number(one, summary.measures_are_shares).text for one in found)
    return (
        f"{points[0].name}: average over {len(values)} orders {mean} ± {deviation} (standard deviation), from {least} "
        f"to {most}."
    )


def base_average(summary: Summary) -> float:
    """Of what measures a task, with the sign of losses flipped."""
    return statistics.fmean(summary.base[one.name] * (1 if one.higher_is_better else -1) for one in summary.taught)


def _final_header(summary: Summary) -> tuple[str, ...]:
    return (*map(_headed, summary.evaluations), "average, %" if summary.measures_are_shares else "average")


def _final_cells(summary: Summary, method: MethodSummary) -> tuple[Cell, ...]:
    finals = (number(method.final[record.name], record.share) for record in summary.evaluations)
    average = method.measures.get("average")
    return (*finals, number(average, summary.measures_are_shares) if average else NOTHING)


def _base_cells(summary: Summary) -> tuple[Cell, ...]:
    own = (number(summary.base[record.name], record.share) for record in summary.evaluations)
    return (*own, number(base_average(summary), summary.measures_are_shares))


def _method(summary: Summary, name: str) -> MethodSummary:
    found = next((one for one in summary.methods if one.method == name), None)
    if found is None:
        raise ArtefactError(f"damaged: it names the method {name}, and has nothing of it")
    return found


def _unit(record: EvaluationRecord) -> str:
    return "%" if record.share else "nats per token" if record.metric == "loss" else record.metric


def _headed(record: EvaluationRecord) -> str:
    return f"{record.name}, {_unit(record)}" + ("" if record.higher_is_better else " (less is better)")


def _measure_header(summary: Summary, *, difference: bool = False) -> tuple[str, ...]:
    header = ["method"]
    for one in summary.measures:
        unit = ", %" if one.name == "average" and not difference else ", points"
        less = "" if one.higher_is_better else " (less is better)"
        header.append(f"{one.title.lower()}{unit if summary.measures_are_shares else ''}{less}")
    return tuple(header)


def _measured(summary: Summary, found: Mapping[str, Interval], *, signed: bool = False) -> tuple[Cell, ...]:
    return tuple(
        number(found[one.name], summary.measures_are_shares,
               signed=signed or one.name not in ("average", "forgetting")) if one.name in found else NOTHING
        for one in summary.measures
    )  # fmt: skip


def _p(value: float | None) -> str:
    return NOTHING if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"
