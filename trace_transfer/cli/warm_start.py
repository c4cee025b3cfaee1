"""`trace-transfer warm-start`: read the options, call `plan_identify` and `run_warm_starts_of`, print what was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trace_transfer.cli import options as shared
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.launching import place_among_ranks


@click.command("warm-start")
@click.argument("base", metavar="BASE")
@click.option(
    "--tasks", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="tasks.yaml: the tasks and where their data are.",
)  # fmt: skip
@shared.out_option("runs/identify")
@shared.data_options
@shared.warm_start_options
@shared.seed_option
@shared.rules_option
@click.option("--dry-run", is_flag=True, help="Tasks, steps, memory and disk wanted; trains nothing, writes nothing.")
@click.pass_context
def warm_start_command(
    ctx: click.Context, /, base: str, tasks: Path, out: Path, rules: tuple[str, ...], dry_run: bool, **options: Any
) -> None:
    """Fine-tune BASE for one epoch on each task, each time from BASE, and keep the deltas.

    Writes warm_start/TASK/ with the delta as safetensors; `trace-transfer score` goes on from there. Stopped anywhere,
    the same command goes on from its last checkpoint.

    \b
    trace-transfer warm-start HuggingFaceTB/SmolLM2-135M --tasks tasks.yaml --out runs/smollm2
    torchrun --nproc-per-node 8 -m trace_transfer warm-start meta-llama/Meta-Llama-3-8B --zero 3 \\
        --tasks tasks.yaml
    """
    settings = shared.given_settings(IdentifySettings, ctx, options)
    first = place_among_ranks().rank == 0

    from trace_transfer.identification.identifying import plan_identify, run_warm_starts_of
    from trace_transfer.identification.show_plans import render_plan, render_warm_starts
    from trace_transfer.progress import Terminal, quiet_libraries

    quiet_libraries()
    plan = plan_identify(base, tasks, tuned={}, settings=settings, rules=rules, out=out, with_scores=False)
    if dry_run:
        click.echo(render_plan(plan))
        return
    stores = run_warm_starts_of(plan, Terminal())
    if first:
        click.echo(render_warm_starts(stores))
