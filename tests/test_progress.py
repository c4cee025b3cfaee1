import io

import pytest
from rich.console import Console

from trace_transfer.progress import Silent, Terminal


@pytest.fixture
def shown(monkeypatch):
    def run(terminal: bool, steps: int) -> str:
        out, reporter = io.StringIO(), Terminal()
        reporter.console = Console(file=out, force_terminal=terminal, width=120)
        with reporter.task("training on [math]", steps) as advance:
            for number in range(steps - 1):
                advance(f"loss {number}.5 · 5.1k tokens/s [x]")
            advance()
        return out.getvalue()

    return run


def test_a_file_gets_one_line_however_many_steps(shown):
    text = shown(terminal=False, steps=500)
    assert len(text.strip().splitlines()) == 1
    assert "training on" in text
    assert "500/500" in text


def test_the_status_is_seen_in_the_bar(shown, monkeypatch):
    from rich.progress import Progress

    seen = []
    update = Progress.update
    monkeypatch.setattr(Progress, "update", lambda self, *a, **k: (update(self, *a, **k), seen.append(k["status"]))[0])
    assert "2/2" in shown(terminal=True, steps=2)
    assert seen == ["loss 0.5 · 5.1k tokens/s [x]", ""]


def test_silent_takes_a_status_too():
    with Silent().task("training", 2) as advance:
        assert (advance(), advance("loss 1")) == (None, None)
