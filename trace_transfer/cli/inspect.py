"""`trace-transfer inspect`: draw one of our files in the terminal."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
def inspect_command(file: Path) -> None:
    """Draw FILE in the terminal: any JSON file that trace-transfer wrote, or a safetensors file."""
    from trace_transfer.cli.inspection import draw
    from trace_transfer.terminal import console

    draw(file, console())
