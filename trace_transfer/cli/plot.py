"""`trace-transfer plot`: importance heatmaps of core files."""

from __future__ import annotations

from pathlib import Path

import click

from trace_transfer.cli.values import OUT_DIRECTORY


@click.command("plot")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CORE_FILE...")
@click.option("--out", required=True, type=OUT_DIRECTORY, help="Directory for the heatmaps.")
@click.option("--rules", multiple=True, metavar="PATH", help="Your own rules, beside or over the shipped.")
def plot_command(files: tuple[Path, ...], out: Path, rules: tuple[str, ...]) -> None:
    """Draw importance heatmaps of core files of one model: layers × modules, per task and warm-start length.

    Writes importance.html (interactive, one task at a time) and importance.png (all of them).

    \b
    trace-transfer plot runs/epochs-*/*.core.json --out runs/heatmaps
    """
    from trace_transfer.core_sets.core_file import CoreFile
    from trace_transfer.families.registry import load_families
    from trace_transfer.files import refuse_inputs
    from trace_transfer.identification.draw import importance_of, write_importance_html, write_importance_png
    from trace_transfer.locking import held
    from trace_transfer.records import read_artefact

    page, picture = out / "importance.html", out / "importance.png"
    refuse_inputs([page, picture], files)
    registry = load_families([Path(path) for path in rules])
    importance = importance_of([read_artefact(file, CoreFile) for file in files], list(map(str, files)), registry)
    with held(out):
        write_importance_html(page, importance)
        write_importance_png(picture, importance)
    click.echo(f"{page}\n{picture}")
