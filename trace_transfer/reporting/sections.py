"""Sections on what was run and what came out: answers, tables, score matrices, curves, sweeps, costs, the record."""

from __future__ import annotations

import json
import os
import shlex
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trace_transfer.printable import printable
from trace_transfer.reporting import numbers, summary_tables
from trace_transfer.reporting.answers import answers, notes
from trace_transfer.reporting.blocks import (
    Beside,
    Block,
    Bullets,
    Cells,
    Code,
    Folded,
    Heading,
    Line,
    Paragraph,
    Plots,
    Section,
    Span,
    Varying,
    code,
    strong,
    varying,
)
from trace_transfer.reporting.contents import ReportContents
from trace_transfer.reporting.intervals import MIN_VALUES
from trace_transfer.reporting.plots import cost_plot, curves_plot, sweep_plot
from trace_transfer.reporting.records import MatrixSummary
from trace_transfer.tables import Number, Table


def cells_of(table: Table, tints: Mapping[tuple[int, int], float] | None = None) -> Cells:
    """A table of the summary's, with its note in its caption."""
    rows = tuple(tuple(cell.text if isinstance(cell, Number) else cell for cell in row) for row in table.rows)
    words = {
        column
        for column in range(len(table.header))
        if not any(isinstance(cell, Number) or cell[:1].isdigit() for cell in (row[column] for row in table.rows))
    }
    left = next((column for column in range(len(table.header)) if column not in words), len(table.header))
    return Cells(
        table.title + ("" if table.title.endswith(".") else ".") + (f" {table.note}" if table.note else ""),
        table.header, rows, max(left, 1), dict(tints or {}), frozenset(words),
    )  # fmt: skip


def answered(contents: ReportContents) -> Section:
    """What was run in a paragraph, then each question with its answer and the numbers that it follows from."""
    summary = contents.summary
    blocks: list[Block] = [Paragraph(line) for line in _told(contents)]
    for answer in answers(summary):
        heading = Heading(answer.question)
        told: tuple[Block, ...] = (Paragraph(answer.short, "answer"), Bullets(answer.lines))
        blocks += [heading, Varying(told)] if answer.varies else [heading, *told]
    blocks.append(Heading("How far these numbers go"))
    if len(contents.seeds) < FEW_SEEDS:
        blocks.append(
            Paragraph(
                f"{numbers.several(len(contents.seeds), 'seed')} only: an interval of so few is wide, or there is "
                f"none. {FEW_SEEDS} or more say much more.", "warning",
            )
        )  # fmt: skip
    blocks.append(Bullets(notes(summary)))
    return Section("answers", "In plain words", tuple(blocks))


FEW_SEEDS = 5
PLAIN = frozenset(string.ascii_letters + string.digits + "/._-")


def _told(contents: ReportContents) -> Iterator[Line]:
    """What was run, for somebody who did not run it."""
    run = contents.run
    methods = numbers.several(len(run.methods), "method")
    yield (
        f"{numbers.several(len(run.tasks), 'task')} ({', '.join(run.tasks)}) were taught to ",
        strong(contents.name_of("target")), _sized(contents, "target"), " one after the other, by ", f"{methods}. ",
        *_carried_from(contents),
        f"Each method was run with {numbers.several(len(contents.seeds), 'seed')}"
        f" ({', '.join(map(str, contents.seeds))})"
        + (f" and {numbers.several(len(contents.orders), 'order')} of the tasks" if len(contents.orders) > 1 else "")
        + ", and scored on every evaluation before training and after each task.",
    )  # fmt: skip
    reference = contents.title(run.reference)
    yield (
        f"Differences in the tables are to {reference}, paired by seed. A method is called better or worse only where "
        "the 95 % interval of the difference leaves out 0, and p is below 0.05 with all that was asked beside it "
        "(Holm); with the first alone it may be chance, and everything else is no difference that these seeds can show."
    )


def _sized(contents: ReportContents, role: str) -> str:
    found = contents.models.get(role)
    if found is None:
        return ""
    return f" ({found.family}, {found.num_layers} layers, {numbers.count(found.num_elements)} elements)"


def _carried_from(contents: ReportContents) -> tuple[str | Span, ...]:
    if not any(method.needs == "source" for method in contents.run.methods):
        return ()
    return (
        "Some of them find the core set of each task on ", strong(contents.name_of("source")),
        _sized(contents, "source"), " and carry it over. ",
    )  # fmt: skip


def ran(contents: ReportContents) -> Section:
    """Models, evaluations, methods and orders as tables."""
    models = tuple(
        (role, model.id, model.family, f"{model.num_layers}", numbers.count(model.num_elements),
         f"{model.num_parameters:,}", model.revision or "–")
        for role, model in contents.models.items()
    )  # fmt: skip
    headings = ("role", "model", "family", "layers", "elements", "tensors", "revision")
    evaluations = tuple(
        (one.name, one.task or "no task", one.metric, "more" if one.higher_is_better else "less",
         f"{one.num_examples:,}")
        for one in contents.summary.evaluations
    )  # fmt: skip
    methods = tuple(
        (method.title, code(method.name), method.what, {"none": "–"}.get(method.needs, method.needs))
        for method in contents.run.methods
    )
    orders: dict[tuple[str, ...], list[int]] = {}
    for cell in contents.run.cells:
        if cell.axis is None and cell.seed not in orders.setdefault(cell.order, []):
            orders[cell.order].append(cell.seed)
    blocks: list[Block] = [
        Cells("Models.", headings, models, left=2, texts=frozenset({2, 6})),
        Cells("Evaluations.", ("evaluation", "measures", "metric", "better is", "examples"), evaluations,
              texts=frozenset({1, 2, 3})),
        Cells("Methods.", ("method", "name", "what is trained", "core sets found on"), methods,
              texts=frozenset({1, 2, 3})),
        Cells("Orders of the tasks, and the seeds that train them.", ("order", "seeds"),
              tuple((" → ".join(order), ", ".join(map(str, seeds))) for order, seeds in orders.items()),
              texts=frozenset({1})),
    ]  # fmt: skip
    return Section("run", "What was run", tuple(blocks))


def tables(contents: ReportContents) -> Section:
    """The main table, the measures and the differences from the reference."""
    summary = contents.summary
    found = (summary_tables.scores(summary), summary_tables.measures(summary), summary_tables.differences(summary))
    # What the measures are stands in a section of its own.
    plain = [Table(t.name, t.title, t.header, t.rows, t.note if t.name != "measures" else "") for t in found]
    num = len(contents.seeds)
    note = "Mean over seeds with its 95 % interval." if num >= MIN_VALUES else f"Of {numbers.several(num, 'seed')}."
    blocks: list[Block] = [Paragraph(note, "note")]
    blocks += [cells_of(table) for table in plain if table.rows]
    details = summary_tables.details(summary)
    if details.rows:
        blocks.append(Folded("Every difference in full", (cells_of(details),)))
    return Section("table", "Main table", tuple(blocks))


def matrices(contents: ReportContents) -> Section | None:
    """A small table per method, coloured column by column from the worst to the best score of the page."""
    summary = contents.summary
    if not summary.matrices:
        return None
    ends: dict[str, tuple[float, float]] = {}
    for matrix in summary.matrices:
        for column, name in enumerate(matrix.evaluations):
            values = [row[column] for row in matrix.means]
            low, high = ends.get(name, (values[0], values[0]))
            ends[name] = (min(low, *values), max(high, *values))
    found = summary_tables.matrices(summary)
    small = tuple(
        cells_of(table, _tints(contents, matrix, ends)) for table, matrix in zip(found, summary.matrices, strict=True)
    )
    told = (
        "A row is the model after a stage, the first the base; a column is an evaluation. Darker is better, from the "
        "worst to the best score that any method has in that column. What a task taught shows on the row of its name; "
        "a column that pales below it was forgotten."
    )
    return Section("matrices", "Score matrices", (Paragraph(told), Beside(small)))


def _tints(
    contents: ReportContents, matrix: MatrixSummary, ends: Mapping[str, tuple[float, float]]
) -> dict[tuple[int, int], float]:
    tints = {}
    for row, values in enumerate(matrix.means):
        for column, (name, value) in enumerate(zip(matrix.evaluations, values, strict=True)):
            low, high = ends[name]
            share = (value - low) / (high - low) if high > low else 0.0
            tints[row, column + 1] = share if contents.evaluation_of[name].higher_is_better else 1 - share
    return tints


def forgetting(contents: ReportContents) -> Section | None:
    """Curves of the score of each task after it was learned."""
    plot = curves_plot(contents)
    if plot is None:
        return None
    table = summary_tables.curves(contents.summary)
    told = (
        "Each point is the score of what measures a task, so many stages after the task was learned, with its 95 % "
        "interval over the models that have that stage. A line that falls (of a loss, one that rises) is forgetting. "
        "Click a name in the legend to show or hide its lines; marks stand side by side so that intervals do not hide "
        "each other."
    )
    return Section(
        "forgetting",
        "Forgetting curves",
        (Plots("plot-curves", told, (plot,)), Folded("The numbers of the curves", (cells_of(table),))),
    )


def sweeps(contents: ReportContents) -> Section | None:
    """A plot and a table for each axis, in the form of the paper's."""
    summary = contents.summary
    blocks: list[Block] = []
    for sweep, table in zip(summary.sweeps, summary_tables.sweeps(summary), strict=True):
        plot = sweep_plot(contents, sweep)
        blocks.append(Heading(table.title))
        if plot is not None:
            told = "Mean and 95 % interval over seeds; dashed: the best baseline of the main comparison, on average."
            blocks.append(Plots(f"plot-sweep-{sweep.axis.replace('.', '-')}", told, (plot,)))
        blocks.append(cells_of(table))
    return Section("sweeps", "Sweeps", tuple(blocks)) if blocks else None


def costs(contents: ReportContents) -> Section | None:
    """Time, memory, bytes and elements; all of it varies with the machine."""
    plot = cost_plot(contents)
    if plot is None:
        return None
    told = "Measured where the run was made. A step that several methods share is counted in full for each of them."
    found = (summary_tables.times(contents.summary), summary_tables.sizes(contents.summary))
    blocks: tuple[Block, ...] = (Plots("plot-costs", told, (plot,)), *map(cells_of, found))
    return Section("costs", "Cost of each method", (Varying(blocks),))


def measures(contents: ReportContents) -> Section:
    """What the columns of the tables are, with formula and source."""
    rows = tuple(
        (one.title, one.formula, one.source, "more" if one.higher_is_better else "less")
        for one in contents.summary.measures
    )
    cells = Cells("", ("measure", "formula", "source", "better is"), rows, texts=frozenset({1, 2, 3}))
    told = "All are of the evaluations that measure a task, in their own unit; of a loss the sign is flipped."
    return Section("measures", "What the measures are", (Paragraph(told), cells))


def record(contents: ReportContents) -> Section:
    """Versions, machine, settings, steps, and how to make it again."""
    run = contents.run
    machine = tuple((name, varying(value)) for name, value in run.machine.items())
    libraries = tuple(sorted(run.libraries.items()))
    steps = tuple(
        (step.kind, code(step.address), code(place), varying(numbers.seconds(numbers.one(step.cost.seconds))),
         varying(numbers.size(numbers.one(step.cost.peak_bytes))), varying(numbers.size(numbers.one(step.cost.bytes))))
        for place, step in contents.steps.items()
    )  # fmt: skip
    return Section(
        "record",
        "How it was made, and how to make it again",
        (
            Paragraph(
                "A second run finds the steps below by their addresses, which are hashes of settings and inputs, and "
                "makes only what is missing; another setting is another address."
            ),
            Varying((Code(again(contents)),)),
            Cells("Versions.", ("library", "version"), libraries, texts=frozenset({1})),
            Cells("Machine.", ("what", "found"), machine, texts=frozenset({1})),
            Folded("Settings", (Cells("", ("setting", "value"), settings(run.settings), texts=frozenset({1})),)),
            Folded(
                f"Steps ({len(steps)})",
                (Cells("", ("kind", "address", "directory", "time", "peak memory", "files"), steps,
                       texts=frozenset({1, 2})),),
            ),
        ),
    )  # fmt: skip


def again(contents: ReportContents) -> str:
    """Commands for a shell, from the directory of the run file; of a run of an earlier version that is not known."""
    run, directory = contents.run, contents.directory
    known = run.settings.get("run_file")
    file = Path(os.path.normpath(directory / str(known or run.settings.get("file", "run.yaml"))))
    lines = ["cd " + _argument(str(file.parent))] if known else ["# in the directory of the run file"]
    out = os.path.relpath(directory, file.parent) if known else str(directory)
    lines.append(f"trace-transfer run {_argument(file.name)} --out {_argument(out)}")
    return "\n".join([*lines, f"trace-transfer report {_argument(out)}"])


def _argument(path: str) -> str:
    """A path as a shell takes it, whatever is in it; never for an option."""
    path = f"./{path}" if path.startswith("-") else path
    return shlex.quote(path) if path == printable(path) and "\n" not in path else _ansi_quoted(path)


def _ansi_quoted(path: str) -> str:
    """bash's and zsh's `$'…'`, in bytes, so that nothing that a terminal would obey is pasted."""
    told = "".join(chr(byte) if byte < 128 and chr(byte) in PLAIN else f"\\x{byte:02x}" for byte in os.fsencode(path))
    return f"$'{told}'"


def settings(found: Mapping[str, Any], above: str = "") -> tuple[tuple[Line, ...], ...]:
    """Every setting by its path; lists as they are written in the file."""
    rows: list[tuple[Line, ...]] = []
    for name, value in found.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            rows += settings(value, f"{path}.")
        else:
            rows.append((path, code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))))
    return tuple(rows)
