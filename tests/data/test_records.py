"""Three shapes in four kinds of file, mapped or not; samples; data that cannot be used; and what records and messages
say beside their texts: honoured, handed on, told with a count, or refused with the key."""

import datetime
import json

import datasets
import pytest
from datasets import Dataset

from tests.data.chat_templates import FAMILIES
from trace_transfer.data.encoding import encode_task
from trace_transfer.data.records import Message, read_records
from trace_transfer.data.tasks_file import TaskError, TaskSpec

PAIRS = [{"prompt": "1 + 1 =", "completion": "2"}, {"prompt": "Say\n“naïve”", "completion": "naïve, 漢"}]
ALPACA = [
    {"instruction": "Add.", "input": "1, 2", "output": "3"},
    {"instruction": "Say A.", "input": " ", "output": "A"},
]
CHATS = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    {
        "messages": [
            {"role": "system" if place == 0 else ("assistant", "user")[place % 2], "content": content}
            for place, content in enumerate(("Be brief.", "Two?", "2", "Three?", "3", "Thanks"))
        ]
    },
]


def turns(*pairs: tuple[str, str]) -> tuple[Message, ...]:
    roles = {"s": "system", "u": "user", "a": "assistant", "c": "assistant"}
    return tuple(Message(roles[role], content, role == "a") for role, content in pairs)


EXPECTED = {
    "prompt and completion": (turns(("u", "1 + 1 ="), ("a", "2")), turns(("u", "Say\n“naïve”"), ("a", "naïve, 漢"))),
    "instruction, input (optional) and output": (
        turns(("u", "Add.\n\n1, 2"), ("a", "3")),
        turns(("u", "Say A."), ("a", "A")),
    ),
    "messages": (
        turns(("u", "Hi"), ("a", "Ho")),
        turns(("s", "Be brief."), ("u", "Two?"), ("a", "2"), ("u", "Three?"), ("a", "3")),
    ),
}
ROWS = dict(zip(EXPECTED, (PAIRS, ALPACA, CHATS), strict=True))


@pytest.fixture
def read(tmp_path):
    """`read(rows, file, **spec)`: write rows, or a file's text, and read them as a task."""

    def _read(rows, name="a.jsonl", seed=0, **spec):
        file = tmp_path / name
        if isinstance(rows, list):
            write_rows(file, rows)
        else:
            file.write_bytes(rows.encode() if isinstance(rows, str) else rows)
        return read_records(TaskSpec(name="math", data=name, **spec), tmp_path, seed=seed)

    return _read


def write_rows(file, rows):
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows, indent=2), "utf-8")
    elif file.suffix == ".csv":
        Dataset.from_list(rows).to_csv(file)
    else:
        Dataset.from_list(rows).to_parquet(file)


@pytest.mark.parametrize(
    "shape, extension",
    [
        (shape, extension)
        for shape in ROWS
        for extension in ("json", "jsonl", "csv", "parquet")
        if (shape, extension) != ("messages", "csv")  # a CSV file holds no lists
    ],
)
def test_shapes_in_all_kinds_of_file(read, shape, extension):
    records = read(ROWS[shape], f"data.{extension}")
    assert (records.task, records.num_records) == ("math", 2)
    assert tuple(record.messages for record in records.records) == EXPECTED[shape]
    assert [record.number for record in records.records] == [0, 1]


def test_text_of_a_csv_file_stays_what_it_is(read):
    records = read("\ufeffprompt,completion\n1,007\nNA,1e3\nnull,None\n2020-01-01,True\n", "a.csv")
    texts = [tuple(message.content for message in record.messages) for record in records.records]
    assert texts == [("1", "007"), ("NA", "1e3"), ("null", "None"), ("2020-01-01", "True")]
    (record,) = read("prompt,completion,other\n1.50,007,\n", "a.csv").records  # columns of numbers and of nothing
    assert [message.content for message in record.messages] == ["1.50", "007"]


def test_mapping(read):
    rows = [{"question": "Which?", "options": ["x", "y"], "right": 1, "prompt": "not this"}]
    fields = {"prompt": "{question}\nA. {options[0]}\nB. {options[1]}", "completion": "{right}"}
    (record,) = read(rows, fields=fields).records
    assert record.messages == turns(("u", "Which?\nA. x\nB. y"), ("a", "1"))


def test_mapping_decides_between_shapes(read):
    rows = [{**PAIRS[0], **CHATS[0]}]
    for field, expected in (("messages", "messages"), ("prompt", "prompt and completion")):
        assert read(rows, fields={field: field}).records[0].messages == EXPECTED[expected][0]
    with pytest.raises(TaskError, match=r"more than one shape(.|\n)*shapes:  prompt and completion; messages\n"):
        read(rows)


def test_sharegpt(read):
    said = (("system", ""), ("gpt", "Yes?"), ("human", "Hi"), ("gpt", "Ho"))
    talk = [{"from": role, "value": text} for role, text in said]
    expected = turns(("a", "Yes?"), ("u", "Hi"), ("a", "Ho"))
    assert read([{"conversations": talk}]).records[0].messages == expected
    assert read([{"talk": talk}], fields={"messages": "talk"}).records[0].messages == expected


def test_a_prompt_of_messages_is_not_learned(read):
    shots = [{"role": role, "content": text} for role, text in (("user", "1?"), ("assistant", "one"), ("user", "2?"))]
    rows = [{"input": shots, "ideal": "two"}]
    expected = turns(("u", "1?"), ("c", "one"), ("u", "2?"), ("a", "two"))
    fields = {"prompt": "input", "completion": "ideal"}
    assert read(rows, fields=fields).records[0].messages == expected
    rows = [{"prompt": shots, "completion": [{"role": "assistant", "content": "two"}]}]
    assert read(rows, "a.parquet").records[0].messages == expected


def test_sample(read):
    rows = [{"prompt": f"{i}", "completion": f"{i * i}"} for i in range(50)]
    numbers = {}
    for count, seed in ((10, 0), (20, 0), (10, 1), (99, 0)):
        records = read(rows, max_examples=count, seed=seed)
        assert records.num_records == 50
        assert all(record.messages[0].content == str(record.number) for record in records.records)
        numbers[count, seed] = [record.number for record in records.records]
        assert numbers[count, seed] == sorted(numbers[count, seed])
    assert len(numbers[10, 0]) == len(numbers[10, 1]) == 10 and len(numbers[20, 0]) == 20
    assert set(numbers[10, 0]) < set(numbers[20, 0]) and numbers[10, 0] != numbers[10, 1]
    assert numbers[99, 0] == list(range(50))


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("a.parquet", b"", "no records"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt":\n', ".*a.jsonl cannot be read as JSONL: line 2, .*Expecting value"),
        ("a.csv", "prompt,completion\n1,2\n1,2,3,4\n", ".*a.csv cannot be read as CSV: Error tokenizing data"),
        ("a.parquet", b"PAR1", ".*a.parquet cannot be read as PARQUET: "),
    ],
)
def test_files_without_records(read, name, content, problem):
    with pytest.raises(TaskError, match=rf"^task math \({name}\): {problem}"):
        read(content, name)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    asked = []

    def ask(url, timeout):
        asked.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    told = (
        r"split 'train' could not be had from the hub: it does not answer \(no route.*HF_HUB_OFFLINE=1 reads its cache"
    )
    with pytest.raises(TaskError, match=rf"^task math \(no/such\): {told}"):
        read_records(TaskSpec(name="math", data="no/such"), ".")
    assert len(asked) == 1


def test_what_is_asked_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(path, **options):
        asked.append((path, options))
        return Dataset.from_list(PAIRS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = TaskSpec(name="math", data="owner/name", subset="main", split="test", revision="abc")
    assert len(read_records(spec, ".").records) == 2
    expected = {"name": "main", "split": "test", "revision": "abc", "trust_remote_code": False}
    assert asked == [("owner/name", expected)]


def refused(read, rows, **spec) -> list[str]:
    with pytest.raises(TaskError, match=r"task math \(a\.jsonl\): ") as caught:
        read(rows, **spec)
    return str(caught.value).removeprefix("task math (a.jsonl): ").split("\n")


def test_columns_that_are_not_there(read):
    rows = [{"question": "q", "answer": "a"}]
    assert refused(read, rows, fields={"prompt": "qestion", "completion": "{answer} {hint}"})[1:] == [
        "  - prompt: no column 'qestion'; columns: question, answer; did you mean 'question'?",
        "  - completion: no column 'hint'; columns: question, answer",
    ]


def test_what_is_no_record(read):
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in [("a", "b"), (" ", "b"), ("a", 5)]]
    first, *found = refused(read, rows)
    assert first == "2 of 3 records cannot be used (counted from 0):" and found[0] == "  - record 1: prompt is empty"
    assert "record 2: completion is the number 5, expected text" in found[1]
    robot, empty = {"role": "robot", "content": "a"}, {**answer, "content": ""}
    rows = [[user], [], "text", ["text"], [robot, answer], [user, empty]]
    told = ("no turn of the assistant", "is empty", "is a text", "[0] is a text", "the role 'robot'", "[1] is empty")
    found = refused(read, [{"messages": row} for row in rows])[1:]
    assert all(part in problem for part, problem in zip(told, found, strict=True))


# ---- beside the texts

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
ANOTHER = {"role": "assistant", "content": "Hey"}


def learned(records) -> list[list[str]]:
    return [[turn.content for turn in record.messages if turn.is_answer] for record in records.records]


@pytest.mark.parametrize("mask", [{"weight": 0}, {"train": False}])
def test_masked_turns_are_context(read, mask):
    records = read([{"messages": [USER, ANSWER | mask, USER, ANOTHER]}])
    assert learned(records) == [["Hey"]] and len(records.records[0].messages) == 4
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"} | mask]
    assert learned(read([{"conversations": [*sharegpt, {"from": "gpt", "value": "Hey", "weight": 1}]}])) == [["Hey"]]
    with pytest.raises(TaskError, match=r"messages has no turn of the assistant, or none that is to be learned"):
        read([{"messages": [USER, ANSWER | mask]}])
    assert learned(read([{"messages": [USER, ANSWER | mask]}], ignore=tuple(mask))) == [["Ho"]]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (ANSWER | {"weight": 0.5}, r"messages\[1\] has weight 0.5, expected 0 or 1"),
        (USER | {"images": ["a.png"]}, r"messages\[1\] has images, which cannot be honoured \(ignore: \[images\]"),
        (
            {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": "a"}]},
            r"messages\[1\] has parts that are no text",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(read, message, problem):
    with pytest.raises(TaskError, match=r"1 of 2 records cannot be used \(counted from 0\):\n  - record 1: " + problem):
        read([{"messages": [USER, ANSWER]}, {"messages": [USER, message, USER, ANSWER]}])


def test_system_and_tools_of_a_record(read):
    tools = [{"name": "add"}]
    rows = [
        {"system": "Brief.", "tools": tools, "messages": [USER, ANSWER]},
        {"system": " ", "tools": json.dumps(tools), "messages": [USER, ANSWER]},
        {"system": "Brief.", "tools": [], "messages": [{"role": "system", "content": "Brief."}, USER, ANSWER]},
        {"system": None, "messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": False}},
    ]
    found = read(rows).records
    assert [[turn.role for turn in one.messages] for one in found] == [
        ["system", "user", "assistant"], ["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant"],
    ]  # fmt: skip
    assert [one.context for one in found] == [{"tools": tools}, {"tools": tools}, {}, {"enable_thinking": False}]
    with pytest.raises(TaskError, match="system is another text than that of the system message"):
        read([{"system": "Long.", "messages": [{"role": "system", "content": "Brief."}, USER, ANSWER]}])
    pairs = {"q": "Hi", "a": "Ho", "s": "Brief."}
    (one,) = read([pairs], fields={"prompt": "q", "completion": "a", "system": "s"}).records
    assert [turn.role for turn in one.messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(("column", "value"), [("history", [["a", "b"]]), ("weight", 0), ("label", False)])
def test_columns_that_change_what_a_record_means(read, column, value):
    row = {"prompt": "Hi", "completion": "Ho"}
    with pytest.raises(TaskError, match=rf"record 1: {column} is .*\(ignore: \[{column}\] leaves it out\)"):
        read([row, row | {column: value}])
    assert len(read([row, row | {column: value}], ignore=[column]).records) == 2
    assert read([row | {column: {"weight": 1, "label": True}.get(column)}]).notes == ()


def test_what_is_not_read_is_told(read):
    row = {"id": 7, "prompt": "Hi", "completion": "Ho", "source": "web"}
    assert read([row, row]).notes == ("columns that are not read: id, source",)
    assert read([row, row], ignore=["id", "source"]).notes == ()
    talk = [USER | {"id": 1}, ANSWER | {"id": 2, "likes": None}, USER]
    records = read([{"messages": talk}, {"messages": [USER, ANSWER]}])
    assert records.notes == ("turns left out behind the last answer, as they would never be learned: 1",)
    data = encode_task(TaskSpec(name="t", data="a.jsonl"), records, FAMILIES["chatml"].tokenizer())
    assert data.notes[1:] == ("conversations with the key 'id' in messages, which the template does not write: 1",)


def test_texts_of_json_stay_what_they_are(read):
    """Not dates, numbers or truth values, whatever they look like; no key of one record in another."""
    answers = ["2026-02-03", "2026-02-03T10:00:00Z", "007", "1e3", "null", "yes", "12345678901234567890123"]
    records = read([{"prompt": f"{n}", "completion": one} for n, one in enumerate(answers)])
    assert learned(records) == [[one] for one in answers]
    talk = [[USER, {"role": "assistant", "content": one}] for one in answers]
    assert learned(read([{"messages": one} for one in talk])) == [[one] for one in answers]
    (record,) = read([{"prompt": "a", "n": 2**62, "completion": "b"}], fields={"prompt": "{n}"}).records
    assert record.messages[0].content == str(2**62)


def test_tables_have_no_keys_that_are_empty(read):
    """Arrow gives every call the arguments of all others."""
    calls = [[{"function": {"name": "add", "arguments": one}}] for one in ({"a": 1}, {"b": 2})]
    rows = [{"messages": [USER, {"role": "assistant", "content": "", "tool_calls": one, "weight": 1}]} for one in calls]
    records = read(rows, "a.parquet").records
    found = [record.messages[1].more["tool_calls"][0]["function"]["arguments"] for record in records]
    assert found == [{"a": 1}, {"b": 2}] and records[0].messages[0].more == {}
    with pytest.raises(TaskError, match=r"completion is datetime.date\(2020, 1, 1\), expected text"):
        read([{"prompt": "a", "completion": datetime.date(2020, 1, 1)}], "a.parquet")
