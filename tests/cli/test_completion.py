"""Completion in the shell: commands, options and their values; the scripts that the documentation names; light."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.documents import ROOT, commands
from trace_transfer.cli import COMMANDS

PAGE = ROOT / "docs" / "howto" / "install.md"
START = "from trace_transfer.cli import main; main(prog_name='trace-transfer')"


def asked(instruction: str, words: str = "", current: int = 0, code: str = START) -> subprocess.CompletedProcess[str]:
    asked = {"_TRACE_TRANSFER_COMPLETE": instruction, "COMP_WORDS": words, "COMP_CWORD": str(current)}
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, cwd=ROOT
    )


def completed(words: str) -> list[str]:
    """What bash is offered for the last word."""
    done = asked("bash_complete", words, len(words.split(" ")) - 1)
    assert done.returncode == 0, done.stderr
    return [line.partition(",")[2] for line in done.stdout.split()]


def test_commands_are_completed():
    assert completed("trace-transfer ") == list(COMMANDS)
    assert completed("trace-transfer ma") == ["map"]
    assert completed("trace-transfer patch re") == ["revert"]
    assert completed("trace-transfer st") == []  # `step` is started by others


def test_options_and_their_values_are_completed():
    assert completed("trace-transfer map --ma") == ["--match", "--max-length"]
    assert completed("trace-transfer map --match co") == ["coverage"]
    assert completed("trace-transfer train --zero 3 --method t") == ["trace"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_with_the_script(tmp_path):
    """The whole way: the page's line in a shell that finds the program, then a word and its completions."""
    program = tmp_path / "trace-transfer"
    program.write_text(f"#!{sys.executable}\nfrom trace_transfer.cli import main\nmain()\n")
    program.chmod(0o755)
    (line,) = [one.text for one in commands(PAGE) if one.text.startswith("echo 'eval") and "bash_source" in one.text]
    script = line.split("'")[1] + (
        "\nCOMP_WORDS=(trace-transfer rep); COMP_CWORD=1; _trace_transfer_completion trace-transfer\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["report", "represent"]
