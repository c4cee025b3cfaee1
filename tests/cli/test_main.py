"""The command line as a contract: options, help, exit codes, streams, and what is not imported."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.commands import run
from tests.core_files import write_core
from tests.tiny_models import TEXTS
from trace_transfer import map_models
from trace_transfer.cli import COMMANDS, main
from trace_transfer.models.checkpoints import SafetensorsCheckpoint

HEAVY = (
    "torch", "transformers", "accelerate", "safetensors", "deepspeed", "pydantic", "scipy", "plotly", "matplotlib",
    "rich", "yaml", "huggingface_hub", "tokenizers", "gguf", "networkx", "datasets",
)  # fmt: skip


# ---- what is imported

HELP = (["--help"], ["--version"], ["mop"], ["rules", "--help"], ["inspect", "--help"], ["map", "--help"])


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom trace_transfer.cli import main\n"
        f"for arguments in {HELP}:\n"
        "    try:\n        main(arguments)\n"
        "    except SystemExit as done:\n"
        f"        print('=', done.code, *sorted({{*sys.modules}} & {{*{HEAVY}}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Did you mean 'map'?" in done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("= ")]
    assert told == ["= 0", "= 0", "= 2", "= 0", "= 0", "= 0 pydantic"]  # of which the options of `map` are made


def test_map_imports_no_deepspeed_and_keeps_stdout_clean(tiny, probe, tmp_path):
    given = ["map", "--src", tiny("llama"), "--dst", tiny("gpt2"), "--probe", probe, "--out", tmp_path / "out"]
    code = (
        "import atexit, sys\natexit.register(lambda: print('MODULES', *sys.modules, file=sys.stderr))\n"
        "from trace_transfer.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, *map(str, given), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True)
    stderr, _, modules = done.stderr.partition("MODULES ")
    assert done.returncode == 0, stderr
    assert "torch" in modules.split() and not {"deepspeed", "datasets"} & set(modules.split())
    assert done.stdout.lstrip().startswith("llama (4 layers) → gpt2 (3 layers)")
    assert f"\nopen: {tmp_path / 'out' / 'heatmap.html'}\nnext: trace-transfer identify " in done.stdout
    assert "reading llama" in stderr and "reading" not in done.stdout
    assert "warn" not in stderr.lower() and "\x1b" not in done.stdout + stderr


# ---- options


def commands() -> list[tuple[str, click.Command]]:
    found = []
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        found.append((name, command))
        found += [(f"{name} {inner}", one) for inner, one in getattr(command, "commands", {}).items()]
    return found


@pytest.mark.parametrize(("name", "command"), commands())
def test_everything_has_help(name, command):
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.rstrip().endswith((".", ")")), option.name
    short = run(*name.split(), "--help")
    assert short.exit_code == 0
    lines = short.stdout.splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) <= 50  # a screen
    long = run(*name.split(), "--help-all") if "--help-all" in short.stdout else short
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    assert [one.opts for one in options if one.opts[0] not in long.stdout] == []


# ---- map


@pytest.fixture
def probe(tmp_path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def counted(monkeypatch) -> list[str]:
    """The names of all tensors loaded from now on."""
    loaded: list[str] = []
    load = SafetensorsCheckpoint.load

    def noting(self, model, wanted, device, dtype):
        loaded.extend(name for name, _ in model.named_parameters() if wanted(name))
        return load(self, model, wanted, device, dtype)

    monkeypatch.setattr(SafetensorsCheckpoint, "load", noting)
    return loaded


def test_another_match_reads_no_weights(tiny, probe, tmp_path, monkeypatch):
    given = ["map", "--src", tiny("llama"), "--dst", tiny("qwen3"), "--probe", probe, "--cache", tmp_path / "cache"]
    loaded = counted(monkeypatch)
    first = run(*given, "--out", tmp_path / "one")
    assert first.exit_code == 0, first.output
    assert len(loaded) == 39 + 58 - 4  # all but the embeddings, of which rows are read, and the heads
    loaded.clear()
    others = ["--match", "argmax", "--similarity", "cka", "--representation", "stream"]
    second = run(*given, "--out", tmp_path / "two", *others)
    assert second.exit_code == 0, second.output
    assert loaded == []
    assert "llama: activations of this probe set are cached\nqwen3: activations" in second.stderr
    for change in (["--rows", "word"], ["--seed", "1"]):
        loaded.clear()
        assert run(*given, "--out", tmp_path / "three", *change).exit_code == 0
        assert loaded, change


def test_python_and_the_command_line_write_the_same(tiny, probe, tmp_path):
    core = write_core(tiny("mistral"), tmp_path / "law.core.json", task="law")
    more = ["--match", "argmax", "--ratio", "0.2", "--no-cache"]
    given = ["map", "--src", tiny("mistral"), "--dst", tiny("olmo2"), "--core", core, "--probe", probe]
    assert run(*given, "--out", tmp_path / "cli", *more).exit_code == 0
    result = map_models(
        str(tiny("mistral")), str(tiny("olmo2")), core=[core], out=tmp_path / "api", probe=str(probe), match="argmax",
        ratio=0.2, cache=None,
    )  # fmt: skip
    assert {file.name for file in result.files} == {file.name for file in (tmp_path / "cli").iterdir()}
    for file in result.files:
        assert file.read_bytes() == (tmp_path / "cli" / file.name).read_bytes(), file.name
