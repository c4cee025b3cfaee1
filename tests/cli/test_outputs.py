"""Outputs that cannot be made are refused before anything else is looked at: commands x kinds of bad output."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from trace_transfer.cli import main

DIRECTORY = {
    "run": ["run", "none.yaml"],
    "identify": ["identify", "none", "--tasks", "none.yaml"],
    "select": ["select", "none.core.json"],
    "map": ["map", "--src", "none", "--dst", "none"],
    "train": ["train", "none", "--stream", "none.yaml"],
    "evaluate": ["evaluate", "none"],
    "patch apply": ["patch", "apply", "none", "none.patch"],
}
FILE = {
    "export": ["export", "none.core.json", "--to", "regex"],
    "import": ["import", "none", "--from", "axolotl", "--model", "none", "--task", "math"],
    "patch diff": ["patch", "diff", "none", "none"],
    "verify": ["verify", "none", "none"],
}


def bad_outputs(directory: Path) -> dict[str, tuple[str, str]]:
    """Kind → the output, and a part of what is said of it."""
    (directory / "file").write_text("")
    return {
        "name too long": (str(directory / ("n" * 300)), "too long"),
        "below a file": (str(directory / "file" / "out"), "is a file, expected a directory"),
        "not writable": ("/proc/self/out", "cannot be written"),
    }


@pytest.mark.parametrize("command", [*DIRECTORY, *FILE])
def test_refused_before_the_work(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = bad_outputs(tmp_path)
    if command in DIRECTORY:
        outputs["a file"] = (str(tmp_path / "file"), "is a file, expected a directory")
    else:
        outputs["a directory"] = (str(tmp_path), "is a directory, expected a file")
    before = sorted(tmp_path.iterdir())
    for kind, (output, said) in outputs.items():
        option = "--json" if command == "verify" else "--out"
        arguments = [*(DIRECTORY | FILE)[command], option, output]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, (kind, result.output, result.exception)
        assert isinstance(result.exception, SystemExit), kind
        assert said in " ".join(result.output.split()), (kind, result.output)
    assert sorted(tmp_path.iterdir()) == before
