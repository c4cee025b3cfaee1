"""`trace-transfer represent`: read the options, call `plan_representation`, `run_representation`, print the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trace_transfer.cli import options as shared
from trace_transfer.represent.settings import RepresentSettings


@click.command("represent")
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--tasks", required=True, type=click.Path(path_type=Path), metavar="FILE", help="tasks.yaml: two tasks at least."
)
@click.option(
    "--label", "labelled", multiple=True, callback=shared.paired, metavar="NAME=MODEL",
    help="A model under a name of its own; may be given often. MODELs have the last part of theirs.",
)  # fmt: skip
@click.option(
    "--patch", "patches", multiple=True, callback=shared.paired, metavar="NAME=FILE",
    help="A patch of the model of that name, in the order of its stream; may be given often.",
)  # fmt: skip
@shared.out_option("runs/represent")
@shared.setting_options(RepresentSettings)
@click.option("--dry-run", is_flag=True, help="Models, widths, texts and tokens; reads no weights, writes nothing.")
@click.pass_context
def represent_command(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    tasks: Path,
    labelled: tuple[tuple[str, str], ...],
    patches: tuple[tuple[str, str], ...],
    out: Path,
    dry_run: bool,
    **options: Any,
) -> None:
    """Show side by side how MODELs keep the texts of several tasks apart in their last layer.

    Writes representation.json (silhouette, distances between the tasks' centroids, spread: of the embeddings
    themselves), embeddings.safetensors, and their t-SNE with 95 % ellipses as representation.html and
    representation.png.

    \b
    trace-transfer represent --tasks tasks.yaml --label base=Qwen/Qwen2.5-14B \\
        --label sequential=runs/sequential/model --label trace=runs/trace/model
    trace-transfer represent --tasks tasks.yaml --label base=Qwen/Qwen2.5-14B \\
        --label math=Qwen/Qwen2.5-14B --patch math=runs/trace/math.patch.safetensors
    """
    settings = shared.given_settings(RepresentSettings, ctx, options)

    from trace_transfer.progress import Terminal, quiet_libraries
    from trace_transfer.represent.representing import FILES, name_models, open_states, plan_representation
    from trace_transfer.represent.representing import run_representation as run
    from trace_transfer.represent.show import render_plan, render_representation

    quiet_libraries()
    states = open_states(name_models(models, labelled), [(name, Path(file)) for name, file in patches])
    plan = plan_representation(states, tasks, settings)
    if dry_run:
        click.echo(render_plan(plan))
        return
    file = run(plan, out, Terminal())
    click.echo(render_representation(file, [out / name for name in FILES]))
