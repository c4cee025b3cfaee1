"""The commands as people type them, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from trace_transfer.cli import main


class Undrawn:
    """In the place of `figures.picture`, which takes seconds: its file says of what it would be."""

    def __init__(self, figure: Any) -> None:
        self.title = figure.title

    def savefig(self, file: Path, **_: object) -> None:
        file.write_text(repr(self.title), "utf-8")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def done(*arguments: object) -> Result:
    """A command that ends well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """The message of a user's mistake: exit code 2, nothing on stdout, no traceback."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert isinstance(result.exception, SystemExit) and "Traceback" not in result.stderr
    return result.stderr
