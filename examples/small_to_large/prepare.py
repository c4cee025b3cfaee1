"""Lays out the models of this example, which are those of the quickstart: glassllm, and SmolLM2-135M.

python -m examples.small_to_large.prepare
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from examples.quickstart.prepare import prepare

HERE = Path(__file__).parent


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "models", help="Where they are written.")
def main(out: Path) -> None:
    """Lay out the models of `run.yaml`."""
    prepare(out)
    click.echo(f"models of this example: {out}")


if __name__ == "__main__":
    sys.exit(main())
