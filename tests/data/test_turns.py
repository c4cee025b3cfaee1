"""What records and messages say beside their texts: honoured, handed on, told with a count, or refused with the key."""

import datetime
import json

import pytest
from datasets import Dataset

from tests.data.chat_templates import FAMILIES
from trace_transfer.data.encoding import encode_task
from trace_transfer.data.records import read_records
from trace_transfer.data.tasks_file import TaskError, TaskSpec

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
ANOTHER = {"role": "assistant", "content": "Hey"}


@pytest.fixture
def read(tmp_path):
    """`read(*rows, **spec)`: rows of a JSONL file as a task's records."""

    def _read(*rows, **spec):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return read_records(TaskSpec(name="t", data="a.jsonl", **spec), tmp_path)

    return _read


def learned(records) -> list[list[str]]:
    return [[turn.content for turn in record.messages if turn.is_answer] for record in records.records]


@pytest.mark.parametrize("mask", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": 0}])
def test_masked_turns_are_context(read, mask):
    records = read({"messages": [USER, ANSWER | mask, USER, ANOTHER]})
    assert learned(records) == [["Hey"]] and len(records.records[0].messages) == 4
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"} | mask]
    assert learned(read({"conversations": [*sharegpt, {"from": "gpt", "value": "Hey", "weight": 1}]})) == [["Hey"]]
    with pytest.raises(TaskError, match=r"messages has no turn of the assistant that is to be learned: all are masked"):
        read({"messages": [USER, ANSWER | mask]})
    assert learned(read({"messages": [USER, ANSWER | mask]}, ignore=tuple(mask))) == [["Ho"]]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (ANSWER | {"weight": 0.5}, r"messages\[1\] has weight 0.5, expected 0 or 1"),
        (USER | {"train": True}, r"messages\[1\] has train True: a turn of the user, and only the assistant's are"),
        (USER | {"images": ["a.png"]}, r"messages\[1\] has images, which cannot be honoured \(ignore: \[images\]"),
        (ANSWER | {"train_detail": [{"train": False}]}, r"messages\[1\] has train_detail, which cannot be honoured"),
        (
            {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": "a"}]},
            r"messages\[1\]\.content\[1\] is of type 'image_url' with image_url, expected \{type: text",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(read, message, problem):
    with pytest.raises(TaskError, match=r"1 of 2 records cannot be used \(counted from 0\):\n  - record 1: " + problem):
        read({"messages": [USER, ANSWER]}, {"messages": [USER, message, USER, ANSWER]})


def test_system_and_tools_of_a_record(read):
    tools = [{"name": "add"}]
    rows = [
        {"system": "Brief.", "tools": tools, "messages": [USER, ANSWER]},
        {"system": " ", "tools": json.dumps(tools), "messages": [USER, ANSWER]},
        {"system": "Brief.", "tools": [], "messages": [{"role": "system", "content": "Brief."}, USER, ANSWER]},
        {"system": None, "messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": False}},
    ]
    found = read(*rows).records
    assert [[turn.role for turn in one.messages] for one in found] == [
        ["system", "user", "assistant"], ["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant"],
    ]  # fmt: skip
    assert [one.context for one in found] == [{"tools": tools}, {"tools": tools}, {}, {"enable_thinking": False}]
    with pytest.raises(TaskError, match="system is another text than that of the system message"):
        read({"system": "Long.", "messages": [{"role": "system", "content": "Brief."}, USER, ANSWER]})
    with pytest.raises(TaskError, match="tools is text, and not JSON: add"):
        read({"tools": "add", "messages": [USER, ANSWER]})
    pairs = {"q": "Hi", "a": "Ho", "s": "Brief."}
    (one,) = read(pairs, fields={"prompt": "q", "completion": "a", "system": "s"}).records
    assert [turn.role for turn in one.messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("images", ["a.png"], "images is a list: a model of text does not see it"),
        ("history", [["a", "b"]], "history is a list: earlier turns; give them as messages"),
        ("weight", 0, "weight is the number 0: a record that is not to be learned"),
        ("train", False, "train is False: a record that is not to be learned"),
        ("label", False, "label is False: a record that is not to be learned"),
    ],
)
def test_columns_that_change_what_a_record_means(read, column, value, problem):
    row = {"prompt": "Hi", "completion": "Ho"}
    with pytest.raises(TaskError, match=rf"record 1: {problem}.*\(ignore: \[{column}\] leaves it out\)"):
        read(row, row | {column: value})
    assert len(read(row, row | {column: value}, ignore=[column]).records) == 2
    harmless = {"weight": 1, "train": True, "label": True}.get(column)
    assert read(row | {column: harmless}).notes == ()


def test_what_is_not_read_is_told(read):
    row = {"id": 7, "prompt": "Hi", "completion": "Ho", "source": "web"}
    assert read(row, row).notes == ("columns that are not read: id, source",)
    assert read(row, row, ignore=["id", "source"]).notes == ()
    talk = [USER | {"id": 1}, ANSWER | {"id": 2, "likes": None}, USER]
    records = read({"messages": talk}, {"messages": [USER, ANSWER]})
    assert records.notes == ("turns left out behind the last answer, as they would never be learned: 1",)
    data = encode_task(TaskSpec(name="t", data="a.jsonl"), records, FAMILIES["chatml"].tokenizer())
    assert data.notes[1:] == ("conversations of which the template does not write the messages' key 'id': 1",)


def test_texts_of_json_stay_what_they_are(read):
    """Not dates, numbers or truth values, whatever they look like; no key of one record in another."""
    answers = ["2026-02-03", "2026-02-03T10:00:00Z", "007", "1e3", "null", "yes", "12345678901234567890123"]
    records = read(*({"prompt": f"{n}", "completion": one} for n, one in enumerate(answers)))
    assert learned(records) == [[one] for one in answers]
    talk = [[USER, {"role": "assistant", "content": one}] for one in answers]
    assert learned(read(*({"messages": one} for one in talk))) == [[one] for one in answers]
    (record,) = read({"prompt": "a", "n": 2**62, "completion": "b"}, fields={"prompt": "{n}"}).records
    assert record.messages[0].content == str(2**62)


def test_tables_have_no_keys_that_are_empty(tmp_path):
    """Arrow gives every call the arguments of all others."""
    calls = [[{"function": {"name": "add", "arguments": one}}] for one in ({"a": 1}, {"b": 2})]
    rows = [{"messages": [USER, {"role": "assistant", "content": "", "tool_calls": one, "weight": 1}]} for one in calls]
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    records = read_records(TaskSpec(name="t", data="a.parquet"), tmp_path).records
    found = [record.messages[1].more["tool_calls"][0]["function"]["arguments"] for record in records]
    assert found == [{"a": 1}, {"b": 2}] and records[0].messages[0].more == {}
    Dataset.from_list([{"prompt": "a", "completion": datetime.date(2020, 1, 1)}]).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(TaskError, match="completion is a date, 2020-01-01"):
        read_records(TaskSpec(name="t", data="b.parquet"), tmp_path)
