"""Completion in the shell: commands, options and their values; the script that the documentation names."""

import pytest
from click.shell_completion import ShellComplete

from tests.documents import ROOT
from trace_transfer.cli import COMMANDS, main


def completed(words: str) -> list[str]:
    """What a shell is offered for the last word."""
    *before, last = words.split(" ")
    shell = ShellComplete(main, {}, "trace-transfer", "_TRACE_TRANSFER_COMPLETE")
    return [one.value for one in shell.get_completions(before, last)]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("", list(COMMANDS)),  # without `step`, which is started by others
        ("ma", ["map"]),
        ("patch re", ["revert"]),
        ("map --ma", ["--match", "--max-length"]),
        ("map --match co", ["coverage"]),
        ("train --zero 3 --method t", ["trace"]),
    ],
)
def test_commands_options_and_values_are_completed(words, offered):
    assert completed(words) == offered
    assert "_TRACE_TRANSFER_COMPLETE=bash_source trace-transfer" in (ROOT / "docs/howto/install.md").read_text("utf-8")
