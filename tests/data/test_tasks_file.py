"""What `tasks.yaml` may say, and what each mistake is answered with."""

import pytest

from trace_transfer.data.tasks_file import TaskError, UnusableValueError, load_tasks, parse_source


@pytest.fixture
def write(tmp_path):
    """`write(text)`: a `tasks.yaml` beside a data file `maths.jsonl`."""
    (tmp_path / "maths.jsonl").write_text("")

    def _write(text: str):
        file = tmp_path / "tasks.yaml"
        file.write_text(text, "utf-8")
        return file

    return _write


def refused(file) -> str:
    with pytest.raises(TaskError, match=r"tasks\.yaml") as caught:
        load_tasks(file)
    return str(caught.value).replace(f"{file.parent}/", "")


def test_everything_wrong_is_said_at_once(write):
    text = """
tasks:
  - {name: math, data: maths.jsonl, feilds: {prompt: q}}
  - {name: math, data: gone.csv}
  - {name: math, data: maths.jsonl}
  - {name: a/b, data: notes.txt}
  - {name: d, data: maths.jsonl, split: test, template: plane}
  - {name: f, data: maths.jsonl, fields: {promt: q}}
  - {name: g, data: maths.jsonl, fields: {prompt: q, output: a}}
  - {name: i, data: maths.jsonl, max_examples: "7"}
  - {data: maths.jsonl}
  - maths.jsonl
"""
    head, *found = refused(write(text)).split("\n  - ")
    assert head == f"tasks.yaml: {len(found)} problems:"
    for told in (
        "task 'math': unknown key 'feilds', allowed: name, data, ", "task 'math': 2 tasks have this name",
        "task 'math': data: gone.csv: no such file", "task 'a/b': name: 'a/b' is not a name of letters, digits",
        "task 'a/b': data: the extension '.txt' of 'notes.txt' is unknown; expected a .json",
        "task 'd': template: 'plane' is none of auto, chat, plain", "task 'f': fields: unknown field 'promt', ",
        "task 'g': fields: prompt, output are of different shapes", "task 'i': max_examples: found '7'",
        "task 9 of the list: 'name:' is missing", "task 10 of the list: its keys: found 'maths.jsonl'",
    ):  # fmt: skip
        assert any(problem.startswith(told) for problem in found), told


@pytest.mark.parametrize(
    "text, expected",
    [
        ("tasks: []", "tasks: found no tasks; expected"),
        ("tasks: []\nmodel: x", "found the keys tasks, model; expected a list of tasks"),
        ("tasks:\n  - name: a\n    data: a/b\n    name: b\n", "tasks.yaml:4: not valid YAML: the key 'name' stands"),
    ],
)
def test_not_a_list_of_tasks(write, text, expected):
    assert expected in refused(write(text))


# ---- columns and formats of them

ROW = {"q": "Why?", "a b": "so", "n": 7, "none": None, "list": ["x", "y"], "chat": [{"content": "hi"}], "half": 0.5}


@pytest.mark.parametrize(
    "text, columns, value",
    [
        ("q", ("q",), "Why?"),
        ("n", ("n",), 7),
        ("list", ("list",), ["x", "y"]),
        ("{q}\nA. {a b}", ("q", "a b"), "Why?\nA. so"),
        ("{n} {half}{none}", ("n", "half", "none"), "7 0.5"),
        ("{list[-1]}{chat[0][content]}!", ("list", "chat"), "yhi!"),
        ("{{{q}}}", ("q",), "{Why?}"),
    ],
)
def test_value(text, columns, value):
    source = parse_source(text)
    assert source.columns == columns
    assert source.value(ROW, "prompt") == value


@pytest.mark.parametrize("text", ["{q", "q}", "{}", "{a{b}}"])
def test_braces_that_do_not_fit(text):
    with pytest.raises(ValueError, match=r"a brace at character \d has no partner"):
        parse_source(text)


@pytest.mark.parametrize(
    "text, expected",
    [("{list}", "takes a list from column 'list'"), ("{chat[0][role]}", r"has nothing at chat\[0\]\[role\]")],
)
def test_values_that_do_not_fit(text, expected):
    with pytest.raises(UnusableValueError, match=expected):
        parse_source(text).value(ROW, "prompt")
