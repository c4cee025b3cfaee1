"""Three shapes in four kinds of file, mapped or not; samples; and data that cannot be used, each with its message."""

import json

import datasets
import pytest
from datasets import Dataset

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
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "Three?"},
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "Thanks"},
        ]
    },
]


def turns(*pairs: tuple[str, str]) -> tuple[Message, ...]:
    roles = {"s": "system", "u": "user", "a": "assistant", "c": "assistant"}
    return tuple(Message(roles[role], content, role == "a") for role, content in pairs)


EXPECTED = {
    "prompt and completion": (
        turns(("u", "1 + 1 ="), ("a", "2")),
        turns(("u", "Say\n“naïve”"), ("a", "naïve, 漢")),
    ),
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
    """`read(name, content, **spec)`: write a file and read it as a task."""

    def _read(name, content, seed=0, **spec):
        if isinstance(content, list):
            write_rows(tmp_path / name, content)
        else:
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
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
    records = read(f"data.{extension}", ROWS[shape])
    assert (records.task, records.num_records) == ("math", 2)
    assert tuple(record.messages for record in records.records) == EXPECTED[shape]
    assert [record.number for record in records.records] == [0, 1]


def test_text_of_a_csv_file_stays_what_it_is(read):
    records = read("a.csv", "\ufeffprompt,completion\n1,007\nNA,1e3\nnull,None\n2020-01-01,True\n")
    texts = [tuple(message.content for message in record.messages) for record in records.records]
    assert texts == [("1", "007"), ("NA", "1e3"), ("null", "None"), ("2020-01-01", "True")]
    (record,) = read("a.csv", "prompt,completion,other\n1.50,007,\n").records  # columns of numbers and of nothing
    assert [message.content for message in record.messages] == ["1.50", "007"]


def test_mapping(read):
    rows = [{"question": "Which?", "options": ["x", "y"], "right": 1, "prompt": "not this"}]
    fields = {"prompt": "{question}\nA. {options[0]}\nB. {options[1]}", "completion": "{right}"}
    (record,) = read("a.jsonl", rows, fields=fields).records
    assert record.messages == turns(("u", "Which?\nA. x\nB. y"), ("a", "1"))


def test_mapping_decides_between_shapes(read):
    rows = [{**PAIRS[0], **CHATS[0]}]
    for field, expected in (("messages", "messages"), ("prompt", "prompt and completion")):
        assert read("a.jsonl", rows, fields={field: field}).records[0].messages == EXPECTED[expected][0]
    with pytest.raises(TaskError, match=r"more than one shape(.|\n)*shapes:  prompt and completion; messages\n"):
        read("a.jsonl", rows)


def test_sharegpt(read):
    talk = [
        {"from": "system", "value": ""},
        {"from": "gpt", "value": "Yes?"},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Ho"},
    ]
    expected = turns(("a", "Yes?"), ("u", "Hi"), ("a", "Ho"))
    assert read("a.jsonl", [{"conversations": talk}]).records[0].messages == expected
    assert read("a.jsonl", [{"talk": talk}], fields={"messages": "talk"}).records[0].messages == expected


def test_a_prompt_of_messages_is_not_learned(read):
    shots = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "2?"},
    ]
    rows = [{"input": shots, "ideal": "two"}]
    expected = turns(("u", "1?"), ("c", "one"), ("u", "2?"), ("a", "two"))
    fields = {"prompt": "input", "completion": "ideal"}
    assert read("a.jsonl", rows, fields=fields).records[0].messages == expected
    rows = [{"prompt": shots, "completion": [{"role": "assistant", "content": "two"}]}]
    assert read("a.parquet", rows).records[0].messages == expected


def test_sample(read):
    rows = [{"prompt": f"{i}", "completion": f"{i * i}"} for i in range(50)]
    numbers = {}
    for count, seed in ((10, 0), (20, 0), (10, 1), (99, 0)):
        records = read("a.jsonl", rows, max_examples=count, seed=seed)
        assert records.num_records == 50
        assert all(record.messages[0].content == str(record.number) for record in records.records)
        numbers[count, seed] = [record.number for record in records.records]
        assert numbers[count, seed] == sorted(numbers[count, seed])
    assert len(numbers[10, 0]) == len(numbers[10, 1]) == 10 and len(numbers[20, 0]) == 20
    assert set(numbers[10, 0]) < set(numbers[20, 0]) and numbers[10, 0] != numbers[10, 1]
    assert numbers[99, 0] == list(range(50))


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", "\n \n"),
        ("a.json", "[]"),
        ("a.csv", "prompt,completion\n"),
        ("a.parquet", b""),
    ],
)
def test_no_records(read, name, content):
    with pytest.raises(TaskError, match=rf"^task math \({name}\): no records$"):
        read(name, content)


@pytest.mark.parametrize(
    "name, content, kind",
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt":\n', "JSONL: line 2, .*Expecting value"),
        ("a.jsonl", "hello", "JSONL: line 1, .*Expecting value"),
        ("a.jsonl", "1\n2\n", "JSONL: record 0 is the number 1, expected an object"),
        ("a.json", '[{"prompt": 1', "JSON: "),
        ("a.csv", "prompt,completion\n1,2\n1,2,3,4\n", "CSV: Error tokenizing data. .* Expected 2 fields in line 3"),
        ("a.csv", "prompt,completion\ncafé,x\n".encode("latin1"), "CSV: 'utf-8' codec can't decode byte 0xe9"),
        ("a.parquet", b"PAR1", "PARQUET: .*Parquet file size is 4 bytes"),
    ],
)
def test_files_of_another_kind(read, name, content, kind):
    with pytest.raises(TaskError, match=rf"^task math \({name}\): .*{name} cannot be read as {kind}"):
        read(name, content)


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
        read("a.jsonl", rows, **spec)
    return str(caught.value).removeprefix("task math (a.jsonl): ").split("\n")


def test_columns_that_are_not_there(read):
    rows = [{"question": "q", "answer": "a"}]
    assert refused(read, rows, fields={"prompt": "qestion", "completion": "{answer} {hint}"}) == [
        "columns that are not there (fields: says which are meant):",
        "  - prompt: no column 'qestion'; columns: question, answer; did you mean 'question'?",
        "  - completion: no column 'hint'; columns: question, answer",
    ]


def test_records_without_text(read):
    bad = [(" ", "b"), ("a", None), ("a", 5), ({"x": 1}, "b")]
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in [("a", "b"), *bad]]
    head, *found = refused(read, rows)
    assert head == "4 of 5 records cannot be used (counted from 0):"
    told = ("prompt is empty", "completion is empty", "completion is the number 5", "prompt is a mapping")
    for number, (line, problem) in enumerate(zip(found, told, strict=True), start=1):
        assert line.startswith(f"  - record {number}: {problem}")


def test_chats_that_are_none(read):
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = [
        [user, answer], [user], [], "text", ["text"], [{"role": "robot", "content": "a"}, answer],
        [user, {"role": "assistant", "content": None}], [user, {"role": "assistant", "content": ["b"]}],
    ]  # fmt: skip
    roles = "expected one of system, developer, user, assistant, tool, human, gpt"
    assert refused(read, [{"messages": row} for row in rows]) == [
        "7 of 8 records cannot be used (counted from 0):",
        "  - record 1: messages has no turn of the assistant",
        "  - record 2: messages is empty, expected a list of messages",
        "  - record 3: messages is a text, expected a list of messages",
        "  - record 4: messages[0] is a text, expected {role: …, content: …}",
        f"  - record 5: messages[0] has the role 'robot', {roles}",
        "  - record 6: messages[1] is empty",
        "  - record 7: messages[1] is a list, expected text",
    ]
