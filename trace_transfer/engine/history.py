"""What each step of a training did, and `loss.csv`, in which people follow it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from trace_transfer.engine.errors import TrainingError
from trace_transfer.files import write_text
from trace_transfer.text_formats import read_text

FILE = "loss.csv"


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        step: counted from 1.
        loss: mean cross-entropy of the supervised tokens of the global batch before the step, in nats.
        grad_norm: of the whole gradient, before it is clipped.
        tokens: read in this step, padding not counted.
        supervised: tokens that were learned from.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised: int


HEADER = tuple(field.name for field in fields(Step))


def to_csv(steps: Iterable[Step], header: bool = True) -> str:
    """Steps as CSV; numbers are written so that reading gives the same ones back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([*([HEADER] if header else []), *map(astuple, steps)])
    return text.getvalue()


def from_csv(text: str) -> list[Step]:
    """The steps that `to_csv` wrote.

    Raises:
        ValueError: it is something else, or a step is missing between two; tells the line.
    """
    head, *lines = text.split("\n")  # no value needs quotes
    if tuple(head.split(",")) != HEADER:
        raise ValueError(f"line 1: expected the columns {', '.join(HEADER)}")
    if lines[-1:] != [""]:
        raise ValueError(f"line {len(lines) + 1}: is cut short")
    return [_step(line, number) for number, line in enumerate(lines[:-1], start=1)]


def _step(line: str, number: int) -> Step:
    kinds, values = (int, float, float, float, int, int), line.split(",")
    try:
        step = Step(*(kind(value) for kind, value in zip(kinds, values, strict=True)))
    except ValueError as error:
        raise ValueError(f"line {number + 1}: {line!r:.80} is no step; expected {', '.join(HEADER)}") from error
    if step.step != number or not all(map(math.isfinite, astuple(step))):
        raise ValueError(f"line {number + 1}: {line!r:.80}, expected step {number}, and finite numbers")
    return step


def read_csv(file: Path, num_steps: int | None = None) -> list[Step]:
    """The steps of a `loss.csv`.

    Args:
        num_steps: how many there must be, where that is known.

    Raises:
        TrainingError: it cannot be read, is damaged, or has fewer or more; tells the line.
    """
    try:
        steps = from_csv(read_text(file, TrainingError))
    except ValueError as error:
        raise TrainingError(f"{file}: {error}") from error
    if num_steps is not None and len(steps) != num_steps:
        raise TrainingError(f"{file}: has {len(steps)} steps, expected {num_steps}")
    return steps


class Log:
    """`loss.csv` while it grows. What a killed run wrote after its last checkpoint is taken back on starting."""

    def __init__(self, directory: Path, steps: Iterable[Step]) -> None:
        self.steps = list(steps)
        self.path = directory / FILE
        write_text(self.path, to_csv(self.steps))

    def add(self, step: Step) -> None:
        self.steps.append(step)
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(to_csv([step], header=False))
        except OSError as error:
            raise TrainingError(
                f"{self.path}: cannot be written: {error.strerror}; make room and run it again to go on from the last "
                "checkpoint"
            ) from error
