"""`trace-transfer identify`: read the options, call `plan_identify` and `run_identify`, print the core sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trace_transfer.cli import options as shared
from trace_transfer.cli.publishing import asked_destination, push_options
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.launching import place_among_ranks


@click.command("identify")
@click.argument("base", metavar="BASE")
@click.option(
    "--tasks", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="tasks.yaml: the tasks and where their data are.",
)  # fmt: skip
@shared.tuned_option("A model fine-tuned from BASE on a task already, which then needs no warm start.")
@shared.out_option("runs/identify")
@shared.score_options
@shared.data_options
@shared.warm_start_options
@shared.compute_options
@shared.seed_option
@shared.rules_option
@push_options("the core files, with a card,")
@click.option("--dry-run", is_flag=True, help="Tasks, steps, memory and disk wanted; trains nothing, writes nothing.")
@click.pass_context
def identify_command(
    ctx: click.Context,
    /,
    base: str,
    tasks: Path,
    tuned: dict[str, str],
    out: Path,
    rules: tuple[str, ...],
    push_to_hub: str | None,
    private: bool,
    dry_run: bool,
    profile: str,
    **options: Any,
) -> None:
    """Find the parameters of BASE that each task needs: warm-start, score and select in one.

    Writes one TASK.core.json per task, importance.html and importance.png, and what they were made from. Stopped
    anywhere, the same command goes on from there.

    \b
    trace-transfer identify HuggingFaceTB/SmolLM2-135M --tasks tasks.yaml --method lf --ratio 0.05 \\
        --out runs/smollm2
    """
    settings = shared.given_settings(IdentifySettings, ctx, options, profile)
    to = asked_destination(push_to_hub, private) if place_among_ranks().rank == 0 else None

    from trace_transfer.identification.identifying import plan_identify, run_identify
    from trace_transfer.models.checkpoints import hash_weights
    from trace_transfer.progress import Terminal, quiet_libraries

    quiet_libraries()
    hash_weights([base, *tuned.values()], Terminal())
    plan = plan_identify(base, tasks, tuned=tuned, settings=settings, rules=rules, out=out)
    if dry_run:
        from trace_transfer.identification.show_plans import render_plan

        click.echo(render_plan(plan))
        return
    found = run_identify(plan, Terminal())
    if found is not None:
        from trace_transfer.identification.show import render_identified

        click.echo(render_identified(found))
        if to is not None:
            from trace_transfer.publish.hub import publish_cores

            click.echo(f"sent: {publish_cores(to, found.files, plan.base.source)}")
