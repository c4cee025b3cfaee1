"""`trace-transfer select`: another core set from stored scores."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("select")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CORE_FILE...")
@click.option("--ratio", type=click.FloatRange(0, 1, min_open=True), required=True, help="The new core share.")
@click.option("--unit", type=click.Choice(("tensors", "elements")), help="What the ratio counts; default: as before.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for the new core files.")
def select_command(files: tuple[Path, ...], ratio: float, unit: str | None, out: Path) -> None:
    """Select the top --ratio anew from the scores in core files; no model is read."""
    from trace_transfer.artefacts import to_json
    from trace_transfer.errors import UserError
    from trace_transfer.files import prepare_directory, write_text
    from trace_transfer.stages.scoring import reselect
    from trace_transfer.views.core_sets import render_core_sets

    cores = tuple(reselect(file, ratio, unit) for file in files)
    tasks = [core.task for core in cores]
    if len(set(tasks)) < len(tasks):
        raise UserError(f"core files of the same task would overwrite each other: {', '.join(tasks)}")
    directory = prepare_directory(out)
    written = tuple(directory / f"{core.task}.core.json" for core in cores)
    for core, file in zip(cores, written, strict=True):
        write_text(file, to_json(core))
    click.echo(render_core_sets(cores, (), written))
