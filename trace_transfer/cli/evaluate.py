"""What models know and how they keep tasks apart: `evaluate` and `represent`."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli import options as shared
from trace_transfer.cli.settings_options import setting_options
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.progress import Terminal, quiet_libraries
from trace_transfer.represent.settings import RepresentSettings


@click.command("evaluate", cls=shared.Command)
@click.argument("model", metavar="MODEL")
@shared.option(
    "--suite", "suite_name", default="paper", show_default=True, metavar="NAME|FILE", group="Evaluation", common=True,
    help="paper, paper-authors (as the authors' scripts do), or a file with your own evaluations.",
)  # fmt: skip
@shared.option(
    "--only", multiple=True, metavar="NAME", group="Evaluation", common=True,
    help="Run only this evaluation. May be repeated.",
)  # fmt: skip
@shared.many(
    "--data", callback=shared.mapped, metavar="NAME=FILE",
    help="Local file for an evaluation. NAME.shots=FILE gives its few-shot examples; may be repeated.",
)  # fmt: skip
@shared.many(
    "--patch", "patches", type=shared.FILE, metavar="FILE",
    help="Apply a patch to the model first. May be repeated, in the order of the stream.",
)  # fmt: skip
@shared.out_option(default="runs/evaluate")
@setting_options(EvaluateSettings)
@shared.dry_run_option(help="Print what would be run; load no weights, write nothing.")
def evaluate_command(
    settings: EvaluateSettings, model: str, suite_name: str, only: tuple[str, ...], data: dict[str, str],
    patches: tuple[Path, ...], out: Path, dry_run: bool,
) -> None:  # fmt: skip
    """Score MODEL on the paper's benchmarks, or on your own data.

    Writes evaluation.json and samples/NAME.jsonl. Evaluations that are finished with the same settings, data and
    weights are not run again.

    \b
        trace-transfer evaluate Qwen/Qwen2.5-14B --suite paper \\
            --allow-code-execution
        trace-transfer evaluate models/small --suite mine.yaml \\
            --patch runs/math.patch.safetensors
    """
    from trace_transfer.evaluation.evaluating import evaluate, plan_evaluation, require_same_weights
    from trace_transfer.evaluation.show import render_evaluation, render_evaluation_plan
    from trace_transfer.evaluation.suite_file import load_suite
    from trace_transfer.models.checkpoints import hash_weights
    from trace_transfer.models.sources import ModelSource
    from trace_transfer.patch.model_state import ModelState
    from trace_transfer.patch.patches import Patch

    quiet_libraries()
    suite = load_suite(suite_name).with_data(data).only(only)
    plan = plan_evaluation(ModelState(ModelSource.parse(model), Patch.open_all(patches)), suite, settings)
    hash_weights([model], Terminal())
    if dry_run:
        require_same_weights(plan, out)  # as `evaluate` does
        click.echo(render_evaluation_plan(plan, out))
        return
    click.echo(render_evaluation(evaluate(plan, out, Terminal())))
    shared.say_next((), "inspect", out / "evaluation.json")


@click.command("represent", cls=shared.Command)
@click.argument("models", nargs=-1, metavar="MODEL...")
@shared.option(
    "--tasks", required=True, type=shared.FILE, metavar="FILE", group="Data", common=True,
    help="tasks.yaml with at least two tasks.",
)  # fmt: skip
@shared.many(
    "--label", "labelled", callback=shared.paired, metavar="NAME=MODEL",
    help="A model with a name for the figure. May be repeated; a MODEL is named by the last part of its path.",
)  # fmt: skip
@shared.many(
    "--patch", "patches", callback=shared.paired, metavar="NAME=FILE",
    help="Apply a patch to the model of that name. May be repeated, in the order of the stream.",
)  # fmt: skip
@shared.out_option(default="runs/represent")
@setting_options(RepresentSettings)
@shared.dry_run_option(help="Print models, widths, texts and tokens; read no weights, write nothing.")
def represent_command(
    settings: RepresentSettings, models: tuple[str, ...], tasks: Path, labelled: tuple[tuple[str, str], ...],
    patches: tuple[tuple[str, str], ...], out: Path, dry_run: bool,
) -> None:  # fmt: skip
    """Draw how well MODELs separate the texts of several tasks in their last layer, side by side.

    Writes representation.html and representation.png (t-SNE with 95 % ellipses), representation.json (silhouette,
    distances between tasks, spread; computed on the embeddings, not on the t-SNE) and embeddings.safetensors.

    \b
        trace-transfer represent --tasks tasks.yaml \\
            --label base=Qwen/Qwen2.5-14B --label trace=runs/trace/model
        trace-transfer represent --tasks tasks.yaml \\
            --label base=Qwen/Qwen2.5-14B --label math=Qwen/Qwen2.5-14B \\
            --patch math=runs/trace/math.patch.safetensors
    """
    from trace_transfer.represent.draw import render_plan, render_representation
    from trace_transfer.represent.representing import FILES, name_models, open_states, plan_representation
    from trace_transfer.represent.representing import run_representation as run

    quiet_libraries()
    states = open_states(name_models(models, labelled), [(name, Path(file)) for name, file in patches])
    plan = plan_representation(states, tasks, settings)
    if dry_run:
        click.echo(render_plan(plan))
        return
    file = run(plan, out, Terminal())
    files = [out / name for name in FILES]
    click.echo(render_representation(file, files))
    shared.say_next(files)
