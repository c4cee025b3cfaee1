"""What people see of `identify` in the terminal: its plan, warm starts, what scores are made of, results, stability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trace_transfer.core_sets.overlap import render_core_sets
from trace_transfer.files import size
from trace_transfer.identification.records import DeltaFile, MethodStability, StabilityFile, label_of
from trace_transfer.records import model_line
from trace_transfer.terminal import Page, as_text

if TYPE_CHECKING:
    from trace_transfer.identification.deltas import DeltaStore
    from trace_transfer.identification.identifying import Identified, IdentifyPlan

STATE_BYTES = 12  # of a trained parameter beside its value: gradient and AdamW's two moments, in float32
NUM_SHOWN = 15


def render_identified(found: Identified) -> str:
    parts = [render_core_sets(found.cores, found.warnings, found.files)]
    if found.stability is not None:
        parts.insert(0, render_stability(found.stability))
    return "\n".join(parts)


@as_text
def render_plan(page: Page, plan: IdentifyPlan) -> None:
    from trace_transfer.data.rendering import example_lines

    starts, settings, score = plan.warm_starts, plan.settings.warm_start, plan.settings.score
    rows = [
        (task.task, len(task.examples), task.num_records, sum(len(one.input_ids) for one in task.examples),
         sum(one.num_supervised for one in task.examples), max(len(one.input_ids) for one in task.examples),
         task.num_cut, task.num_left_out, task.template)
        for task in plan.tasks
    ]  # fmt: skip
    headings = ("task", "examples", "of records", "tokens", "supervised", "longest", "cut", "left out", "template")
    page.table(headings, rows, "tasks")
    elements, train = plan.base.identity.num_elements, settings.train
    page.line(f"{plan.base.name}: {plan.base.identity.num_parameters:,} tensors, {elements:,} parameters")
    if plan.with_scores and score.at_base:
        page.lines(_at_base(plan))
    else:
        page.lines((
            f"warm starts: {starts.num_missing} to be made, {len(starts.finished)} finished, {len(plan.tuned)} tasks "
            "tuned elsewhere",
            f"memory: {size(elements * (4 + STATE_BYTES))} for weights, gradients and optimizer (float32, over all "
            f"processes), activations beside it",
            f"disk: {size(starts.num_bytes)} for deltas ({settings.delta_dtype}), "
            f"{size(elements * 12)} for a checkpoint while training",
            f"training: {train.epochs} {'epoch' if train.epochs == 1 else 'epochs'}, learning rate "
            f"{train.learning_rate:g}, batches of {train.batch_size}, ZeRO {train.zero}, seed {train.seed}",
        ))  # fmt: skip
    if plan.with_scores:
        page.line(f"score: {score.method}, the best {score.ratio:.2%} of {score.unit}")
    page.lines(example_lines(plan.tasks))


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


@as_text
def render_warm_starts(page: Page, stores: Sequence[DeltaStore]) -> None:
    rows = []
    for store in stores:
        one, data = store.record, store.record.data
        rows.append((
            label_of(one.task, one.replicate), data.num_examples, data.num_tokens,
            data.num_cut, data.num_left_out, one.num_steps, f"{one.losses[0]:.3f}", f"{one.losses[-1]:.3f}",
        ))  # fmt: skip
    headings = ("task", "examples", "tokens", "cut", "left out", "steps", "first loss", "last loss")
    page.table(headings, rows, "warm starts")
    page.written(store.directory for store in stores)


def draw_deltas(page: Page, deltas: DeltaFile) -> None:
    page.line(f"Deltas from {model_line(deltas.model)}", "bold")
    labels = [tuned.label for tuned in deltas.tuned]
    for index, tuned in enumerate(deltas.tuned):
        total = float(np.sqrt(sum(tensor.norms[index] ** 2 for tensor in deltas.parameters)))
        still = sum(tensor.unchanged[index] for tensor in deltas.parameters) / deltas.model.num_elements
        page.line(f"{tuned.label}: {tuned.id}, norm {total:.4g}, {still:.1%} of the parameters as in the base")
    if len(labels) > 1:
        page.lines(("", "Cosine of deltas, median over tensors"))
        pairs = np.array([tensor.cosines for tensor in deltas.parameters], dtype=float)
        cosines = np.full((len(labels), len(labels)), "", dtype=object)
        for (row, column), pair in zip(zip(*np.tril_indices(len(labels), -1), strict=True), pairs.T, strict=True):
            known = pair[np.isfinite(pair)]
            cosines[row, column] = cosines[column, row] = f"{np.median(known):+.2f}" if len(known) else ""
        page.table(("", *labels), [(label, *row) for label, row in zip(labels, cosines.tolist(), strict=True)])
    page.line()
    largest = sorted(deltas.parameters, key=lambda p: -max(p.norms))[:NUM_SHOWN]
    page.line(f"Norm of the deltas: the {len(largest)} of {len(deltas.parameters)} tensors that moved most")
    page.table(("tensor", *labels), [(p.name, *(f"{norm:.3g}" for norm in p.norms)) for p in largest])


def draw_stability(page: Page, report: StabilityFile) -> None:
    page.line(f"Stability of core sets: {model_line(report.model)}", "bold")
    page.line("overlap (Jaccard) of the core sets of two warm starts of one task, and of different tasks")
    page.line()
    shares = ("within_tensors", "within_elements", "between_tensors", "between_elements")
    rows = [
        (method.method, f"{100 * method.ratio:.3g} % of {method.unit}", task.task,
         *(_share(getattr(task, name)) for name in shares), f"{method.chance:.2f}",
         {True: "yes", False: "no", None: "-"}[task.clear])
        for method in report.methods
        for task in method.tasks
    ]  # fmt: skip
    headings = (name.replace("_", ":\n") for name in shares)
    page.table(("method", "ratio", "task", *headings, "chance", "clear"), rows)
    if report.reliability:
        shown = ", ".join(f"{task} {value:.2f}" for task, value in report.reliability.items())
        page.lines(("", f"cosine of two warm starts' deltas (median over tensors): {shown}"))
    page.lines(filter(None, map(_doubt, report.methods)))


render_stability = as_text(draw_stability)


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _doubt(method: MethodStability) -> str:
    """What is wrong with sets that are not clearly their task's, in the unit that their ratio counts."""
    own = "within_tensors" if method.unit == "tensors" else "within_elements"
    doubtful = [
        f"{task.task} {_share(getattr(task, own))} against up to {_share(task.highest_between)}"
        for task in method.tasks
        if task.clear is False
    ]
    told = "two warm starts of one task agree no more than those of some other task, so that these sets say little"
    return f"! {method.method}: {told} about their tasks: {', '.join(doubtful)}" if doubtful else ""
