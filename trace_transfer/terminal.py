"""The one maker of consoles, and what they are given: texts and tables within a width, nothing in them obeyed."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from trace_transfer.printable import printable, unguarded, width

P = ParamSpec("P")
Shown = str | int | None  # an int as `1,234`, None as `-`

GAP = 2  # columns between those of a table
LONGEST_WORD = 12  # characters before which a word is not broken
NUMBER = re.compile(
    r"[-+<±]? ?\d[\d.,e+-]*( ?(%|[kMGT]?B|s|min|h))?( → [\d.,e+-]+)?( of [\d,]+)?( = [\d.]+%)?( ?[\[(].*)?"
)


class _Console(Console):
    """A console that shows control characters, markup and emoji codes of what it prints instead of obeying them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """Standard output, as wide as `width` says, or standard error, as wide as it is."""
    stream = unguarded(sys.stderr if stderr else sys.stdout)
    return _Console(file=stream, width=None if stderr else width(), markup=False, highlight=False, emoji=False)


def drawn(draw: Callable[[Page], None]) -> str:
    """What is drawn on a page without colours, as text."""
    buffer = io.StringIO()
    draw(Page(_Console(file=buffer, width=width(), color_system=None, markup=False, highlight=False, emoji=False)))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def as_text(draw: Callable[Concatenate[Page, P], None]) -> Callable[P, str]:
    """Makes a function that draws on a page one that gives text as wide as the terminal."""

    @wraps(draw)
    def text(*args: P.args, **kwargs: P.kwargs) -> str:
        return drawn(lambda page: draw(page, *args, **kwargs))

    return text


def is_number(cell: str) -> bool:
    """Whether a text of a table is a number, such as `1.2 [1.0, 1.4]`, `3 of 9` or `2 GB`."""
    return NUMBER.fullmatch(cell) is not None


class Page:
    """A console that takes every text as it is (no markup)."""

    def __init__(self, console: Console) -> None:
        self.console, self.width = console, console.width

    def text(self, text: str, style: str = "") -> Text:
        return Text(printable(text), style, overflow="fold")

    def line(self, text: str = "", style: str = "") -> None:
        """A line, or a warning where it begins with `!`."""
        self.console.print(self.text(text, style or "yellow" * text.startswith("! ")), highlight=False)

    def lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.line(text)

    def whole(self, text: str) -> None:
        """A line that is copied, such as a path: never broken."""
        self.console.print(self.text(text), highlight=False, soft_wrap=True)

    def written(self, files: Iterable[object]) -> None:
        """Where the results are."""
        self.lines(("", "written:"))
        for file in files:
            self.whole(f"  {file}")

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[Shown]], title: str = "") -> None:
        """Numbers stand at the right, intervals below their means where the table is too wide.

        Columns that do not fit beside each other make tables below each other, each with the first column."""
        if title:
            self.line(title, "bold")
        texts = (["-" if one is None else one if isinstance(one, str) else f"{one:,}" for one in row] for row in rows)
        cells = [[self.text(one).plain for one in row] for row in (headings, *texts)]
        columns = [_Column(*column) for column in zip(*cells, strict=True)]
        columns[0].right = all(map(is_number, columns[0].cells))
        narrow = sum(column.wanted + GAP for column in columns) - GAP > self.width
        if narrow:
            for column in columns:
                column.cells = [cell.replace(" [", "\n[") if column.right else cell for cell in column.cells]
        left = columns
        while left:
            beside = left
            while len(beside) > 2 and sum(column.least + GAP for column in beside) - GAP > self.width:
                beside = beside[:-1]
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
            for column in beside:
                size = column.least if narrow and column.right else None  # rich shares the rest among the others
                heading = self.text(column.heading)
                table.add_column(heading, justify="right" if column.right else "left", width=size, overflow="fold")
            for row in zip(*(column.cells for column in beside), strict=True):
                table.add_row(*map(self.text, row))
            self.console.print(table, highlight=False)
            left = [columns[0], *left[len(beside) :]] if len(left) > len(beside) else []
            if left:
                self.line()


class _Column:
    def __init__(self, heading: str, *cells: str) -> None:
        self.heading, self.cells = heading, list(cells)
        self.right = any(map(is_number, cells))

    @property
    def wanted(self) -> int:
        return max(cell_len(line) for cell in (self.heading, *self.cells) for line in cell.split("\n"))

    @property
    def least(self) -> int:
        """A number is never broken."""
        body = [piece for cell in self.cells for piece in (cell.split("\n") if self.right else cell.split())]
        longest = max(map(cell_len, (*self.heading.split(), *body)), default=1)
        return longest if self.right else min(longest, LONGEST_WORD)
