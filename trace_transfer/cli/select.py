"""`trace-transfer select`: another core set from stored scores; lists of the authors' form in and out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trace_transfer.cli import options as shared

if TYPE_CHECKING:
    from trace_transfer.artefacts import CoreFile


@click.command("select")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[CORE_FILE]...")
@click.option("--ratio", type=click.FloatRange(0, 1, min_open=True), help="The new core share; default: as before.")
@click.option("--unit", type=click.Choice(("tensors", "elements", "rows")), help="What it counts; default: as before.")
@click.option(
    "--import", "imported", type=click.Path(path_type=Path), metavar="LIST",
    help="A JSON list as the authors' scripts write it, instead of core files; needs --model and --task.",
)  # fmt: skip
@click.option("--model", metavar="MODEL", help="Whose parameters the list names; only its config is read.")
@click.option("--task", help="What the list was made for.")
@click.option("--export", is_flag=True, help="Write the core sets as such lists, TASK.json, too.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for the new files.")
@shared.rules_option
def select_command(
    files: tuple[Path, ...],
    ratio: float | None,
    unit: str | None,
    imported: Path | None,
    model: str | None,
    task: str | None,
    export: bool,
    out: Path,
    rules: tuple[str, ...],
) -> None:
    """Select the top --ratio anew from the scores in core files; no weights are read.

    \b
    trace-transfer select runs/smollm2/*.core.json --ratio 0.1 --out runs/smollm2-10
    trace-transfer select --import top.json --model meta-llama/Meta-Llama-3-8B --task math \\
        --out runs/theirs
    """
    if (imported is None) == (not files):
        raise click.UsageError("give core files, or --import with a list")
    if imported is not None and not (model and task):
        raise click.UsageError("--import needs --model, whose parameters the list names, and --task")

    from trace_transfer.stages.reselecting import import_list, reselect, write_core_files
    from trace_transfer.views.core_sets import render_core_sets

    if imported is not None:
        cores: tuple[CoreFile, ...] = (import_list(imported, model or "", task or "", ratio, unit, rules),)
    else:
        cores = tuple(reselect(file, ratio, unit) for file in files)
    written = write_core_files(cores, out, export)
    click.echo(render_core_sets(cores, (), written))
