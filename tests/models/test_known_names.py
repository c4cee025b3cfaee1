"""What is remembered of a model's names says the same as the model, for as long as its files are the same."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trace_transfer.errors import ModelError
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.registry import load_families
from trace_transfer.models import content
from trace_transfer.models.content import read_names
from trace_transfer.models.sources import ModelSource

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACE_TRANSFER_CACHE", str(tmp_path / "cache"))


def refuse(*_):
    raise AssertionError("read again")


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_oss"])
def test_the_anatomy_is_the_same(tiny, family, monkeypatch):
    """Tied, transposed, fused and interleaved tensors, experts, sizes that only a property of the config has."""
    source, registry = ModelSource.parse(tiny(family)), load_families()
    read = read_names(source)
    monkeypatch.setattr(content, "load_inventory", refuse)
    known = read_names(source)
    assert (known.shapes, known.tied, known.model_type) == (read.shapes, read.tied, read.model_type)
    of_read, of_known = (anatomy_of(one, registry) for one in (read, known))
    assert replace(of_known, inventory=read) == of_read


def test_another_config_is_read(copy_of):
    directory = copy_of("llama")
    source, config = ModelSource.parse(directory), directory / "config.json"
    before = read_names(source)
    for weights in directory.glob("*.safetensors*"):
        weights.unlink()
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "num_hidden_layers": values["num_hidden_layers"] + 1}))
    assert len(read_names(source).shapes) > len(before.shapes)
    config.unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_names(source)


def test_a_second_look_needs_neither_torch_nor_transformers():
    code = (
        "import sys; from trace_transfer.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print('loaded:', {'torch', 'transformers'} & {*sys.modules}, file=sys.stderr)"
    )
    words = ["rules", "explain", "--src", CONFIGS / "llama-3-8b", "--dst", CONFIGS / "qwen3-32b"]
    first, second = (subprocess.run([sys.executable, "-c", code, *words], capture_output=True) for _ in range(2))
    assert b"loaded: {" in first.stderr and b"loaded: set()" in second.stderr
    assert first.stdout == second.stdout and b"707 reached" in second.stdout
