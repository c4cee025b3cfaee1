"""What users get wrong, through the real command: one message, exit code 2, no traceback, no file by halves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from tests.commands import refused, run
from tests.core_files import write_core
from tests.tiny_models import TEXTS


class Mapping:
    """`trace-transfer map` on two tiny models, one argument of it wrong."""

    def __init__(self, source: Path, target: Path, directory: Path) -> None:
        self.source, self.target, self.out = source, target, directory / "out"
        self.probe = directory / "texts.jsonl"
        self.probe.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))

    def arguments(self, *more: str | Path, **changes: str | Path) -> list[str]:
        given = {"src": self.source, "dst": self.target, "probe": self.probe, "out": self.out, **changes}
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return ["map", *options, "--no-cache", *map(str, more)]

    def run(self, *more: str | Path, **changes: str | Path) -> Result:
        return run(*self.arguments(*more, **changes))

    def refused(self, *more: str | Path, **changes: str | Path) -> str:
        """The one message; nothing is written."""
        stderr = refused(*self.arguments(*more, **changes))
        assert stderr.lower().count("error: ") == 1
        assert not self.out.is_dir() or list(self.out.iterdir()) == []
        return stderr.partition("rror: ")[2].strip()


@pytest.fixture
def mapping(tiny, tmp_path) -> Mapping:
    return Mapping(tiny("llama"), tiny("qwen3"), tmp_path)


def test_the_right_input_is_not_refused(mapping, tmp_path):
    core = write_core(mapping.source, tmp_path / "math.core.json")
    result = mapping.run("--core", core)
    assert result.exit_code == 0, result.output
    assert {file.name for file in mapping.out.iterdir()} == {
        "layer_match.json", "similarity.safetensors", "correspondence.json", "math.core.json", "heatmap.html",
        "heatmap.png",
    }  # fmt: skip


# ---- models


def test_a_target_is_refused_before_the_source_is_read(mapping, copy_of, tmp_path):
    directory = copy_of("gpt2")
    (file := sorted(directory.glob("*.safetensors"))[0]).unlink()
    message = mapping.refused(dst=directory)
    assert message.endswith(f"weight files cannot be used, have them downloaded again:\n  - {file.name}: missing")
    assert "reading" not in mapping.run(dst=directory).stderr
    assert mapping.run("--dry-run", dst=directory).exit_code == 2
    assert mapping.refused(src=tmp_path / "none") == f"{tmp_path / 'none'}: no such file or directory"
    (tmp_path / "empty").mkdir()
    assert "no config.json (and no GGUF file); is it a model?" in mapping.refused(src=tmp_path / "empty")


def test_a_hub_that_cannot_be_reached(mapping):
    """In a process of its own, which is not told to be offline."""
    done = subprocess.run(
        [sys.executable, "-m", "trace_transfer", *mapping.arguments(src="nobody/nothing")], capture_output=True,
        text=True, timeout=120, env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    told = "error: nobody/nothing: no such directory, and its config could not be had from the hub ("
    assert done.stderr.startswith(told)


# ---- core files


def test_core_files_of_another_model(mapping, tiny, tmp_path):
    """All that do not fit are named."""
    swapped = write_core(mapping.target, tmp_path / "math.core.json")
    other = write_core(tiny("qwen2"), tmp_path / "law.core.json", task="law")
    both = mapping.refused("--core", swapped, "--core", other)
    assert all(f"  - {file}: made for another model: " in both for file in (swapped, other))
    one, two = (write_core(mapping.source, tmp_path / name) for name in ("one.json", "two.json"))
    assert "core files of the same task would overwrite each other" in mapping.refused("--core", one, "--core", two)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "trace-transfer/layer-match"}, "format 'trace-transfer/layer-match', expected trace-transfer/core"),
        (
            {"parameters": [{"name": "a", "shape": [2], "core": "yes"}, {"name": "b", "shape": [-2]}]},
            "2 problems:\n  - parameters.0.core (a): Input should be a valid boolean; found 'yes'\n"
            "  - parameters.1.shape.0 (b): Input should be greater than or equal to 1; found -2",
        ),
        ({"parameters": [{"name": "model.layers.77.x", "shape": [1]}]}, "does not have:\n  - model.layers.77.x"),
    ],
)
def test_a_core_file_that_is_wrong(mapping, tmp_path, fields, message):
    core = write_core(mapping.source, tmp_path / "math.core.json")
    core.write_text(json.dumps({**json.loads(core.read_text()), **fields}))
    assert message in mapping.refused("--core", core)


# ---- output and options


def test_an_output_that_is_an_input(mapping, tmp_path, copy_of):
    """Under whatever name; nothing of it changes."""
    (tmp_path / "found").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "found")
    core = write_core(mapping.source, tmp_path / "found/math.core.json", task="math")
    before = core.read_bytes()
    message = mapping.refused("--core", core, "--dry-run", out=tmp_path / "link")
    assert message == f"{tmp_path / 'link' / core.name}: is an input as well; name another --out"
    assert core.read_bytes() == before
    model = copy_of("llama")
    files = sorted(model.iterdir())
    assert mapping.refused(src=model, out=model) == f"{model}: is an input as well; name another --out"
    assert sorted(model.iterdir()) == files
