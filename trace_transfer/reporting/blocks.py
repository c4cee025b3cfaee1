"""What a report is made of, whatever it is written as: sections of paragraphs, tables, plots and pictures.

`varies` marks what another run of the same settings gives otherwise: times, memory, the machine. All the rest is the
same for the same files, and a reader of two reports can leave out what varies and compare them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Span:
    """A piece of a line."""

    text: str
    strong: bool = False
    code: bool = False
    varies: bool = False


Line = str | Span | tuple[str | Span, ...]


def spans(line: Line) -> tuple[Span, ...]:
    """A line as its pieces."""
    pieces = line if isinstance(line, tuple) else (line,)
    return tuple(piece if isinstance(piece, Span) else Span(piece) for piece in pieces)


def plain(line: Line) -> str:
    """A line without its marks."""
    return "".join(span.text for span in spans(line))


def varying(text: str) -> Span:
    return Span(text, varies=True)


def strong(text: str) -> Span:
    return Span(text, strong=True)


def code(text: str) -> Span:
    return Span(text, code=True)


@dataclass(frozen=True)
class Heading:
    """A heading inside a section; `level` 1 is the next below the section's own."""

    text: str
    level: int = 1


@dataclass(frozen=True)
class Paragraph:
    """`note` for what is of less weight, `warning` for what a reader must not miss."""

    line: Line
    kind: Literal["plain", "note", "warning", "answer"] = "plain"


@dataclass(frozen=True)
class Bullets:
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Cells:
    """A table.

    Attributes:
        left: how many columns, from the first, are names: aligned to the left, and headings of their rows.
        tints: (row, column) → how good a value is within its scale, from 0 to 1; such a cell is coloured.
        texts: columns that hold text, aligned to the left, beside the first `left`.
    """

    caption: str
    headings: tuple[Line, ...]
    rows: tuple[tuple[Line, ...], ...]
    left: int = 1
    tints: Mapping[tuple[int, int], float] = field(default_factory=dict)
    texts: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.headings)]:
            raise ValueError(f"{self.caption}: a row of {len(wrong[0])} cells below {len(self.headings)} headings")


@dataclass(frozen=True)
class Beside:
    """Small tables that stand beside each other where there is room."""

    tables: tuple[Cells, ...]


@dataclass(frozen=True)
class Plot:
    """An interactive figure: plotly's `data` and `layout`; sizes in px."""

    title: str
    spec: dict[str, Any]
    height: int
    width: int = 1080
    least_width: int = 560


@dataclass(frozen=True)
class Plots:
    """Figures of one kind of which one is shown at a time, chosen by buttons; Markdown shows `pictures` instead."""

    id: str
    caption: Line
    choices: tuple[Plot, ...]
    pictures: tuple[tuple[str, str], ...] = ()  # (title, path of a PNG relative to the report)


@dataclass(frozen=True)
class Picture:
    """A PNG, held in the page; Markdown links to `path`, relative to the report."""

    title: str
    path: str
    png: bytes


@dataclass(frozen=True)
class Code:
    """Lines that are copied as they are."""

    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks behind a line that opens them."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Varying:
    """Blocks that vary from run to run."""

    blocks: tuple[Block, ...]


Block = Heading | Paragraph | Bullets | Cells | Beside | Plots | Picture | Code | Folded | Varying


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report: `lead` below its title, `warnings` before everything else."""

    title: str
    lead: Line
    warnings: tuple[Line, ...]
    sections: tuple[Section, ...]
