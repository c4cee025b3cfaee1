"""`trace-transfer represent`: read the options, call `plan_representation`, `run_representation`, print the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trace_transfer.cli import options as shared
from trace_transfer.settings.represent import CHOICES, RepresentSettings

DEFAULTS = RepresentSettings()


def _setting(name: str, kind: Any, why: str, metavar: str | None = None) -> shared.Decorator:
    return click.option(
        f"--{name.replace('_', '-')}", type=kind, default=getattr(DEFAULTS, name), show_default=True, metavar=metavar,
        help=why,
    )  # fmt: skip


def _named(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for value in values:
        name, separator, rest = value.partition("=")
        if not separator or not name.strip() or not rest:
            raise click.BadParameter(f"{value!r} is not {parameter.metavar}")
        found.append((name.strip(), rest))
    return tuple(found)


@click.command("represent")
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--tasks", required=True, type=click.Path(path_type=Path), metavar="FILE", help="tasks.yaml: two tasks at least."
)
@click.option(
    "--label", "labelled", multiple=True, callback=_named, metavar="NAME=MODEL",
    help="A model under a name of its own; may be given often. MODELs have the last part of theirs.",
)  # fmt: skip
@click.option(
    "--patch", "patches", multiple=True, callback=_named, metavar="NAME=FILE",
    help="A patch of the model of that name, in the order of its stream; may be given often.",
)  # fmt: skip
@shared.out_option("runs/represent")
@_setting(
    "pool", click.Choice(CHOICES["pool"]),
    "A text's embedding: the mean over its tokens' final hidden states, or that of the last.",
)  # fmt: skip
@_setting("max_examples", click.IntRange(min=3), "Texts drawn from each task at most.")
@_setting("max_length", click.IntRange(min=1), "Texts are cut there.", "TOKENS")
@_setting("perplexity", float, "Of t-SNE: how many neighbours of a text count; less than there are texts.")
@_setting("batch_size", click.IntRange(min=1), "Texts at a time.")
@_setting("device", str, "auto: a GPU where there is one.")
@_setting("dtype", click.Choice(CHOICES["dtype"]), "auto: float32 on a CPU, bfloat16 on a GPU.")
@_setting("seed", click.IntRange(min=0), "Draws the texts, and t-SNE.")
@shared.rules_option
@click.option("--dry-run", is_flag=True, help="Models, widths, texts and tokens; reads no weights, writes nothing.")
def represent_command(
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
    settings = RepresentSettings(**options)

    from trace_transfer.progress import Terminal, quiet_libraries
    from trace_transfer.stages.representing import FILES, name_models, open_states, plan_representation
    from trace_transfer.stages.representing import run_representation as run
    from trace_transfer.views.representation_table import render_plan, render_representation

    quiet_libraries()
    states = open_states(name_models(models, labelled), [(name, Path(file)) for name, file in patches])
    plan = plan_representation(states, tasks, settings)
    if dry_run:
        click.echo(render_plan(plan))
        return
    file = run(plan, out, Terminal())
    click.echo(render_representation(file, [out / name for name in FILES]))
