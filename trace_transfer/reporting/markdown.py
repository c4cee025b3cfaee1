"""A report as Markdown (tables as GitHub reads them): the same sections and numbers, pictures by their paths.

What varies from run to run stands between two comments, `<!-- varies -->` and `<!-- /varies -->`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import singledispatch

from trace_transfer.reporting.blocks import (
    Beside,
    Bullets,
    Cells,
    Code,
    Document,
    Folded,
    Heading,
    Line,
    Paragraph,
    Picture,
    Plots,
    Section,
    Varying,
    spans,
)

BEGIN, END = "<!-- varies -->", "<!-- /varies -->"
SPECIAL = re.compile(r"([\\`*_\[\]<>#|~])")


def markdown(document: Document, to_run: str = "") -> str:
    """The text of the file; the same for the same document.

    Args:
        to_run: what leads from the file to the run's directory, before the paths of pictures.
    """
    document = replace(document, sections=tuple(_moved(section, to_run) for section in document.sections))
    parts = [f"# {escaped(document.title)}", _line(document.lead)]
    parts += [f"> **Note.** {_line(line)}" for line in document.warnings]
    parts += map(_section, document.sections)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section) -> str:
    return "\n\n".join([f"## {escaped(section.title)}", *filter(None, map(block_markdown, section.blocks))])


def _moved(section: Section, to_run: str) -> Section:
    """With pictures as they are found from another directory."""
    if not to_run:
        return section
    blocks = []
    for block in section.blocks:
        if isinstance(block, Plots):
            block = replace(block, pictures=tuple((title, to_run + path) for title, path in block.pictures))
        elif isinstance(block, Picture):
            block = replace(block, path=to_run + block.path)
        blocks.append(block)
    return replace(section, blocks=tuple(blocks))


def escaped(text: str) -> str:
    """Text in which nothing is read as a mark of Markdown's."""
    return SPECIAL.sub(r"\\\1", text)


def _line(line: Line) -> str:
    pieces = []
    for span in spans(line):
        text = f"`{span.text}`" if span.code else escaped(span.text)
        text = f"**{text}**" if span.strong else text
        pieces.append(f"{BEGIN}{text}{END}" if span.varies else text)
    return "".join(pieces)


def _cell(line: Line) -> str:
    return _line(line).replace("\n", "<br>")


@singledispatch
def block_markdown(block: object) -> str:
    """One block as Markdown; empty where it says nothing without being drawn."""
    raise TypeError(f"no block of a report: {block!r}")


@block_markdown.register
def _(block: Heading) -> str:
    return f"{'#' * (block.level + 2)} {escaped(block.text)}"


@block_markdown.register
def _(block: Paragraph) -> str:
    return ("> **Note.** " if block.kind == "warning" else "") + _line(block.line)


@block_markdown.register
def _(block: Bullets) -> str:
    return "\n".join(f"- {_line(line)}" for line in block.lines)


@block_markdown.register
def _(block: Cells) -> str:
    names = {*range(block.left), *block.texts}
    rule = ["---" if column in names else "---:" for column in range(len(block.headings))]
    rows = [[_cell(line) for line in block.headings], rule, *([_cell(line) for line in row] for row in block.rows)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{escaped(block.caption)}\n\n{table}" if block.caption else table


@block_markdown.register
def _(block: Beside) -> str:
    return "\n\n".join(map(block_markdown, block.tables))


@block_markdown.register
def _(block: Plots) -> str:
    if not block.pictures:
        return ""
    return "\n\n".join(
        [*(f"![{escaped(title)}]({_url(path)})" for title, path in block.pictures), _line(block.caption)]
    )


@block_markdown.register
def _(block: Picture) -> str:
    return f"![{escaped(block.title)}]({_url(block.path)})"


def _url(path: str) -> str:
    return f"<{path}>" if " " in path or "(" in path else path


@block_markdown.register
def _(block: Code) -> str:
    longest = max((len(found) for found in re.findall("`{3,}", block.text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}\n{block.text.rstrip()}\n{fence}"


@block_markdown.register
def _(block: Folded) -> str:
    return "\n\n".join([f"**{escaped(block.title)}**", *filter(None, map(block_markdown, block.blocks))])


@block_markdown.register
def _(block: Varying) -> str:
    return "\n\n".join([BEGIN, *filter(None, map(block_markdown, block.blocks)), END])
