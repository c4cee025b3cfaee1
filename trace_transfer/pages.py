"""Documents for people: Markdown written by a template, and the HTML page made of it, which needs nothing else.

A template writes a value as text, whatever is in it; only `Markdown` is written as it is. The page has what the
Markdown has, and figures of plotly at their places: from `<!-- figure: NAME -->` to `<!-- /figure -->`, where readers
of the Markdown see pictures and a caption. What varies from run to run stands between `<!-- varies -->` and
`<!-- /varies -->`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    import jinja2
    from markdown_it.tree import SyntaxTreeNode

SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&$])")
BEGINNING = re.compile(r"^(\d*)([-+=.)])(?=[\s=-]|$)")  # of a list, a rule or a heading
TAGS = re.compile(r"(</?(?:details|summary)>|<!-- /?varies -->)")
FIGURE, SHADED = re.compile(r"<!-- figure: (\S+) -->"), re.compile(r"<!-- shaded: (\S+) -->")
MOST_BUTTONS = 6
# Worst to best: one hue that grows darker, which is told apart by everybody and in grey.
PALE, DEEP = (239, 246, 252), (8, 69, 133)

Shades = Mapping[tuple[int, int], float]  # (row, column) of a table's body → how good its value is, from 0 to 1


class Markdown(str):
    """Text that is Markdown already."""


def escaped(value: object) -> str:
    """A value as a line of text, in which nothing is a mark of Markdown's."""
    if isinstance(value, Markdown):
        return value
    line = SPECIAL.sub(r"\\\1", " ".join(str(value).split("\n")).strip())
    return BEGINNING.sub(r"\1\\\2", line)


def code(text: object) -> Markdown:
    """Inline code, for a table as well."""
    line = " ".join(str(text).splitlines())
    fence = _fence(line, 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|"))


def fenced(text: str) -> Markdown:
    """Lines that are copied as they are."""
    fence = _fence(text, 3)
    return Markdown(f"{fence}\n{text.rstrip()}\n{fence}")


def _fence(text: str, least: int) -> str:
    return "`" * max(least, *(len(found) + 1 for found in re.findall("`+", text) or [""]))


def picture(title: str, path: str) -> Markdown:
    """A picture by its path from the document."""
    return Markdown(f"![{escaped(title)}]({quote(path)})")


def place(name: str) -> Markdown:
    """The name of a figure or a table where a comment names it."""
    return Markdown(re.sub(r"[^\w-]+", "-", name))


@cache
def _templates(markdown: bool) -> jinja2.Environment:
    import jinja2

    loader = jinja2.PackageLoader("trace_transfer", "templates")
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    if not markdown:
        return jinja2.Environment(loader=loader, autoescape=True, keep_trailing_newline=True, **options)
    environment = jinja2.Environment(loader=loader, autoescape=False, finalize=escaped, **options)
    environment.filters |= {"code": code, "fenced": fenced, "picture": picture, "place": place}
    return environment


def document(template: str, **values: Any) -> str:
    """A Markdown document by a template of `templates/`."""
    text = _templates(True).get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@dataclass(frozen=True)
class Plot:
    """An interactive figure: plotly's `data` and `layout`; sizes in px."""

    title: str
    spec: dict[str, Any]
    height: int
    width: int = 1080
    least_width: int = 560


@dataclass(frozen=True)
class Figures:
    """What a page shows where its Markdown names it.

    Attributes:
        plots: figure → plots of which one is shown at a time.
        shades: table → shades of its cells.
        pictures: path → the PNG that the page holds; other pictures of the Markdown are left out.
    """

    plots: Mapping[str, Sequence[Plot]] = field(default_factory=dict)
    shades: Mapping[str, Shades] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def page(text: str, figures: Figures) -> str:
    """A Markdown document as one HTML page: styles, script, plotly.js, numbers and pictures are inside."""
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode
    from plotly.offline import get_plotlyjs

    # Tags are read so that ours can be let through; the writer shows all others as text.
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    writer = _Writer(figures)
    parts = writer.parts(SyntaxTreeNode(tokens).children)
    templates = _templates(False)
    source = {name: templates.get_template(f"page.{name}").render() for name in ("css", "js")}
    return templates.get_template("page.html.j2").render(
        parts=parts, style=source["css"], script=source["js"], plotly=get_plotlyjs()
    )


@dataclass
class Part:
    """A section of a page, or what stands before the first one."""

    title: str
    html: str = ""

    @property
    def id(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


class _Writer:
    """Writes the nodes of a Markdown document as HTML; nothing but what is written here can stand in a page."""

    def __init__(self, figures: Figures) -> None:
        self.figures = figures
        self.shades: Shades | None = None  # of the next table

    def parts(self, nodes: Sequence[SyntaxTreeNode]) -> list[Part]:
        """The sections, each with its heading of level 2; a paragraph right above a table is its caption."""
        found, caption = [Part("")], ""
        for number, node in enumerate(nodes):
            following = nodes[number + 1].type if number + 1 < len(nodes) else ""
            if node.type == "heading" and node.tag in ("h1", "h2"):
                title = _plain(node)
                if node.tag == "h1":
                    found[0].title = title
                else:
                    found.append(Part(title))
            if node.type == "paragraph" and following == "table":
                caption = self.inside(node)
                continue
            found[-1].html += self.table(node, caption) if node.type == "table" else self.html(node)
            caption = ""
        return found

    def inside(self, node: SyntaxTreeNode) -> str:
        return "".join(map(self.html, node.children))

    def html(self, node: SyntaxTreeNode) -> str:
        match node.type:
            case "text":
                return escape(node.content, quote=False)
            case "softbreak":
                return "\n"
            case "code_inline":
                return f"<code>{escape(node.content, quote=False)}</code>"
            case "fence":
                return f"<pre><code>{escape(node.content, quote=False)}</code></pre>\n"
            case "image":
                return self.image(node)
            case "html_block" | "html_inline":
                return self.tags(node.content)
            case "blockquote":
                return _quoted(self.inside(node))
            case "paragraph" if node.hidden:
                return self.inside(node)
            case "paragraph":
                text = self.inside(node).strip()
                return f"<p>{text}</p>\n" if text else ""
            case "inline":
                return self.inside(node)
            case "strong" | "em" | "heading" | "bullet_list" | "ordered_list" | "list_item":
                return f"<{node.tag}>{self.inside(node)}</{node.tag}>" + ("\n" if node.block else "")
            case other:
                raise ValueError(f"no page is written with a {other} of Markdown")

    def tags(self, text: str) -> str:
        """Our own tags and places as they are, the rest as text."""
        if found := SHADED.match(text):
            self.shades = self.figures.shades[found[1]]
            return ""
        if found := FIGURE.match(text):
            return _figure(found[1], self.figures.plots[found[1]])
        if text.startswith("<!-- /figure -->"):
            return "</figure>\n"
        return "".join(part if TAGS.fullmatch(part) else escape(part, quote=False) for part in TAGS.split(text))

    def image(self, node: SyntaxTreeNode) -> str:
        png = self.figures.pictures.get(unquote(str(node.attrs["src"])))
        if png is None:
            return ""
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        return f'<img alt="{escape(_plain(node))}" src="{source}">'

    def table(self, node: SyntaxTreeNode, caption: str) -> str:
        """The first cell of a row is its heading; shaded tables stand beside each other where there is room."""
        shades, self.shades = self.shades, None
        head, *body = (row for part in node.children for row in part.children)
        rows = ["<tr>" + "".join(self.cell(cell, "col") for cell in head.children) + "</tr>"]
        for number, row in enumerate(body):
            cells = [
                self.cell(cell, "" if column else "row", (shades or {}).get((number, column)))
                for column, cell in enumerate(row.children)
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
        told = f"<caption>{caption}</caption>\n" if caption else ""
        beside = "" if shades is None else " beside"
        return (
            f'<div class="scroll{beside}" tabindex="0"><table>\n{told}<thead>{rows[0]}</thead>\n<tbody>\n'
            + "\n".join(rows[1:])
            + "\n</tbody></table></div>\n"
        )

    def cell(self, node: SyntaxTreeNode, scope: str, shade: float | None = None) -> str:
        attributes = f' scope="{scope}"' if scope else ""
        if "right" in str(node.attrs.get("style")):
            attributes += ' class="right"'
        if shade is not None:
            attributes += _shade(shade)
        tag = "th" if scope else "td"
        return f"<{tag}{attributes}>{self.inside(node)}</{tag}>"


def _plain(node: SyntaxTreeNode) -> str:
    """The text of a node without its marks."""
    return "".join(one.content for one in node.walk() if one.type in ("text", "code_inline"))


def _quoted(html: str) -> str:
    """A quotation, or a warning as GitHub writes it."""
    told = html.replace("<p>[!WARNING]\n", "<p>", 1)
    kind = "" if told == html else ' class="warning"'
    return f"<blockquote{kind}>{told}</blockquote>\n"


def _shade(share: float) -> str:
    """Background and ink of a cell, with enough contrast between them at any share."""
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(PALE, DEEP, strict=True))
    return f' style="background:#{red:02x}{green:02x}{blue:02x};color:{"#fff" if share > 0.5 else "#111"}"'


def _figure(name: str, plots: Sequence[Plot]) -> str:
    """A figure as far as its caption; the script of the page draws it."""
    largest = max(plot.height for plot in plots)
    widest, least = max(plot.width for plot in plots), max(plot.least_width for plot in plots)
    specs = [{"title": plot.title, "height": plot.height, "width": plot.width, **plot.spec} for plot in plots]
    text = json.dumps(specs, ensure_ascii=False, sort_keys=True, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<figure id="{escape(name)}">\n{_choose([plot.title for plot in plots])}'
        f'<div class="scroll" tabindex="0"><div class="plot" role="img" aria-label="{escape(plots[0].title)}" '
        f'style="height:{largest}px;max-width:{widest}px;min-width:{least}px"></div></div>\n'
        f'<script type="application/json">{text}</script>\n'
    )


def _choose(titles: Sequence[str]) -> str:
    """Buttons of which one is pressed, or a list where they would be a wall."""
    if len(titles) < 2:
        return ""
    if len(titles) > MOST_BUTTONS:
        options = "".join(f'<option value="{number}">{escape(title)}</option>' for number, title in enumerate(titles))
        return f'<p class="choose"><label>Shown: <select>{options}</select></label></p>\n'
    buttons = "".join(
        f'<button type="button" data-choice="{number}" aria-pressed="{str(not number).lower()}">'
        f"{escape(title)}</button>"
        for number, title in enumerate(titles)
    )
    return f'<div class="choose" role="group" aria-label="Which is shown">{buttons}</div>\n'
