"""What is printed: every character seen and none obeyed, within the terminal's width."""

import io
import sys

from trace_transfer.printable import guard, guarded_streams, printable
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
