import threading

import pytest

from trace_transfer.progress import Lines


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
