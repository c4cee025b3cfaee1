"""What a plan shows of tasks' data: an example with its learned part, readable without colour, and harmless."""

from trace_transfer.data.examples import Example, TaskData
from trace_transfer.data.show import example_lines, visible


def task(*pieces, notes=()):
    return TaskData("math", (Example("math:3", (1, 2), (-100, 2)),), 1, 0, 0, "chat", "", tuple(notes), pieces)


def test_what_is_learned_stands_between_brackets():
    lines = example_lines([task(("<user>\nHi\n<bot>\n", False), ("Ho\x1b[2J</s>", True), notes=["columns: id"])])
    assert lines == [
        "", "math:3 as the model reads it; ⟦what is learned⟧, ⏎ a line break:",
        "  <user>⏎", "  Hi⏎", "  <bot>⏎", r"  ⟦Ho\x1b[2J</s>⟧", "! math: columns: id",
    ]  # fmt: skip
    assert example_lines([task()]) == []


def test_long_pieces_lose_their_middle():
    text = visible("a" * 1000 + "b" * 1000)
    assert len(text) < 300 and text.startswith("aaa") and text.endswith("bbb") and " […] " in text
    assert visible("short\u202e\r") == r"short\u202e\r"
