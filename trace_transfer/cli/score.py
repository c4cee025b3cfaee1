"""`trace-transfer score`: read the options, call `run_score`, print the core sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trace_transfer.cli import options as shared
from trace_transfer.identification.settings import IdentifySettings


@click.command("score")
@click.argument("base", metavar="BASE")
@shared.tuned_option(
    "A model fine-tuned from BASE on a task, a directory or a hub name; once for each task. Without it, the warm "
    "starts in --out are scored."
)
@click.option(
    "--tasks", type=click.Path(path_type=Path), metavar="FILE",
    help="tasks.yaml: each task's examples, for the Fisher information of lf and fisher.",
)  # fmt: skip
@shared.out_option("runs/identify")
@shared.score_options
@shared.data_options
@shared.compute_options
@shared.seed_option
@shared.rules_option
@click.pass_context
def score_command(
    ctx: click.Context,
    /,
    base: str,
    tuned: dict[str, str],
    tasks: Path | None,
    out: Path,
    rules: tuple[str, ...],
    profile: str,
    **options: Any,
) -> None:
    """Score the parameters of BASE by how warm-started or fine-tuned models differ from it.

    Writes deltas.json (norms, cosines), fisher/TASK/fisher.json, TASK.core.json for each task and heatmaps of their
    importance. What an earlier run has read is not read again, so that another method or ratio takes seconds.

    \b
    trace-transfer score HuggingFaceTB/SmolLM2-135M --tasks tasks.yaml --out runs/smollm2
    trace-transfer score meta-llama/Meta-Llama-3-8B \\
        --tuned math=out/math --tuned code=out/code --tuned law=out/law --method cs
    """
    settings = shared.given_settings(IdentifySettings, ctx, options, profile)

    from trace_transfer.identification.identifying import run_score
    from trace_transfer.identification.show import render_identified
    from trace_transfer.progress import Terminal, quiet_libraries

    quiet_libraries()
    found = run_score(base, tuned=tuned, tasks=tasks, settings=settings, rules=rules, out=out, reporter=Terminal())
    click.echo(render_identified(found))
