"""`trace-transfer map`: read the options, call `plan_map` and `run_map`, print the table."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli import options as shared
from trace_transfer.cli.settings_options import setting_options
from trace_transfer.progress import Terminal, quiet_libraries
from trace_transfer.publish.hub import Destination, local_file, publish_cores
from trace_transfer.transfer.settings import MapSettings


@click.command("map", cls=shared.Command)
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
@shared.out_option(default="runs/map")
@setting_options(
    MapSettings, profiles="paper: biased CKA, one row per text, rows as they are, argmax, core set carried by name"
)
@shared.option("--no-cache", is_flag=True, help="Keep no activations.", group="Output")
@shared.push_options("the translated core files and the layer match, with a card,")
@shared.dry_run_option(help="Print tensors, memory and time; read no weights, write nothing.")
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
    from trace_transfer.transfer.draw import render_estimate, render_summary
    from trace_transfer.transfer.mapping import check_out, estimate, plan_map, run_map

    quiet_libraries()
    settings = settings.model_copy(update={"cache": None}) if no_cache else settings
    plan = plan_map(src, dst, [*map(local_file, core)], settings)
    if dry_run:
        check_out(plan, out, settings)  # as `run_map` does
        click.echo(render_estimate(plan, estimate(plan, settings)))
        return
    if settings.cache is not None and plan.rows.sizes:
        hash_weights([src, dst], Terminal())
    result = run_map(plan, out, settings, Terminal())
    click.echo(render_summary(result))
    if result.carried:
        shared.say_next(result.files, "train", dst, "--stream", "stream.yaml", "--out", "runs/trained")
    else:
        shared.say_next(result.files, "identify", src, "--tasks", "tasks.yaml", "--out", "runs/found")
    if to is not None:
        click.echo(f"sent: {publish_cores(to, result.files, plan.target.source)}")
