"""What each step of a training did, and `loss.csv`, in which people follow it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from trace_transfer.files import write_text
from trace_transfer.training.errors import TrainingError

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
        ValueError: it is something else.
    """
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or tuple(rows[0]) != HEADER:
        raise ValueError(f"expected the columns {', '.join(HEADER)}")
    kinds = (int, float, float, float, int, int)
    return [Step(*(kind(value) for kind, value in zip(kinds, row, strict=True))) for row in rows[1:]]


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
