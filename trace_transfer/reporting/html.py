"""A report as one HTML page that needs nothing else: styles, script, plotly.js, numbers and pictures are inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import singledispatch
from html import escape

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
    plain,
    spans,
)
from trace_transfer.reporting.page import PAGE, SCRIPT, STYLE

MOST_BUTTONS = 6
# Worst to best: one hue that grows darker, which is told apart by everybody and in grey.
PALE, DEEP = (239, 246, 252), (8, 69, 133)


def page(document: Document) -> str:
    """The text of the page; the same for the same document."""
    from plotly.offline import get_plotlyjs

    contents = "\n".join(
        f'<li><a href="#{section.id}">{escape(section.title)}</a></li>' for section in document.sections
    )
    return PAGE.substitute(
        title=escape(document.title),
        style=STYLE,
        lead=_line(document.lead),
        warnings="\n".join(f'<p class="warning" role="note">{_line(line)}</p>' for line in document.warnings),
        contents=contents,
        sections="\n".join(map(_section, document.sections)),
        plotly=get_plotlyjs(),
        script=SCRIPT,
    )


def _section(section: Section) -> str:
    blocks = "\n".join(map(block_html, section.blocks))
    return f'<section id="{section.id}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>'


def _line(line: Line) -> str:
    pieces = []
    for span in spans(line):
        text = escape(span.text, quote=False).replace("\n", "<br>")
        for wanted, tag in ((span.code, "code"), (span.strong, "strong")):
            text = f"<{tag}>{text}</{tag}>" if wanted else text
        pieces.append(f'<span class="varies">{text}</span>' if span.varies else text)
    return "".join(pieces)


@singledispatch
def block_html(block: object) -> str:
    """One block as HTML."""
    raise TypeError(f"no block of a report: {block!r}")


@block_html.register
def _(block: Heading) -> str:
    return f"<h{block.level + 2}>{escape(block.text)}</h{block.level + 2}>"


@block_html.register
def _(block: Paragraph) -> str:
    kind = "" if block.kind == "plain" else f' class="{block.kind}"'
    return f"<p{kind}>{_line(block.line)}</p>"


@block_html.register
def _(block: Bullets) -> str:
    return "<ul>\n" + "\n".join(f"<li>{_line(line)}</li>" for line in block.lines) + "\n</ul>"


@block_html.register
def _(block: Cells) -> str:
    def cell(row: int, column: int, line: Line) -> str:
        if column < block.left:
            return f'<th scope="row">{_line(line)}</th>'
        style = _tint(block.tints[row, column]) if (row, column) in block.tints else ""
        kind = ' class="text"' if column in block.texts else ""
        return f"<td{kind}{style}>{_line(line)}</td>"

    def heading(column: int, line: Line) -> str:
        kind = ' class="text"' if column < block.left or column in block.texts else ""
        return f'<th scope="col"{kind}>{_line(line)}</th>'

    head = "".join(heading(column, line) for column, line in enumerate(block.headings))
    body = "\n".join(
        "<tr>" + "".join(cell(number, column, line) for column, line in enumerate(row)) + "</tr>"
        for number, row in enumerate(block.rows)
    )
    caption = f"<caption>{escape(block.caption)}</caption>\n" if block.caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>\n{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _tint(share: float) -> str:
    """Background and ink of a cell, with enough contrast between them at any share."""
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(PALE, DEEP, strict=True))
    return f' style="background:#{red:02x}{green:02x}{blue:02x};color:{"#fff" if share > 0.5 else "#111"}"'


@block_html.register
def _(block: Beside) -> str:
    return '<div class="beside">\n' + "\n".join(map(block_html, block.tables)) + "\n</div>"


@block_html.register
def _(block: Plots) -> str:
    largest = max(choice.height for choice in block.choices)
    widest, least = (max(getattr(choice, name) for choice in block.choices) for name in ("width", "least_width"))
    choose = _choose([choice.title for choice in block.choices]) if len(block.choices) > 1 else ""
    specs = [
        {"title": choice.title, "height": choice.height, "width": choice.width, **choice.spec}
        for choice in block.choices
    ]
    text = json.dumps(specs, ensure_ascii=False, sort_keys=True, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<figure id="{block.id}">\n{choose}'
        f'<div class="scroll" tabindex="0"><div class="plot" role="img" aria-label="{escape(plain(block.caption))}" '
        f'style="height:{largest}px;max-width:{widest}px;min-width:{least}px"></div></div>\n'
        f"<figcaption>{_line(block.caption)}</figcaption>\n"
        f'<script type="application/json">{text}</script>\n</figure>'
    )


def _choose(titles: Sequence[str]) -> str:
    """Buttons, or a list where they would be a wall."""
    if len(titles) > MOST_BUTTONS:
        options = "".join(f'<option value="{number}">{escape(title)}</option>' for number, title in enumerate(titles))
        return f'<p class="choose"><label>Shown: <select>{options}</select></label></p>\n'
    buttons = "".join(
        f'<button type="button" data-choice="{number}" aria-pressed="{str(not number).lower()}">'
        f"{escape(title)}</button>"
        for number, title in enumerate(titles)
    )
    return f'<div class="choose" role="group" aria-label="Which is shown">{buttons}</div>\n'


@block_html.register
def _(block: Picture) -> str:
    data = base64.b64encode(block.png).decode()
    return (
        f'<figure><h4>{escape(block.title)}</h4>\n<div class="scroll" tabindex="0">'
        f'<img alt="{escape(block.title)}" src="data:image/png;base64,{data}"></div></figure>'
    )


@block_html.register
def _(block: Code) -> str:
    return f"<pre><code>{escape(block.text, quote=False)}</code></pre>"


@block_html.register
def _(block: Folded) -> str:
    blocks = "\n".join(map(block_html, block.blocks))
    return f"<details>\n<summary>{escape(block.title)}</summary>\n{blocks}\n</details>"


@block_html.register
def _(block: Varying) -> str:
    return '<div class="varies">\n' + "\n".join(map(block_html, block.blocks)) + "\n</div>"
