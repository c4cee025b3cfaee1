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
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    import jinja2
    from markdown_it.token import Token

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
    """What a page shows where its Markdown names it."""

    plots: Mapping[str, Sequence[Plot]] = field(default_factory=dict)  # figure → plots of which one is shown at a time
    shades: Mapping[str, Shades] = field(default_factory=dict)  # table → shades of its cells
    # path → the PNG that the page holds; other pictures of the Markdown are left out
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def page(text: str, figures: Figures) -> str:
    """A Markdown document as one HTML page: styles, script, plotly.js, numbers and pictures are inside."""
    from plotly.offline import get_plotlyjs

    templates = _templates(False)
    source = {name: templates.get_template(f"page.{name}").render() for name in ("css", "js")}
    return templates.get_template("page.html.j2").render(
        parts=_parts(text, figures), style=source["css"], script=source["js"], plotly=get_plotlyjs()
    )


@dataclass
class Part:
    """A section of a page, or what stands before the first one."""

    title: str
    html: str

    @property
    def id(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def _parts(text: str, figures: Figures) -> list[Part]:
    """The sections, each with its heading of level 2; tags that are not ours are text, and there are no links."""
    from markdown_it import MarkdownIt

    writer = MarkdownIt("commonmark", {"html": True}).enable("table").disable(["link", "autolink", "reference"])
    rules = {"html_block": _tags, "html_inline": _tags, "image": _image, "raw": lambda token, _: token.content}
    for kind, write in rules.items():
        writer.add_render_rule(kind, lambda _, tokens, index, *rest, write=write: write(tokens[index], figures))
    tokens = _arranged(writer.parse(text), figures)
    headings = [index for index, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"]
    parts = []
    for start, stop in pairwise((0, *headings, len(tokens))):
        html = writer.renderer.render(tokens[start:stop], writer.options, {}).replace("<p></p>\n", "")
        html = re.sub(r"(</t[hd]>|<tr>)\n", r"\1", html)
        html = html.replace("<blockquote>\n<p>[!WARNING]\n", '<blockquote class="warning">\n<p>')
        title = tokens[start + 1] if tokens[start].type == "heading_open" else None
        parts.append(Part("".join(one.content for one in (title and title.children) or ()), html))
    return parts


def _arranged(tokens: Sequence[Token], figures: Figures) -> list[Token]:
    """Tables in boxes that scroll: a paragraph right above one is its caption, the first cell of a row its heading;
    shaded tables stand beside each other where there is room."""
    from markdown_it.token import Token

    found: list[Token] = []
    shades: Shades | None = None
    row = column = 0
    for token in tokens:
        kind = token.type
        if kind == "html_block" and (shaded := SHADED.match(token.content)):
            shades = figures.shades[shaded[1]]
            continue
        if kind == "table_open":
            caption = found[-2] if found and found[-1].type == "paragraph_close" else None
            found = found[:-3] if caption else found
            box = f'<div class="scroll{"" if shades is None else " beside"}" tabindex="0">'
            found += [Token("raw", "", 0, content=box), token]
            if caption:
                ends = [Token("raw", "", 0, content=content) for content in ("<caption>", "</caption>\n")]
                found += [ends[0], caption, ends[1]]
            row = -2
            continue
        if kind == "tr_open":
            row, column = row + 1, -1
        elif kind in ("th_open", "td_open"):
            column += 1
            right = "right" in str(token.attrs.get("style"))
            token.attrs = {"scope": "col"} if kind == "th_open" else {} if column else {"scope": "row"}
            token.attrs |= {"class": "right"} if right else {}
            if row >= 0 and (shade := (shades or {}).get((row, column))) is not None:
                token.attrs["style"] = _shade(shade)
        if kind in ("td_open", "td_close") and not column:
            token.tag = "th"
        found.append(token)
        if kind == "table_close":
            found.append(Token("raw", "", 0, content="</div>\n"))
            shades = None
    return found


def _tags(token: Token, figures: Figures) -> str:
    """Our own tags and places as they are, the rest as text."""
    if found := FIGURE.match(token.content):
        return _figure(found[1], figures.plots[found[1]])
    if token.content.startswith("<!-- /figure -->"):
        return "</figure>\n"
    return "".join(part if TAGS.fullmatch(part) else escape(part, quote=False) for part in TAGS.split(token.content))


def _image(token: Token, figures: Figures) -> str:
    png = figures.pictures.get(unquote(str(token.attrs["src"])))
    if png is None:
        return ""
    alt = "".join(one.content for one in token.children or ())
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _shade(share: float) -> str:
    """Background and ink of a cell, with enough contrast between them at any share."""
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(PALE, DEEP, strict=True))
    return f"background:#{red:02x}{green:02x}{blue:02x};color:{'#fff' if share > 0.5 else '#111'}"


def _figure(name: str, plots: Sequence[Plot]) -> str:
    """A figure as far as its caption; the script of the page draws it."""
    specs = [{"title": plot.title, "height": plot.height, "width": plot.width, **plot.spec} for plot in plots]
    short = lambda number: float(f"{float(number):.6g}")  # noqa: E731
    plain = json.loads(json.dumps(specs), parse_float=short, parse_constant=lambda name: None)  # NaN
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, separators=(",", ":")).replace("</", "<\\/")
    template = _templates(False).get_template("page.figure.html.j2")
    return template.render(name=name, plots=plots, specs=text, many=len(plots) > MOST_BUTTONS)
