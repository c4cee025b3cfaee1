"""What is printed of warm starts before they are made (`--dry-run`) and after."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from trace_transfer.examples import TaskData
from trace_transfer.files import size

if TYPE_CHECKING:
    from trace_transfer.delta_store import DeltaStore
    from trace_transfer.stages.identifying import IdentifyPlan

WIDTH = 100
BYTES = {"float32": 4, "bfloat16": 2}
STATE_BYTES = 12  # of a trained element beside its weight: gradient and AdamW's two moments, in float32


def render_plan(plan: IdentifyPlan) -> str:
    """Tasks, steps, memory and disk as text of at most 100 columns."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None)
    starts, settings, score = plan.warm_starts, plan.settings.warm_start, plan.settings.score
    console.print(_tasks_table(plan))
    elements, train = plan.base.identity.num_elements, settings.train
    missing = len(starts.starts) - len(starts.finished)
    lines = [
        f"{plan.base.name}: {plan.base.identity.num_parameters:,} parameters, {elements:,} elements",
        f"warm starts: {missing} to be made, {len(starts.finished)} finished, {len(plan.tuned)} tasks tuned elsewhere",
        f"memory: {size(elements * (4 + STATE_BYTES))} for weights, gradients and optimizer (float32, over all "
        f"processes), activations beside it",
        f"disk: {size(missing * elements * BYTES[settings.delta_dtype])} for deltas ({settings.delta_dtype}), "
        f"{size(elements * 12)} for a checkpoint while training",
        f"training: {train.epochs} {'epoch' if train.epochs == 1 else 'epochs'}, learning rate "
        f"{train.learning_rate:g}, batches of {train.batch_size}, ZeRO {train.zero}, seed {train.seed}",
    ]
    if plan.with_scores:
        lines.append(f"score: {score.method}, the best {score.ratio:.2%} of {score.unit}")
    for line in lines:
        console.print(line, highlight=False, markup=False)
    return _text(buffer)


def _tasks_table(plan: IdentifyPlan) -> Table:
    table = Table(title="tasks")
    for heading in ("task", "examples", "of records", "tokens", "supervised", "longest", "cut", "left out", "template"):
        table.add_column(heading, justify="left" if heading in ("task", "template") else "right")
    for task in plan.tasks:
        table.add_row(task.task, *(f"{value:,}" for value in _counts(task)), task.template)
    return table


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
    """What was trained, as text of at most 100 columns."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None)
    table = Table(title="warm starts")
    for heading in ("task", "examples", "tokens", "cut", "left out", "steps", "first loss", "last loss"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for store in stores:
        record, data = store.record, store.record.data
        table.add_row(
            record.task if record.replicate is None else f"{record.task}/{record.replicate}",
            f"{data.num_examples:,}", f"{data.num_tokens:,}", f"{data.num_cut:,}", f"{data.num_left_out:,}",
            f"{record.num_steps:,}", f"{record.losses[0]:.3f}", f"{record.losses[-1]:.3f}",
        )  # fmt: skip
    console.print(table)
    console.print("\nwritten:", highlight=False)
    for store in stores:
        console.print(f"  {store.directory}", markup=False, highlight=False, soft_wrap=True)
    return _text(buffer)


def _text(buffer: io.StringIO) -> str:
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())
