"""What `train` prints: before it trains (`--dry-run`), and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trace_transfer.data.show import example_lines
from trace_transfer.errors import MAX_LISTED
from trace_transfer.files import size
from trace_transfer.terminal import Page, drawn
from trace_transfer.terminal_pictures import model_line
from trace_transfer.training.records import StreamFile

if TYPE_CHECKING:
    from trace_transfer.engine.estimates import Estimate
    from trace_transfer.training.stream_plan import StreamPlan
    from trace_transfer.training.streaming import Streamed


def render_stream_plan(plan: StreamPlan, disk: int, more: Sequence[str] = ()) -> str:
    """What will train, on what, with how much memory, time and disk: text as wide as the terminal.

    Args:
        disk: bytes wanted in all (`needed_space`).
        more: notes beside those of the plan.
    """
    return drawn(lambda page: _draw_plan(plan, disk, more, page))


def _draw_plan(plan: StreamPlan, disk: int, more: Sequence[str], page: Page) -> None:
    train, base = plan.settings.train, plan.base.identity
    page.line(
        f"{plan.base.name}: {base.num_parameters:,} tensors, {base.num_elements:,} elements; method "
        f"{plan.settings.method}",
    )
    page.line(
        f"{train.epochs} {'epoch' if train.epochs == 1 else 'epochs'}, learning rate {train.learning_rate:g}, batches "
        f"of {train.batch_size} = {train.micro_batch_size} x {plan.num_ranks} "
        f"{'process' if plan.num_ranks == 1 else 'processes'} x "
        f"{train.batch_size // (train.micro_batch_size * plan.num_ranks)} accumulated; {plan.precision}, "
        f"ZeRO {train.zero}, {train.optimizer}"
        + (f", {train.offload} offloaded" if train.offload != "none" else "")
        + (", gradient checkpointing" if train.gradient_checkpointing else ""),
    )
    for number, stage in enumerate(plan.stages):
        if held := plan.held_out(number):
            examples = sum(len(data.examples) for data in held.tasks)
            page.line(f"{stage.label}: evaluated on {examples:,} held-out examples")
    if plan.finished:
        page.line(f"finished before: {', '.join(stage.label for stage in plan.finished)}")
    estimates = [plan.estimate(number) for number in range(len(plan.stages))]
    page.line()
    _draw_training(plan, estimates, page)
    page.line()
    _draw_memory(plan, estimates, page)
    page.line()
    notes = [*more, *(f"{stage.label}: {note}" for stage in plan.stages for note in stage.notes)]
    for note in dict.fromkeys((*notes, *(note for estimate in estimates for note in estimate.notes))):
        page.line(f"- {note}")
    page.line(f"disk: about {size(disk)} for all of it, the tuned model included")
    for text in example_lines(stage.data for stage in plan.stages):
        page.line(text)


def _draw_training(plan: StreamPlan, estimates: list[Estimate], page: Page) -> None:
    """Tokens and steps are those of all epochs, as in the record of what was trained."""
    epochs = plan.settings.train.epochs
    page.line("What trains", "bold")
    page.table(
        _columns("stage", "examples", "tokens", "steps", "tensors", "elements", "share"),
        (
            (stage.label, f"{len(stage.data.examples):,}",
             f"{epochs * sum(len(one.input_ids) for one in stage.data.examples):,}", f"{estimate.num_steps:,}",
             f"{estimate.num_parameters:,}", f"{estimate.num_elements:,}", f"{estimate.share:.2%}")
            for stage, estimate in zip(plan.stages, estimates, strict=True)
        ),
    )  # fmt: skip


def _draw_memory(plan: StreamPlan, estimates: list[Estimate], page: Page) -> None:
    offloaded = any(one.host for one in estimates)
    page.line("Memory of each process, and files (estimates)", "bold")
    headings = ["stage", "parameters", "gradients", "optimizer", "activations", "buffers"]
    rows = []
    for stage, one in zip(plan.stages, estimates, strict=True):
        memory = [one.parameters, one.gradients, one.optimizer, one.activations, one.buffers]
        sizes = [*memory, *([one.host] if offloaded else []), one.checkpoint, one.patch]
        rows.append((stage.label, *map(size, sizes)))
    page.table(_columns(*headings, *(["on CPU"] if offloaded else []), "checkpoint", "patch"), rows)


def _columns(first: str, *others: str) -> list[tuple[str, str]]:
    return [(first, "left"), *((heading, "right") for heading in others)]


def draw_stream(record: StreamFile, page: Page) -> None:
    """The finished stages of a stream, within a page's width."""
    page.line(f"Stages ({record.settings['method']}) of {model_line(record.model)}", "bold")
    total = record.model.num_elements
    page.table(
        _columns("stage", "examples", "steps", "tokens", "loss", "tensors", "elements", "share"),
        (
            (stage.label, f"{stage.num_examples:,}", f"{stage.num_steps:,}", f"{stage.tokens:,}",
             f"{stage.losses[0]:.3f} → {stage.losses[-1]:.3f}", f"{stage.num_parameters:,}",
             f"{stage.num_elements:,}", f"{stage.num_elements / total:.2%}")
            for stage in record.stages
        ),
    )  # fmt: skip
    for stage in record.stages:
        if stage.evaluations:
            lowest = min(stage.evaluations, key=lambda one: one.loss)
            page.line(
                f"{stage.label}: held-out loss {stage.evaluations[0].loss:.3f} → {stage.evaluations[-1].loss:.3f}, "
                f"lowest {lowest.loss:.3f} after step {lowest.step:,}" + ("; kept" if stage.kept_step else "")
            )
    if not record.complete:
        page.line(f"{len(record.stages)} of {record.num_stages} stages are finished; the same command goes on")


def render_streamed(done: Streamed) -> str:
    """Stages, proof and files as text as wide as the terminal."""
    return drawn(lambda page: _draw_streamed(done, page))


def _draw_streamed(done: Streamed, page: Page) -> None:
    draw_stream(done.record, page)
    total, found = done.record.model.num_elements, done.verification
    page.line()
    frozen = sum(tensor.frozen for tensor in found.parameters)
    page.line(f"{frozen:,} of {total:,} elements were frozen, and each is bit-identical to the base's")
    if found.unmoved:
        page.line(f"! {len(found.unmoved)} trained tensors did not move:")
        for tensor in found.unmoved[:MAX_LISTED]:
            page.line(f"  {tensor.name}")
    page.written(done.files)
