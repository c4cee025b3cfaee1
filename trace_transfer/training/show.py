"""What `train` prints: before it trains (`--dry-run`), and at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trace_transfer.data.rendering import example_lines
from trace_transfer.errors import MAX_LISTED
from trace_transfer.files import size
from trace_transfer.records import model_line
from trace_transfer.terminal import Page, as_text
from trace_transfer.training.settings import StreamFile

if TYPE_CHECKING:
    from trace_transfer.training.streaming import Streamed, StreamPlan


@as_text
def render_stream_plan(page: Page, plan: StreamPlan, disk: int, more: Sequence[str] = ()) -> None:
    train, base = plan.settings.train, plan.base.identity
    page.line(
        f"{plan.base.name}: {base.num_parameters:,} tensors, {base.num_elements:,} parameters; method "
        f"{plan.settings.method}"
    )
    page.line(
        f"{train.epochs} {'epoch' if train.epochs == 1 else 'epochs'}, learning rate {train.learning_rate:g}, batches "
        f"of {train.batch_size} = {train.micro_batch_size} x {plan.num_ranks} "
        f"{'process' if plan.num_ranks == 1 else 'processes'} x "
        f"{math.ceil(train.batch_size / (train.micro_batch_size * plan.num_ranks))} accumulated; {plan.precision}, "
        f"ZeRO {train.zero}, {train.optimizer}"
        + (f", {train.offload} offloaded" if train.offload != "none" else "")
        + (", gradient checkpointing" if train.gradient_checkpointing else "")
    )
    for number, stage in enumerate(plan.stages):
        if examples := sum(len(data.examples) for data in plan.held_out(number).tasks):
            page.line(f"{stage.label}: evaluated on {examples:,} held-out examples")
    if plan.finished:
        page.line(f"finished before: {', '.join(stage.label for stage in plan.finished)}")
    estimates = [plan.estimate(number) for number in range(len(plan.stages))]
    offloaded = any(one.host for one in estimates)
    trained, memory = [], []
    for stage, one in zip(plan.stages, estimates, strict=True):
        # Of all epochs, as in the record of what was trained.
        tokens = train.epochs * sum(len(example.input_ids) for example in stage.data.examples)
        trained.append((stage.label, len(stage.data.examples), tokens, one.num_steps, one.num_parameters,
                        one.num_elements, f"{one.share:.2%}"))  # fmt: skip
        sizes = (one.parameters, one.gradients, one.optimizer, one.activations, one.buffers, *[one.host] * offloaded)
        memory.append((stage.label, *map(size, (*sizes, one.checkpoint, one.patch))))
    page.line()
    page.table(("stage", "examples", "tokens", "steps", "tensors", "parameters", "share"), trained, "What trains")
    page.line()
    headings = ("stage", "parameters", "gradients", "optimizer", "activations", "buffers", *["on CPU"] * offloaded)
    page.table((*headings, "checkpoint", "patch"), memory, "Memory of each process, and files (estimates)")
    page.line()
    notes = [*more, *(f"{stage.label}: {note}" for stage in plan.stages for note in stage.notes)]
    notes.append("Libraries, workspaces and fragmentation come on top; on a GPU keep a tenth free.")
    page.lines(f"- {note}" for note in notes)
    page.line(f"disk: about {size(disk)} for all of it, the tuned model included")
    page.lines(example_lines(stage.data for stage in plan.stages))


def draw_stream(page: Page, record: StreamFile) -> None:
    total = record.model.num_elements
    rows = [
        (stage.label, stage.num_examples, stage.num_steps, stage.tokens,
         f"{stage.losses[0]:.3f} → {stage.losses[-1]:.3f}", stage.num_parameters, stage.num_elements,
         f"{stage.num_elements / total:.2%}")
        for stage in record.stages
    ]  # fmt: skip
    title = f"Stages ({record.settings.get('method', 'of unknown method')}) of {model_line(record.model)}"
    page.table(("stage", "examples", "steps", "tokens", "loss", "tensors", "parameters", "share"), rows, title)
    for stage in record.stages:
        if stage.evaluations:
            lowest = min(stage.evaluations, key=lambda one: one.loss)
            page.line(
                f"{stage.label}: held-out loss {stage.evaluations[0].loss:.3f} → {stage.evaluations[-1].loss:.3f}, "
                f"lowest {lowest.loss:.3f} after step {lowest.step:,}" + ("; kept" if stage.kept_step else "")
            )
    if not record.complete:
        page.line(f"{len(record.stages)} of {record.num_stages} stages are finished; the same command goes on")


@as_text
def render_streamed(page: Page, done: Streamed) -> None:
    draw_stream(page, done.record)
    frozen = sum(tensor.frozen for tensor in done.verification.parameters)
    total = done.record.model.num_elements
    page.lines(("", f"{frozen:,} of {total:,} parameters were frozen, and each is bit-identical to the base's"))
    if unmoved := done.verification.unmoved:
        page.line(f"! {len(unmoved)} trained tensors did not move:")
        page.lines(f"  {tensor.name}" for tensor in unmoved[:MAX_LISTED])
    page.written(done.files)
