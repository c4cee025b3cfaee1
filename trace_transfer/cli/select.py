"""`trace-transfer select`: another core set from stored scores."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli.values import OUT_DIRECTORY, RATIO


@click.command("select")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CORE_FILE...")
@click.option("--ratio", type=RATIO, help="The new core share; default: as before.")
@click.option("--unit", type=click.Choice(("tensors", "elements", "rows")), help="What it counts; default: as before.")
@click.option("--out", required=True, type=OUT_DIRECTORY, help="Directory for the new files.")
def select_command(files: tuple[Path, ...], ratio: float | None, unit: str | None, out: Path) -> None:
    """Select the top --ratio anew from the scores in core files; no weights are read.

    Lists of the authors' form come in and go out with `import --from authors` and `export --to authors`.

    \b
    trace-transfer select runs/smollm2/*.core.json --ratio 0.1 --out runs/smollm2-10
    """
    if out.suffix == ".json":
        raise click.UsageError(f"--out {out}: expected a directory; the files in it are named TASK.core.json")

    from trace_transfer.core_sets.show import render_core_sets
    from trace_transfer.identification.reselecting import core_path, reselect_all

    cores = reselect_all(files, ratio, unit, out)
    click.echo(render_core_sets(cores, (), tuple(core_path(out, core) for core in cores)))
