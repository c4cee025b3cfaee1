"""What people see of `identify` in the terminal: its plan, warm starts, what scores are made of, results, stability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trace_transfer.core_sets.show import render_core_sets
from trace_transfer.files import size
from trace_transfer.identification.records import (
    DeltaFile,
    FisherFile,
    MethodStability,
    StabilityFile,
    TaskStability,
    WarmStartFile,
)
from trace_transfer.terminal import Page, drawn
from trace_transfer.terminal_pictures import model_line

if TYPE_CHECKING:
    from trace_transfer.data.examples import TaskData
    from trace_transfer.identification.deltas import DeltaStore
    from trace_transfer.identification.identifying import Identified, IdentifyPlan

BYTES = {"float32": 4, "bfloat16": 2}
STATE_BYTES = 12  # of a trained parameter beside its value: gradient and AdamW's two moments, in float32
NUM_SHOWN = 15
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=*#"


def render_identified(found: Identified) -> str:
    """The result: stability where it is known, core sets, warnings, and where the files are."""
    parts = [render_core_sets(found.cores, found.warnings, found.files)]
    if found.stability is not None:
        parts.insert(0, render_stability(found.stability))
    return "\n".join(parts)


# ---- warm starts


def render_plan(plan: IdentifyPlan) -> str:
    """Tasks, steps, memory and disk as text as wide as the terminal."""
    return drawn(lambda page: _draw_plan(plan, page))


def _draw_plan(plan: IdentifyPlan, page: Page) -> None:
    from trace_transfer.data.show import example_lines

    starts, settings, score = plan.warm_starts, plan.settings.warm_start, plan.settings.score
    page.line("tasks", "bold")
    headings = ("task", "examples", "of records", "tokens", "supervised", "longest", "cut", "left out", "template")
    page.table(
        [(one, "left" if one in ("task", "template") else "right") for one in headings],
        ((task.task, *(f"{value:,}" for value in _counts(task)), task.template) for task in plan.tasks),
    )
    elements, train = plan.base.identity.num_elements, settings.train
    missing = len(starts.starts) - len(starts.finished)
    lines = [f"{plan.base.name}: {plan.base.identity.num_parameters:,} tensors, {elements:,} parameters"]
    trained = [
        f"warm starts: {missing} to be made, {len(starts.finished)} finished, {len(plan.tuned)} tasks tuned elsewhere",
        f"memory: {size(elements * (4 + STATE_BYTES))} for weights, gradients and optimizer (float32, over all "
        f"processes), activations beside it",
        f"disk: {size(missing * elements * BYTES[settings.delta_dtype])} for deltas ({settings.delta_dtype}), "
        f"{size(elements * 12)} for a checkpoint while training",
        f"training: {train.epochs} {'epoch' if train.epochs == 1 else 'epochs'}, learning rate "
        f"{train.learning_rate:g}, batches of {train.batch_size}, ZeRO {train.zero}, seed {train.seed}",
    ]
    lines += _at_base(plan) if plan.with_scores and score.at_base else trained
    if plan.with_scores:
        lines.append(f"score: {score.method}, the best {score.ratio:.2%} of {score.unit}")
    for line in (*lines, *example_lines(plan.tasks)):
        page.line(line)


def _at_base(plan: IdentifyPlan) -> list[str]:
    config, count = plan.base.config.get_text_config(), plan.settings.score.gradient_examples
    tokens = sum(
        min(count, len(task.examples)) * sum(len(one.input_ids) for one in task.examples) // len(task.examples)
        for task in plan.tasks
    )
    entering = 4 * tokens * config.hidden_size * (config.num_hidden_layers + 1)
    return [
        f"no warm start: gradients of up to {count} examples a task, a layer's weights at a time",
        f"memory: {size(entering)} for what enters each layer, and the largest layer with two means a task",
    ]


def _counts(task: TaskData) -> tuple[int, ...]:
    return (
        len(task.examples),
        task.num_records,
        sum(len(example.input_ids) for example in task.examples),
        sum(example.num_supervised for example in task.examples),
        max(len(example.input_ids) for example in task.examples),
        task.num_cut,
        task.num_left_out,
    )


def render_warm_starts(stores: Sequence[DeltaStore]) -> str:
    """What was trained, as text as wide as the terminal."""
    return drawn(lambda page: _draw_warm_starts(stores, page))


def _draw_warm_starts(stores: Sequence[DeltaStore], page: Page) -> None:
    rows = []
    for store in stores:
        record, data = store.record, store.record.data
        rows.append((
            record.task if record.replicate is None else f"{record.task}/{record.replicate}",
            f"{data.num_examples:,}", f"{data.num_tokens:,}", f"{data.num_cut:,}", f"{data.num_left_out:,}",
            f"{record.num_steps:,}", f"{record.losses[0]:.3f}", f"{record.losses[-1]:.3f}",
        ))  # fmt: skip
    page.line("warm starts", "bold")
    headings = ("task", "examples", "tokens", "cut", "left out", "steps", "first loss", "last loss")
    page.table([(one, "left" if one == "task" else "right") for one in headings], rows)
    page.written(store.directory for store in stores)


def draw_warm_start(record: WarmStartFile, page: Page) -> None:
    """Data, settings and the course of the loss."""
    name = record.task if record.replicate is None else f"{record.task}, replicate {record.replicate}"
    page.line(f"Warm start of {name}: {model_line(record.model)}", "bold")
    data = record.data
    page.line(
        f"{data.num_examples:,} of {data.num_records:,} records, {data.num_tokens:,} tokens, {data.num_supervised:,} "
        f"supervised; {data.num_cut:,} cut at {data.max_length:,} tokens, {data.num_left_out:,} left out; template "
        f"{data.template}"
    )
    page.line(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record.settings.items()))
    page.line(f"delta: {record.delta_dtype}, {len(record.shards)} file" + ("s" if len(record.shards) > 1 else ""))
    page.line()
    page.line(f"loss of {record.num_steps:,} steps: {record.losses[0]:.4g} → {record.losses[-1]:.4g}")
    page.row([(_bars(record.losses, page), "cyan")])


def _bars(losses: tuple[float, ...], page: Page) -> str:
    """The losses as a row of bars, several steps to a bar where there are more than columns."""
    parts = np.array_split(np.array(losses), min(len(losses), page.width))
    means = np.array([part.mean() for part in parts])
    span = means.max() - means.min()
    levels = (means - means.min()) / span if span > 0 else np.zeros(len(means))
    bars = PLAIN_BARS if page.console.options.ascii_only else BARS
    return "".join(bars[round(level * (len(bars) - 1))] for level in levels)


def draw_fisher(file: FisherFile, page: Page) -> None:
    """The parameters with the largest Fisher information."""
    name = file.task if file.replicate is None else f"{file.task}, replicate {file.replicate}"
    page.line(f"Fisher information on {name}: {model_line(file.model)}", "bold")
    what = "examples" if file.per == "example" else "batches"
    page.line(f"at the {file.at} model, mean over {file.num:,} {what} of the squared gradient norm")
    if file.fallback:
        page.line(f"one example at a time, for want of a batched form: {', '.join(file.fallback)}")
    page.line()
    total = sum(tensor.value for tensor in file.parameters)
    largest = sorted(file.parameters, key=lambda tensor: -tensor.value)[:NUM_SHOWN]
    page.line(f"the largest {len(largest)} of {len(file.parameters)}, sum of all {total:.4g}")
    page.table(
        [("tensor", "left"), ("value", "right"), ("share", "right")],
        [(one.name, f"{one.value:.4g}", f"{one.value / total:.1%}" if total else "-") for one in largest],
    )


def draw_deltas(deltas: DeltaFile, page: Page) -> None:
    """Norms, cosines between deltas, and the parameters that moved most."""
    page.line(f"Deltas from {model_line(deltas.model)}", "bold")
    labels = [tuned.label for tuned in deltas.tuned]
    for index, tuned in enumerate(deltas.tuned):
        total = float(np.sqrt(sum(tensor.norms[index] ** 2 for tensor in deltas.parameters)))
        still = sum(tensor.unchanged[index] for tensor in deltas.parameters) / deltas.model.num_elements
        page.line(f"{tuned.label}: {tuned.id}, norm {total:.4g}, {still:.1%} of the parameters as in the base")
    if len(labels) > 1:
        page.line()
        page.line("Cosine of deltas, median over tensors")
        pairs = np.array([tensor.cosines for tensor in deltas.parameters], dtype=float)
        rows, columns = np.tril_indices(len(labels), -1)
        cosines = np.full((len(labels), len(labels)), np.nan)
        medians = [np.median(known) if len(known := pair[np.isfinite(pair)]) else np.nan for pair in pairs.T]
        cosines[rows, columns] = cosines[columns, rows] = medians
        page.table(
            [("", "left"), *((label, "right") for label in labels)],
            [
                (label, *("" if np.isnan(v) else f"{v:+.2f}" for v in row))
                for label, row in zip(labels, cosines, strict=True)
            ],
        )
    page.line()
    largest = sorted(deltas.parameters, key=lambda p: -max(p.norms))[:NUM_SHOWN]
    page.line(f"Norm of the deltas: the {len(largest)} of {len(deltas.parameters)} tensors that moved most")
    page.table(
        [("tensor", "left"), *((label, "right") for label in labels)],
        [(p.name, *(f"{norm:.3g}" for norm in p.norms)) for p in largest],
    )


# ---- stability


def render_stability(report: StabilityFile) -> str:
    """The report as text as wide as the terminal."""
    return drawn(lambda page: draw_stability(report, page))


def draw_stability(report: StabilityFile, page: Page) -> None:
    """Draw the report within a page's width."""
    model = report.model
    page.line(f"Stability of core sets: {model.id} ({model.family}, {model.num_layers} layers)", "bold")
    page.line("overlap (Jaccard) of the core sets of two warm starts of one task, and of different tasks")
    page.line()
    columns = [("method", "left"), ("ratio", "right"), ("task", "left")]
    columns += [(f"{where}\n{what}", "right") for where in ("within:", "between:") for what in ("tensors", "elements")]
    columns += [("chance", "right"), ("clear", "left")]
    page.table(
        columns,
        (
            (method.method, f"{100 * method.ratio:.3g} % of {method.unit}", task.task, _share(task.within_tensors),
             _share(task.within_elements), _share(task.between_tensors), _share(task.between_elements),
             f"{method.chance:.2f}", {True: "yes", False: "no", None: "-"}[task.clear])
            for method in report.methods
            for task in method.tasks
        ),
    )  # fmt: skip
    if report.reliability:
        page.line()
        shown = ", ".join(f"{task} {value:.2f}" for task, value in report.reliability.items())
        page.line(f"cosine of two warm starts' deltas (median over tensors): {shown}")
    for method in report.methods:
        doubtful = [task for task in method.tasks if task.clear is False]
        if doubtful:
            page.line(f"! {method.method}: {_doubt(method, doubtful)}", "yellow")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _doubt(method: MethodStability, tasks: Sequence[TaskStability]) -> str:
    """What is wrong with sets that are not clearly their task's, in the unit that their ratio counts."""
    of_tensors = method.unit == "tensors"
    shown = ", ".join(
        f"{task.task} {_share(task.within_tensors if of_tensors else task.within_elements)} against up to "
        f"{_share(task.highest_between)}"
        for task in tasks
    )
    return (
        "two warm starts of one task agree no more than those of some other task, so that these sets say little about "
        f"their tasks: {shown}"
    )
