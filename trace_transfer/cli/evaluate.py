"""What models know and how they keep tasks apart: `evaluate` and `represent`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trace_transfer.cli import options as shared
from trace_transfer.cli.settings_options import given_settings, setting_options
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.represent.settings import RepresentSettings


@click.command("evaluate")
@click.argument("model", metavar="MODEL")
@click.option(
    "--suite", "suite_name", default="paper", show_default=True, metavar="NAME|FILE",
    help="'paper', 'paper-authors' (as their scripts do), or a file of your own evaluations.",
)  # fmt: skip
@click.option("--only", multiple=True, metavar="NAME", help="Only this evaluation; may be given often.")
@click.option(
    "--data", multiple=True, callback=shared.mapped, metavar="NAME=FILE",
    help="A local file for an evaluation, or NAME.shots=FILE for the examples that it shows; may be given often.",
)  # fmt: skip
@click.option(
    "--patch", "patches", multiple=True, type=shared.FILE, metavar="FILE",
    help="Put a patch into the model first; may be given often, in the order of the stream.",
)  # fmt: skip
@shared.out_option("runs/evaluate")
@setting_options(EvaluateSettings)
@shared.dry_run_option("What would be run; loads no weights, writes nothing.")
@click.pass_context
def evaluate_command(
    ctx: click.Context, /, model: str, suite_name: str, only: tuple[str, ...], data: dict[str, str],
    patches: tuple[Path, ...], out: Path, dry_run: bool, **options: Any,
) -> None:  # fmt: skip
    """Score MODEL on the paper's benchmarks, or on your own data.

    Writes evaluation.json and samples/NAME.jsonl. What is finished with the same settings, data and weights is not run
    again.

    \b
    trace-transfer evaluate Qwen/Qwen2.5-14B --suite paper --allow-code-execution
    trace-transfer evaluate models/small --suite mine.yaml \\
        --patch runs/math.patch.safetensors
    """
    settings = given_settings(EvaluateSettings, ctx, options)

    from trace_transfer.evaluation.evaluating import evaluate, plan_evaluation, require_same_weights
    from trace_transfer.evaluation.show import render_evaluation, render_evaluation_plan
    from trace_transfer.evaluation.suite_file import load_suite
    from trace_transfer.models.checkpoints import hash_weights
    from trace_transfer.models.sources import ModelSource
    from trace_transfer.patch.model_state import ModelState
    from trace_transfer.patch.patches import Patch
    from trace_transfer.progress import Terminal, quiet_libraries

    quiet_libraries()
    suite = load_suite(suite_name).with_data(data).only(only)
    state = ModelState(ModelSource.parse(model), Patch.open_all(patches))
    plan = plan_evaluation(state, suite, settings)
    hash_weights([model], Terminal())
    if dry_run:
        require_same_weights(plan, out)  # as `evaluate` does
        click.echo(render_evaluation_plan(plan, out))
        return
    click.echo(render_evaluation(evaluate(plan, None, out, Terminal())))


@click.command("represent")
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option("--tasks", required=True, type=shared.FILE, metavar="FILE", help="tasks.yaml: two tasks at least.")
@click.option(
    "--label", "labelled", multiple=True, callback=shared.paired, metavar="NAME=MODEL",
    help="A model under a name of its own; may be given often. MODELs have the last part of theirs.",
)  # fmt: skip
@click.option(
    "--patch", "patches", multiple=True, callback=shared.paired, metavar="NAME=FILE",
    help="A patch of the model of that name, in the order of its stream; may be given often.",
)  # fmt: skip
@shared.out_option("runs/represent")
@setting_options(RepresentSettings)
@shared.dry_run_option("Models, widths, texts and tokens; reads no weights, writes nothing.")
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
        --label math=Qwen/Qwen2.5-14B \\
        --patch math=runs/trace/math.patch.safetensors
    """
    settings = given_settings(RepresentSettings, ctx, options)

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
