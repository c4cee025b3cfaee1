"""`trace-transfer evaluate`: read the options, call `plan_evaluation` and `evaluate`, print the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trace_transfer.cli import options as shared
from trace_transfer.evaluation.settings import EvaluateSettings


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
    "--patch", "patches", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Put a patch into the model first; may be given often, in the order of the stream.",
)  # fmt: skip
@shared.out_option("runs/evaluate")
@shared.setting_options(EvaluateSettings)
@click.option("--dry-run", is_flag=True, help="What would be run; loads no weights, writes nothing.")
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
    trace-transfer evaluate models/small --suite mine.yaml --patch runs/math.patch.safetensors
    """
    settings = shared.given_settings(EvaluateSettings, ctx, options)

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
