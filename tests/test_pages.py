"""Documents and the pages made of them: text is never read as marks, and nothing but ours stands in a page."""

import re

import pytest

from trace_transfer.pages import Figures, Plot, escaped, page, picture, place
from trace_transfer.tables import Number, Table, to_markdown

EVIL = "a<b> & 'c' | *d* _e_ `f` \\ ~g~ $h$\n[i](javascript:j) ![k](l) --> <!-- varies --> </script> <img src=x>"


def body(text: str, figures: Figures | None = None) -> str:
    return re.search(r"<main>(.*)</main>", page(text, figures or Figures()), re.DOTALL)[1]


@pytest.mark.parametrize(
    "text", [EVIL, "- a", "+ a", "1. a", "2) a", "---", "===", "# a", "> a", "    a", "~~~", "&lt;"]
)
def test_a_value_is_text_at_any_place(text):
    shown = " ".join(text.split("\n")).strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    value = escaped(text)
    for document in (value, f"- {value}", f"> **{value}**", f"| x |\n| --- |\n| {value} |"):
        assert shown in body(f"# T\n\n{document}\n"), document
    assert escaped("-0.103 [-0.2, 0.1]").startswith("-0.103")


def test_only_our_own_tags_are_let_through():
    text = body(
        "# T\n\n<details>\n<summary>S</summary>\n\nx <!-- varies -->5 s<!-- /varies --> <b>y</b>\n\n</details>\n"
    )
    assert "<details>\n<summary>S</summary>" in text and "<!-- varies -->5 s<!-- /varies -->" in text
    assert "&lt;b&gt;y&lt;/b&gt;" in text
    assert "&lt;script&gt;" in body("<script>alert(1)</script>\n")
    assert "<p>[a](b)</p>" in body("[a](b)")


def test_tables_have_captions_and_headings():
    table = Table("t", "Title", ("name", "value"), (("a", Number(1.0)), ("b", "+2")), "A note.")
    text = body(f"# T\n\nBefore.\n\n{to_markdown(table)}")
    assert "<p>Before.</p>" in text and "<caption>Title. A note.</caption>" in text
    assert '<th scope="row">a</th><td class="right">1.0</td>' in text


def test_figures_and_pictures_stand_at_their_places():
    plots = [Plot("one </script>", {"data": [{"x": ["</script>"]}], "layout": {}}, 100), Plot("two", {}, 200)]
    document = (
        f"# T\n\n<!-- figure: {place('a b|c')} -->\n\n{picture('shown', 'x (1).png')}\n\nA caption.\n\n"
        f"<!-- /figure -->\n\n{picture('held', 'y/z.png')}\n"
    )
    assert "(x%20%281%29.png)" in document
    text = body(document, Figures({"a-b-c": plots}, pictures={"y/z.png": b"png"}))
    assert "x (1)" not in text and "<p>A caption.</p>\n</figure>" in text
    assert 'alt="held" src="data:image/png;base64,cG5n"' in text
    assert text.count("</script>") == 1 and "height:200px" in text and text.count("<button") == 2
