"""`trace-transfer train`: read the options, call `plan_stream` and `run_stream`, print what moved."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from trace_transfer.cli import options as shared
from trace_transfer.cli.settings_options import setting_options
from trace_transfer.launching import check_processes, excess_of, place_among_ranks, run_processes
from trace_transfer.progress import Terminal, quiet_libraries
from trace_transfer.publish.hub import Destination, publish_stream
from trace_transfer.stopping import stop_on_sigterm
from trace_transfer.training.settings import StreamSettings


@click.command("train", cls=shared.Command)
@click.argument("base", metavar="BASE")
@shared.option(
    "--stream", required=True, type=shared.FILE, metavar="FILE", group="Data", common=True,
    help="stream.yaml: the tasks in order, with their data and core files.",
)  # fmt: skip
@shared.out_option(default="runs/train")
@setting_options(StreamSettings)
@shared.rules_option
@shared.push_options("the tuned model, its record and its patches")
@shared.option(
    "--processes", type=click.IntRange(min=1), metavar="N", group="Hardware", common=True,
    help="Processes on this machine, one for each GPU.",
)  # fmt: skip
@shared.dry_run_option(help="Print what would be trained, steps, memory and disk space; train nothing, write nothing.")
def train_command(
    settings: StreamSettings, base: str, stream: Path, out: Path, rules: tuple[str, ...], processes: int | None,
    to: Destination | None, dry_run: bool,
) -> None:  # fmt: skip
    """Fine-tune BASE on one task after another, with only the core set of each task trained.

    Compares every frozen tensor with BASE, bit for bit. Writes TASK.patch.safetensors after each task and the tuned
    model at the end. If it is interrupted, the same command resumes from the last checkpoint.

    \b
        trace-transfer train Qwen/Qwen2.5-14B --stream stream.yaml \\
            --processes 8 --zero 3 --out runs/qwen
        deepspeed --hostfile hosts --module trace_transfer \\
            train Qwen/Qwen2.5-14B --stream stream.yaml --out runs/qwen
    """
    place = place_among_ranks()
    if place.launched and processes not in (None, place.size):
        raise click.UsageError(
            f"--processes {processes}: a launcher started {place.size} of them already; leave it out"
        )
    if processes and not dry_run and not place.launched:
        check_processes(processes)
        sys.exit(run_processes(processes, sys.argv[1:]))

    from trace_transfer.models.checkpoints import hash_weights
    from trace_transfer.training.show import render_stream_plan, render_streamed
    from trace_transfer.training.streaming import needed_space, plan_stream, run_stream

    quiet_libraries()
    num_ranks = place.size if place.launched else processes or 1
    hash_weights([base], Terminal())
    plan = plan_stream(base, stream, settings=settings, rules=rules, out=out, num_ranks=num_ranks)
    if dry_run:
        excess = excess_of(processes) if processes and not place.launched else None  # a plan may be for another machine
        notes = [f"--processes {processes}: {excess}: here it would be refused"] if excess else []
        click.echo(render_stream_plan(plan, needed_space(plan), notes))
        return
    with stop_on_sigterm() as stop:
        done = run_stream(plan, Terminal(), stop)
    if done is not None:
        click.echo(render_streamed(done))
        shared.say_next((), "evaluate", plan.out / "model", "--suite", "suite.yaml")
        if to is not None:
            patches = [plan.patch(number) for number in range(len(plan.stages))]
            click.echo(f"sent: {publish_stream(to, plan.out, plan.out / 'model', patches)}")
