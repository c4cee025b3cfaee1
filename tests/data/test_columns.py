"""Columns and formats of them."""

import pytest

from trace_transfer.data.tasks_file import UnusableValueError, parse_source

ROW = {"q": "Why?", "a b": "so", "n": 7, "none": None, "list": ["x", "y"], "chat": [{"content": "hi"}], "half": 0.5}


@pytest.mark.parametrize(
    "text, columns, value",
    [
        ("q", ("q",), "Why?"),
        ("n", ("n",), 7),
        ("list", ("list",), ["x", "y"]),
        ("{q}\nA. {a b}", ("q", "a b"), "Why?\nA. so"),
        ("{n} {half}{none}", ("n", "half", "none"), "7 0.5"),
        ("{list[0]}{list[-1]}", ("list",), "xy"),
        ("{chat[0][content]}!", ("chat",), "hi!"),
        ("{{{q}}}", ("q",), "{Why?}"),
        ("{{q}}", (), "{q}"),
    ],
)
def test_value(text, columns, value):
    source = parse_source(text)
    assert source.columns == columns
    assert source.value(ROW) == value


@pytest.mark.parametrize("text", ["{q", "q}", "{}", "{q[}", "{list[]}", "{a{b}}"])
def test_braces_that_do_not_fit(text):
    with pytest.raises(ValueError, match=r"a brace at character \d has no partner"):
        parse_source(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("{list}", "takes a list from column 'list'"),
        ("{list[2]}", r"has nothing at list\[2\]"),
        ("{list[x]}", r"has nothing at list\[x\]"),
        ("{chat[0][role]}", r"has nothing at chat\[0\]\[role\]"),
        ("{none[0]}", r"has nothing at none\[0\]"),
    ],
)
def test_values_that_do_not_fit(text, expected):
    with pytest.raises(UnusableValueError, match=expected):
        parse_source(text).value(ROW)
