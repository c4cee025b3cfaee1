"""What is printed of warm starts before they are made (`--dry-run`) and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trace_transfer.data.examples import TaskData
from trace_transfer.data.show import example_lines
from trace_transfer.files import size
from trace_transfer.terminal import Page, drawn

if TYPE_CHECKING:
    from trace_transfer.identification.delta_store import DeltaStore
    from trace_transfer.identification.identifying import IdentifyPlan

BYTES = {"float32": 4, "bfloat16": 2}
STATE_BYTES = 12  # of a trained element beside its weight: gradient and AdamW's two moments, in float32


def render_plan(plan: IdentifyPlan) -> str:
    """Tasks, steps, memory and disk as text as wide as the terminal."""
    return drawn(lambda page: _draw_plan(plan, page))


def _draw_plan(plan: IdentifyPlan, page: Page) -> None:
    starts, settings, score = plan.warm_starts, plan.settings.warm_start, plan.settings.score
    page.line("tasks", "bold")
    headings = ("task", "examples", "of records", "tokens", "supervised", "longest", "cut", "left out", "template")
    page.table(
        [(one, "left" if one in ("task", "template") else "right") for one in headings],
        ((task.task, *(f"{value:,}" for value in _counts(task)), task.template) for task in plan.tasks),
    )
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
    for line in (*lines, *example_lines(plan.tasks)):
        page.line(line)


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
