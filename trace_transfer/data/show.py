"""One example of each task as the model reads it, with what is learned between brackets, and notes on its data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trace_transfer.data.examples import TaskData


Pieces = Iterable[tuple[str, bool]]  # texts, and whether each is marked
LONGEST = 240  # characters of a piece that are shown, half from either end
OPEN, CLOSE, BREAK = "⟦", "⟧", "⏎"


def example_lines(tasks: Iterable[TaskData]) -> list[str]:
    """Lines for a plan: of each task its first example, and what was left out of its data."""
    lines = []
    for task in tasks:
        if not task.shown:
            continue
        lines += ["", *pieces_lines(f"{task.examples[0].id} as the model reads it", task.shown, "what is learned")]
        lines += note_lines([task])
    return lines


def pieces_lines(heading: str, pieces: Pieces, marked: str) -> list[str]:
    """A text in pieces below a heading; `marked` says what those between brackets are."""
    text = "".join(f"{OPEN}{visible(one)}{CLOSE}" if is_marked else visible(one) for one, is_marked in pieces)
    lines = [f"  {line}" for line in text.replace(BREAK, BREAK + "\n").split("\n") if line]
    return [f"{heading}; {OPEN}{marked}{CLOSE}, {BREAK} a line break:", *lines]


def note_lines(tasks: Iterable[TaskData]) -> list[str]:
    """What was left out of tasks' data, or is otherwise than it looks."""
    return [f"! {task.task}: {note}" for task in tasks for note in task.notes]


def visible(text: str) -> str:
    """A text without what a terminal would obey, its middle left out where it is long."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} […] {text[-LONGEST // 2 :]}"
    return "".join(
        BREAK if character == "\n" else character if character.isprintable() else ascii(character)[1:-1]
        for character in text
    )
