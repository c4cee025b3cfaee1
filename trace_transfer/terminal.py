"""The one maker of consoles, and what they are given: texts and tables within a width, nothing in them obeyed."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from trace_transfer.printable import printable, unguarded, width

PLAIN = str.maketrans({"→": "->", "↓": "v", "…": "...", "●": "O", "○": "o", "█": "#", "▒": "+", "·": "."})
GAP = 2  # columns between those of a table
TOKEN = re.compile(r"[\d.,]+ [kMGT]?B\b|(?:\[[^\]\n]*\]|\S)+")  # a word; an interval and a size are one
PART = re.compile(r"[^./_-]*[./_-]+|[^./_-]+")  # of a name that is too long


class _Console(Console):
    """A console that shows control characters, markup and emoji codes of what it prints instead of obeying them."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """Standard output, as wide as `width` says, or standard error, as wide as it is."""
    stream = unguarded(sys.stderr if stderr else sys.stdout)
    columns = None if stderr else width()
    return _Console(file=stream, width=columns, markup=False, highlight=False, emoji=False)


def drawn(draw: Callable[[Page], None], columns: int | None = None) -> str:
    """What is drawn on a page without colours, as text."""
    buffer = io.StringIO()
    plain = _Console(
        file=buffer, width=columns or width(), color_system=None, markup=False, highlight=False, emoji=False
    )
    draw(Page(plain))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


class Page:
    """A console that takes every text as it is (no markup), in ASCII where it can do no more.

    Args:
        columns: another width than the console's own.
    """

    def __init__(self, console: Console, columns: int | None = None) -> None:
        if columns is not None:
            console.width = columns
        self.console = console
        self.width = console.width
        self.colour = console.color_system is not None and not console.no_color

    def text(self, text: str, style: Style | str = "") -> Text:
        text = printable(text)
        return Text(text.translate(PLAIN) if self.console.options.ascii_only else text, style)

    def line(self, text: str = "", style: str = "") -> None:
        self.console.print(self.text(text, style), highlight=False)

    def whole(self, text: str) -> None:
        """A line that is copied, such as a path: never broken."""
        self.console.print(self.text(text), highlight=False, soft_wrap=True)

    def written(self, files: Iterable[object]) -> None:
        """Where the results are."""
        self.line()
        self.line("written:")
        for file in files:
            self.whole(f"  {file}")

    def row(self, parts: Iterable[tuple[str, Style | str]]) -> None:
        """A line of a grid, never wrapped."""
        line = Text().join(self.text(text, style) for text, style in parts)
        if not self.colour:
            line.rstrip()
        self.console.print(line, highlight=False, no_wrap=True, overflow="crop")

    def table(self, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> None:
        """Columns are (heading, "left" or "right").

        Cells are broken between words, or between the parts of a name. Columns that do not fit beside each other make
        tables below each other, each with the first column.
        """
        headings = [heading for heading, _ in columns]
        cells = [[self.text(cell).plain for cell in row] for row in (headings, *rows)]
        for number, (chosen, widths) in enumerate(_tables(list(zip(*cells, strict=True)), self.width)):
            if number:
                self.line()
            table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
            for column, size in zip(chosen, widths, strict=True):
                side: JustifyMethod = "right" if columns[column][1] == "right" else "left"
                heading = "\n".join(broken(cells[0][column], size))
                table.add_column(Text(heading), justify=side, width=size, no_wrap=True, overflow="crop")
            for row in cells[1:]:
                shown = ("\n".join(broken(row[c], size)) for c, size in zip(chosen, widths, strict=True))
                table.add_row(*map(Text, shown))
            self.console.print(table, highlight=False)


def _tables(columns: Sequence[Sequence[str]], available: int) -> list[tuple[list[int], list[int]]]:
    """Which columns stand beside each other, and how wide they are."""
    left, found = list(range(len(columns))), []
    while left:
        chosen = left[:]
        while (widths := widths_of([columns[one] for one in chosen], available)) is None and len(chosen) > 2:
            chosen.pop()
        if widths is None:  # a name without parts: it is cut
            first = min(_longest(columns[chosen[0]]), available // 2 if len(chosen) > 1 else available)
            widths = [first, *([available - first - GAP] if len(chosen) > 1 else [])]
        found.append((chosen, widths))
        rest = [one for one in left if one not in chosen]
        left = [0, *rest] if rest else []
    return found


def widths_of(columns: Sequence[Sequence[str]], available: int) -> list[int] | None:
    """Widths at which no word is broken, or no part of a name; None if there are none. Small wishes come first."""
    wanted = [_longest(column) for column in columns]
    for pieces in (_words, _parts):
        widths = [max((cell_len(one) for cell in column for one in pieces(cell)), default=1) for column in columns]
        spare = available - sum(widths) - GAP * (len(widths) - 1)
        if spare < 0:
            continue
        for index in sorted(range(len(widths)), key=lambda index: wanted[index] - widths[index]):
            growth = max(0, min(spare, wanted[index] - widths[index]))
            widths[index] += growth
            spare -= growth
        return widths
    return None


def _longest(column: Sequence[str]) -> int:
    return max(cell_len(line) for cell in column for line in cell.split("\n"))


def _words(cell: str) -> list[str]:
    return TOKEN.findall(cell)


def _parts(cell: str) -> list[str]:
    return [part for word in _words(cell) for part in _parts_of(word)]


def _parts_of(word: str) -> list[str]:
    """Of a name; a number or an interval is whole."""
    return PART.findall(word) if any(letter.isalpha() for letter in word) else [word]


def broken(cell: str, columns: int) -> list[str]:
    """A cell as lines of at most so many columns."""
    lines: list[str] = []
    for paragraph in cell.split("\n"):
        if cell_len(paragraph) <= columns:
            lines.append(paragraph)
            continue
        line = ""
        for word in _words(paragraph):
            pieces = [word] if cell_len(word) <= columns else _parts_of(word)
            for number, piece in enumerate(pieces):
                gap = " " if line and not number else ""
                if cell_len(line + gap + piece) > columns and line:
                    lines.append(line)
                    line, gap = "", ""
                line += gap + piece
                while cell_len(line) > columns:
                    lines.append(line[:columns])
                    line = line[columns:]
        lines.append(line)
    return lines
