"""Tables as data, and as Markdown, as text for a terminal, or as CSV.

In CSV a mean, its low and its high are columns of their own, not rounded.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from trace_transfer.pages import Markdown, escaped
from trace_transfer.terminal import Page, drawn, is_number

NOTHING = "–"


@dataclass(frozen=True)
class Number:
    """A mean and its interval, in the unit of its column; `digits` after the point, or significant ones."""

    value: float
    low: float | None = None
    high: float | None = None
    digits: int = 1
    signed: bool = False
    significant: bool = False

    @property
    def text(self) -> str:
        if self.low is None or self.high is None:
            return self._one(self.value)
        return f"{self._one(self.value)} [{self._one(self.low)}, {self._one(self.high)}]"

    def _one(self, value: float) -> str:
        digits = self.digits
        if self.significant:
            digits = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
        value = round(value, digits) + 0.0  # no −0.0
        return f"{value:{'+' if self.signed and value else ''},.{digits}f}"


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """`name` serves as a file's name; the first columns are words, the others numbers where they hold any."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def to_text(*found: Table) -> str:
    """Plain text as wide as the terminal."""
    return drawn(lambda page: draw_tables(found, page)) + "\n"


def draw_tables(found: Iterable[Table], page: Page) -> None:
    """On a page of the terminal, within its width."""
    for number, table in enumerate(found):
        page.lines([""] * bool(number))
        page.table(table.header, [list(map(_shown, row)) for row in table.rows], table.title)
        page.lines(filter(None, [table.note]))


def to_markdown(table: Table) -> Markdown:
    """A table as GitHub reads them, below its title and its note; numbers stand at the right."""
    cells = [[_shown(cell) for cell in row] for row in table.rows]
    numbers = [n > 0 and any(is_number(row[n]) for row in cells) for n in range(len(table.header))]
    rule = ["---:" if number else "---" for number in numbers]
    lines = [[*map(escaped, table.header)], rule, *([*map(escaped, row)] for row in cells)]
    caption = " ".join(filter(None, (table.title and table.title.rstrip(".") + ".", table.note)))
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return Markdown(f"{escaped(caption)}\n\n{rows}\n" if caption else f"{rows}\n")


def to_csv(table: Table) -> str:
    """One table: a column with intervals becomes three, numbers are not rounded, what is not there is empty."""
    columns = ([row[column] for row in table.rows] for column in range(len(table.header)))
    spread = [any(isinstance(cell, Number) and cell.low is not None for cell in column) for column in columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    headings = ((h, f"{h}: low", f"{h}: high") if s else (h,) for h, s in zip(table.header, spread, strict=True))
    writer.writerow(chain.from_iterable(headings))
    for row in table.rows:
        writer.writerow(chain.from_iterable(_csv_cells(cell, s) for cell, s in zip(row, spread, strict=True)))
    return text.getvalue()


def _csv_cells(cell: Cell, spread: bool) -> tuple[str, ...]:
    if isinstance(cell, str):
        one = "" if cell == NOTHING else cell
        return (one, "", "") if spread else (one,)
    each = (cell.value, cell.low, cell.high) if spread else (cell.value,)
    return tuple("" if value is None else f"{value:.10g}" for value in each)


def _shown(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text  # a str may be Markdown
