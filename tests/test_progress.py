import io
import threading

import pytest
from rich.console import Console

from trace_transfer.progress import Counted, Lines
from trace_transfer.study.show import Display


def test_a_file_gets_a_line_every_few_seconds(monkeypatch):
    """Whether a step is done meanwhile or not: nobody is to wonder whether it still runs."""
    told, lines = threading.Event(), []

    def write(line: str) -> None:
        lines.append(line)
        told.set()

    with Lines(write, every=0.02).task("warm-start math", 480) as advance:
        assert told.wait(20)
        for number in range(120):
            advance(f"loss {number}.5")
        told.clear()
        assert told.wait(20) and told.clear() is None and told.wait(20)
    assert lines[0] == "warm-start math: step 0 of 480, 0:00:00"
    assert set(lines[2:]) == {"warm-start math: step 120 of 480, 0:00:00, loss 119.5"}
    lines.clear()
    with pytest.raises(ValueError, match="too bad"), Lines(lines.append).task("warm-start math", 480) as advance:
        advance()
        raise ValueError("too bad")
    assert lines == ["warm-start math: step 1 of 480, 0:00:00"]  # how far it came


def test_a_run_in_a_file_says_what_it_does():
    display = Display(every=0.0)
    display.console = Console(file=io.StringIO(), width=40)
    with display.running(12, 3):
        display.begin("a", "train (sequential, seed 0)")
        display.begin("b", "evaluate (random)")
        display.show("a", "at", Counted("training on math", 8, 1, "loss 2.5"))
        display.show("b", "at", "training on code: step 3 of 8")
        display.look()
        display.show("a", "at", None)
        display.end("a", True)
        display.end("b", False)
    assert display.console.file.getvalue().splitlines() == [
        "12 steps to run, 3 were up to date",
        "train (sequential, seed 0): begins",
        "evaluate (random): begins",
        "train (sequential, seed 0): training on math: step 1 of 8, 0:00:00, loss 2.5",
        "evaluate (random): training on code: step 3 of 8",
        "train (sequential, seed 0): done, 0:00:00 (1 of 12 steps)",
    ]
