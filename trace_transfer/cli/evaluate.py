"""`trace-transfer evaluate`: read the options, call `plan_evaluation` and `evaluate`, print the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from trace_transfer.cli import options as shared
from trace_transfer.settings.evaluate import CHOICES, EvaluateSettings

DEFAULT = EvaluateSettings()


def _data(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`NAME=FILE` options as a mapping; a name may be given once."""
    found: dict[str, str] = {}
    for value in values:
        name, separator, file = value.partition("=")
        if not separator or not name or not file:
            raise click.BadParameter(f"{value!r} is not NAME=FILE")
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice")
        found[name] = file
    return found


@click.command("evaluate")
@click.argument("model", metavar="MODEL")
@click.option(
    "--suite", "suite_name", default="paper", show_default=True, metavar="NAME|FILE",
    help="'paper', 'paper-authors' (as their scripts do), or a file of your own evaluations.",
)  # fmt: skip
@click.option("--only", multiple=True, metavar="NAME", help="Only this evaluation; may be given often.")
@click.option(
    "--data", multiple=True, callback=_data, metavar="NAME=FILE",
    help="A local file for an evaluation, or NAME.shots=FILE for the examples that it shows; may be given often.",
)  # fmt: skip
@click.option(
    "--patch", "patches", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="Put a patch into the model first; may be given often, in the order of the stream.",
)  # fmt: skip
@shared.out_option("runs/evaluate")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many records of each, the first ones.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=DEFAULT.batch_size, show_default=True,
    help="Examples of a forward pass.",
)  # fmt: skip
@click.option(
    "--max-length", type=click.IntRange(min=2), metavar="TOKENS",
    help="Tokens that the model reads and writes; what it was made for if not given.",
)  # fmt: skip
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), metavar="TOKENS",
    help="Longest answer, where the evaluation does not say; else what the benchmark says.",
)  # fmt: skip
@click.option("--device", default=DEFAULT.device, show_default=True, help="auto: a GPU if any.")
@click.option(
    "--dtype", type=click.Choice(CHOICES["dtype"]), default=DEFAULT.dtype, show_default=True,
    help="auto: bfloat16 on a GPU, float32 on a CPU.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(min=0), default=DEFAULT.seed, show_default=True,
    help="Of the examples that are shown, and of sampled answers.",
)  # fmt: skip
@click.option(
    "--allow-code-execution", is_flag=True,
    help="Run programs that the model writes (humaneval): walled in, without network, with limits.",
)  # fmt: skip
@click.option("--save-samples/--no-samples", default=True, help="Whether every prompt and answer is kept (it is).")
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
    given = {
        name: value for name, value in options.items() if ctx.get_parameter_source(name) != ParameterSource.DEFAULT
    }
    settings = EvaluateSettings.of(**given)

    from trace_transfer.checkpoints import hash_weights
    from trace_transfer.model_state import ModelState
    from trace_transfer.models import ModelSource
    from trace_transfer.patches import Patch
    from trace_transfer.progress import Terminal, quiet_libraries
    from trace_transfer.stages.evaluating import evaluate, plan_evaluation, require_same_weights
    from trace_transfer.tasks.evaluation import load_suite
    from trace_transfer.views.evaluation import render_evaluation, render_evaluation_plan

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
