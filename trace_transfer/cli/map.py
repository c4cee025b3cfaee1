"""What is done to a large model: `map` carries core sets to it, `train` trains them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trace_transfer.cli import options as shared
from trace_transfer.cli.options import Command
from trace_transfer.cli.settings_options import setting_options
from trace_transfer.launching import place_among_ranks
from trace_transfer.progress import Terminal, quiet_libraries
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings

if TYPE_CHECKING:
    from trace_transfer.publish.hub import Destination


@click.command("map", cls=Command)
@shared.option(
    "--src", required=True, metavar="MODEL", group="Models", common=True,
    help="Source model: a directory, a GGUF file or a hub name.",
)  # fmt: skip
@shared.option("--dst", required=True, metavar="MODEL", group="Models", common=True, help="Target model.")
@shared.option(
    "--core", multiple=True, metavar="FILE", group="Carrying", common=True,
    help="Core file of the source to be carried to the target. OWNER/NAME:FILE is one on the hub; may be repeated. "
    "Without core files only layers are matched.",
)  # fmt: skip
@shared.out_option("runs/map")
@setting_options(
    MapSettings, profiles="paper: biased CKA, one row per text, rows as they are, argmax, core set carried by name"
)
@shared.option("--no-cache", is_flag=True, help="Keep no activations.", group="Output")
@shared.push_options("the translated core files and the layer match, with a card,")
@shared.dry_run_option("Print tensors, memory and time; read no weights, write nothing.")
def map_command(
    settings: MapSettings, src: str, dst: str, core: tuple[str, ...], out: Path, no_cache: bool, to: Destination | None,
    dry_run: bool,
) -> None:  # fmt: skip
    """Match the layers of two models by CKA and carry core sets from SRC to DST.

    Writes heatmap.html and heatmap.png, layer_match.json, correspondence.json, and the translated TASK.core.json for
    each --core.

    \b
        trace-transfer map --src meta-llama/Meta-Llama-3-8B \\
            --dst Qwen/Qwen3-32B --core math.core.json --out runs/carried
    """
    if to is not None and not core:
        raise click.UsageError("--push-to-hub sends core files, and none is carried; give --core")

    from trace_transfer.models.checkpoints import hash_weights
    from trace_transfer.publish.hub import local_file, publish_cores
    from trace_transfer.transfer.draw import render_estimate, render_summary
    from trace_transfer.transfer.mapping import check_out, estimate, plan_map, run_map

    quiet_libraries()
    settings = settings.model_copy(update={"cache": None}) if no_cache else settings
    plan = plan_map(src, dst, [*map(local_file, core)], settings)
    if dry_run:
        check_out(plan, out, settings)  # as `run_map` does
        click.echo(render_estimate(plan, estimate(plan, settings)))
        return
    if settings.cache is not None:
        hash_weights([src, dst], Terminal())
    result = run_map(plan, out, settings, Terminal())
    click.echo(render_summary(result))
    if result.carried:
        shared.say_next(result.files, "train", dst, "--stream", "stream.yaml", "--out", "runs/trained")
    else:
        shared.say_next(result.files, "identify", src, "--tasks", "tasks.yaml", "--out", "runs/found")
    if to is not None:
        click.echo(f"sent: {publish_cores(to, result.files, plan.target.source)}")


@click.command("train", cls=Command)
@click.argument("base", metavar="BASE")
@shared.option(
    "--stream", required=True, type=shared.FILE, metavar="FILE", group="Data", common=True,
    help="stream.yaml: the tasks in order, with their data and core files.",
)  # fmt: skip
@shared.out_option("runs/train")
@setting_options(StreamSettings)
@shared.rules_option
@shared.push_options("the tuned model, its record and its patches")
@shared.option(
    "--processes", type=click.IntRange(min=1), metavar="N", group="Hardware", common=True,
    help="Processes on this machine, one for each GPU.",
)  # fmt: skip
@shared.dry_run_option("Print what would be trained, steps, memory and disk space; train nothing, write nothing.")
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
        from trace_transfer.launching import check_processes, run_processes

        check_processes(processes)
        sys.exit(run_processes(processes, sys.argv[1:]))

    from trace_transfer.models.checkpoints import hash_weights
    from trace_transfer.stopping import stop_on_sigterm
    from trace_transfer.training.streaming import needed_space, plan_stream, run_stream

    quiet_libraries()
    num_ranks = place.size if place.launched else processes or 1
    hash_weights([base], Terminal())
    plan = plan_stream(base, stream, settings=settings, rules=rules, out=out, num_ranks=num_ranks)
    if dry_run:
        from trace_transfer.launching import excess_of
        from trace_transfer.training.show import render_stream_plan

        excess = excess_of(processes) if processes and not place.launched else None  # a plan may be for another machine
        notes = [f"--processes {processes}: {excess}: here it would be refused"] if excess else []
        click.echo(render_stream_plan(plan, needed_space(plan), notes))
        return
    with stop_on_sigterm() as stop:
        done = run_stream(plan, Terminal(), stop)
    if done is not None:
        from trace_transfer.training.show import render_streamed

        click.echo(render_streamed(done))
        shared.say_next((), "evaluate", plan.out / "model", "--suite", "suite.yaml")
        if to is not None:
            from trace_transfer.publish.hub import publish_stream

            patches = [plan.patch(number) for number in range(len(plan.stages))]
            click.echo(f"sent: {publish_stream(to, plan.out, plan.model, patches)}")
