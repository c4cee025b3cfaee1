"""What a plan shows of tasks' data: an example with its learned part, readable without colour, and harmless."""

from trace_transfer.data.examples import Example, TaskData
from trace_transfer.data.rendering import example_lines


def task(*pieces, notes=()):
    return TaskData("math", (Example("math:3", (1, 2), (-100, 2)),), 1, 0, 0, "chat", "", tuple(notes), pieces)


def test_what_is_learned_stands_between_brackets():
    lines = example_lines([task(("<user>\nHi\n<bot>\n", False), ("Ho\x1b[2J</s>", True), notes=["columns: id"])])
    assert lines == [
        "", "math:3 as the model reads it; ⟦what is learned⟧, ⏎ a line break:",
        "  <user>⏎", "  Hi⏎", "  <bot>⏎", r"  ⟦Ho\x1b[2J</s>⟧", "! math: columns: id",
    ]  # fmt: skip
    assert example_lines([task()]) == []
