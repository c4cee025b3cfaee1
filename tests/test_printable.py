"""What is printed: every character seen and none obeyed, within the terminal's width."""

import io
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from trace_transfer.cli import main
from trace_transfer.printable import guard, guarded_streams, printable
from trace_transfer.reporting.report import again
from trace_transfer.terminal import console

HOSTILE = "a\x1b[2J\x07\r\x9b31m\u202eb\u2028error: [red]:bomb:\udcff\x7f"
SHOWN = r"a\x1b[2J\x07\r\x9b31m\u202eb\u2028error: [red]:bomb:\udcff\x7f"


def test_nothing_is_obeyed_and_all_is_seen():
    assert printable(HOSTILE) == SHOWN
    assert printable("größer → 模型 🙂\tx\r\ny\n") == "größer → 模型 🙂\tx\ny\n"


def test_streams_and_consoles_are_guarded(monkeypatch):
    raw = {name: io.StringIO() for name in ("stdout", "stderr")}
    for name, stream in raw.items():
        monkeypatch.setattr(sys, name, stream)
    with guarded_streams():
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
        console().print(HOSTILE, soft_wrap=True)
        console(stderr=True).print(HOSTILE, soft_wrap=True)
        assert guard(sys.stdout) is sys.stdout
    assert sys.stdout is raw["stdout"]
    for stream in raw.values():
        assert printable(stream.getvalue()) == stream.getvalue() and r"a\x1b[2J" in stream.getvalue()


COMMANDS = (
    ["inspect", HOSTILE], ["map", "--src", HOSTILE, "--dst", HOSTILE], ["select", HOSTILE, "--ratio", HOSTILE],
    ["export", HOSTILE, "--to", HOSTILE], ["rules", "check", HOSTILE], [HOSTILE], [f"--{HOSTILE}"],
)  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments).split("a\x1b")[0] or "none")
def test_no_command_prints_a_name_raw(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.exception
    assert printable(result.output) == result.output and result.output


def test_the_commands_of_a_report_are_pasted_as_they_are(tmp_path):
    import shlex

    place = tmp_path / "it's a study"
    run = SimpleNamespace(settings={"run_file": "../-my run.yaml"})
    lines = again(SimpleNamespace(record=run, directory=place / "$out")).splitlines()
    assert [shlex.split(line) for line in lines] == [
        ["cd", str(place)],
        ["trace-transfer", "run", "./-my run.yaml", "--out", "$out"],
        ["trace-transfer", "report", "$out"],
    ]
