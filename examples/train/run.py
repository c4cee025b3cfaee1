"""`make train`: core sets found on a model of 4 layers train a model of 30 on three tasks, one after another.

The models are those of `make demo`, from Python packages. Options are handed on to `train`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from examples.quickstart.demo import prepare, run

TASKS = ("sums", "spelling", "series")
OPTIONS = ["--batch-size", "8", "--epochs", "2", "--learning-rate", "1e-4", "--max-length", "128", "--zero", "0"]


def write_stream(out: Path) -> Path:
    """`stream.yaml`: the tasks in order, each with its data and the core set that was carried over."""
    file = out / "stream.yaml"
    found = {name: next((out / "tasks").glob(f"{name}.*")).relative_to(out) for name in TASKS}
    lines = [f"  - {{name: {name}, data: {data}, core: map/{name}.core.json}}" for name, data in found.items()]
    file.write_text("\n".join(["tasks:", *lines, ""]), encoding="utf-8")
    return file


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/train"), show_default=True)
@click.option("--probe", help="Other texts to match layers on, e.g. fewer.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(out: Path, probe: str | None, options: tuple[str, ...]) -> None:
    """Find core sets on a small model, carry them to a larger one, and train that with them."""
    source, target, tasks = prepare(out)
    short = ["--batch-size", 8, "--max-length", 128]
    run("identify", source, "--tasks", tasks, *short, "--unit", "elements", "--ratio", 0.05, "--out", out / "identify")
    cores = [part for name in TASKS for part in ("--core", out / "identify" / f"{name}.core.json")]
    run("map", "--src", source, "--dst", target, *cores, "--out", out / "map", *(["--probe", probe] if probe else []))
    run("train", target, "--stream", write_stream(out), *OPTIONS, *options, "--out", out / "tuned")
    click.echo(f"\nThe tuned model: {(out / 'tuned' / 'model').resolve()}")


if __name__ == "__main__":
    sys.exit(main())
