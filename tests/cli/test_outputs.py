"""Outputs that cannot be made are refused before anything else is looked at."""

from pathlib import Path

import click
import pytest

from tests.commands import run
from trace_transfer.cli import COMMANDS, main
from trace_transfer.cli.options import OutPath


def outputs() -> list[str]:
    """Commands with an option for what they write, of which each is of the type that looks at it."""
    found = []
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        for inner, one in getattr(command, "commands", {"": command}).items():
            options = [option for option in one.params if option.name in ("out", "json_file")]
            assert all(isinstance(option.type, OutPath) for option in options), (name, inner)
            found += [f"{name} {inner}".strip()] * len(options)
    return found


@pytest.mark.parametrize(
    ("command", "a_directory"),
    [(["map", "--src", "none", "--dst", "none"], True), (["patch", "diff", "a", "b"], False)],
)
def test_refused_before_the_work(command, a_directory, tmp_path, monkeypatch):
    assert len(outputs()) == 19
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("directory").mkdir()
    bad = {"file/out": "is a file, expected a directory", "/proc/self/out/x": "cannot be written"}
    bad |= {"file": "is a file", "n" * 300: "too long"} if a_directory else {"directory": "is a directory"}
    for output, said in bad.items():
        result = run(*command, "--out", output)
        assert result.exit_code == 2 and isinstance(result.exception, SystemExit), output
        assert said in " ".join(result.output.split()), output
    assert sorted(tmp_path.iterdir()) == [tmp_path / "directory", tmp_path / "file"]
