"""Three shapes in four kinds of file, mapped or not; samples; and data that cannot be used, each with its message."""

import json
import os
import subprocess
import sys
import tempfile
import time

import datasets
import huggingface_hub
import pytest
from datasets import Dataset

from trace_transfer.data.records import Message, chosen, read_records
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
def read(tmp_path, monkeypatch):
    """`read(name, content, **spec)`: write a file and read it as a task; nothing may be left behind elsewhere."""
    elsewhere = {kind: tmp_path / kind for kind in ("home", "temporary")}
    for directory in elsewhere.values():
        directory.mkdir()
    monkeypatch.setenv("HOME", str(elsewhere["home"]))
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere["temporary"]))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(elsewhere["home"] / "cache"))
    (tmp_path / "data").mkdir()

    def _read(name, content, seed=0, **spec):
        file = tmp_path / "data" / name
        if isinstance(content, list):
            write_rows(file, content)
        else:
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        records = read_records(TaskSpec(name="math", data=name, **spec), tmp_path / "data", seed=seed)
        assert [list(directory.iterdir()) for directory in elsewhere.values()] == [[], []]
        return records

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
    assert (records.task, records.shape, records.num_records) == ("math", shape, 2)
    assert tuple(record.messages for record in records.records) == EXPECTED[shape]
    assert [record.number for record in records.records] == [0, 1]


@pytest.mark.parametrize("name", ["with space [1].jsonl", "star*?.csv", "{a,b}.json"])
def test_names_are_no_patterns(read, name):
    read("1.jsonl", PAIRS[:1])
    assert len(read(name, PAIRS).records) == 2


def test_text_of_a_csv_file_stays_what_it_is(read):
    records = read("a.csv", "\ufeffprompt,completion\n1,007\nNA,1e3\nnull,None\n2020-01-01,True\n")
    texts = [tuple(message.content for message in record.messages) for record in records.records]
    assert texts == [("1", "007"), ("NA", "1e3"), ("null", "None"), ("2020-01-01", "True")]
    (record,) = read("a.csv", "prompt,completion,other\n1.50,007,\n").records  # columns of numbers and of nothing
    assert [message.content for message in record.messages] == ["1.50", "007"]


def test_a_changed_file_is_read_again(read, tmp_path):
    """Also if neither its time nor its size tells."""
    assert read("a.jsonl", PAIRS).records[0].messages[1].content == "2"
    file = tmp_path / "data" / "a.jsonl"
    before = file.stat()
    file.write_text(file.read_text("utf-8").replace('"2"', '"3"'), "utf-8")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    again = read_records(TaskSpec(name="math", data="a.jsonl"), tmp_path / "data")
    assert again.records[0].messages[1].content == "3"


def test_mapping(read):
    rows = [{"question": "Which?", "options": ["x", "y"], "right": 1, "prompt": "not this"}]
    fields = {"prompt": "{question}\nA. {options[0]}\nB. {options[1]}", "completion": "{right}"}
    (record,) = read("a.jsonl", rows, fields=fields).records
    assert record.messages == turns(("u", "Which?\nA. x\nB. y"), ("a", "1"))


def test_mapping_decides_between_shapes(read):
    rows = [{**PAIRS[0], **CHATS[0]}]
    for field, expected in (("messages", "messages"), ("prompt", "prompt and completion")):
        assert read("a.jsonl", rows, fields={field: field}).shape == expected
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
    for count, seed in ((10, 0), (20, 0), (10, 1), (50, 0), (99, 0)):
        records = read("a.jsonl", rows, max_examples=count, seed=seed)
        assert records.num_records == 50
        assert all(record.messages[0].content == str(record.number) for record in records.records)
        numbers[count, seed] = [record.number for record in records.records]
        assert numbers[count, seed] == sorted(numbers[count, seed])
    assert len(numbers[10, 0]) == len(numbers[10, 1]) == 10 and len(numbers[20, 0]) == 20
    assert set(numbers[10, 0]) < set(numbers[20, 0]) and numbers[10, 0] != numbers[10, 1]
    assert numbers[50, 0] == numbers[99, 0] == list(range(50))


def test_samples_are_fair():
    counts = [0] * 20
    for seed in range(2000):
        for number in chosen(range(20), 5, str(seed)):
            counts[number] += 1
    assert all(abs(count - 500) < 100 for count in counts)  # 5 standard deviations: 5 · sqrt(2000 · ¼ · ¾)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", ""),
        ("a.jsonl", "\n \n"),
        ("a.json", "[]"),
        ("a.csv", ""),
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
        ("a.jsonl", '{"prompt": "a"}\n{"prompt":\n', "JSONL: line 2: Expecting value"),
        ("a.jsonl", "hello", "JSONL: line 1: Expecting value"),
        ("a.jsonl", "1\n2\n", "JSONL: record 0 is the number 1, expected an object"),
        ("a.jsonl", b"\xff\xfe\x00{", "JSONL: "),
        ("a.json", '[{"prompt": 1', "JSON: "),
        (
            "a.csv",
            "prompt,completion\n1,2\n1,2,3,4\n",
            "CSV: Error tokenizing data. C error: Expected 2 fields in line 3",
        ),
        ("a.csv", "prompt,completion\ncafé,x\n".encode("latin1"), "CSV: 'utf-8' codec can't decode byte 0xe9"),
        ("a.parquet", b"PAR1", "PARQUET: Parquet file size is 4 bytes"),
    ],
)
def test_files_of_another_kind(read, capfd, name, content, kind):
    with pytest.raises(TaskError, match=rf"^task math \({name}\): .*{name} cannot be read as {kind}"):
        read(name, content)
    assert capfd.readouterr() == ("", "")


def test_a_hub_data_set_out_of_reach(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        TaskError, match=r"^task math \(no/such\): split 'train' could not be had from the hub: Couldn't"
    ):
        read_records(TaskSpec(name="math", data="no/such"), ".")


def test_a_hub_that_does_not_answer_is_asked_once():
    """In a process of its own, which is not told to be offline: no half minute, and no lines of the hub's client."""
    code = (
        "from trace_transfer.data.records import read_records\n"
        "from trace_transfer.data.tasks_file import TaskError, TaskSpec\n"
        "try: read_records(TaskSpec(name='math', data='no/such'), '.')\n"
        "except TaskError as error: print(error)"
    )
    start = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert time.perf_counter() - start < 15
    assert done.stderr == ""
    assert done.stdout.startswith(
        "task math (no/such): split 'train' could not be had from the hub: it does not answer ("
    )
    assert "its cache here lacks the data set" in done.stdout


def test_without_an_answer_the_cache_is_read(monkeypatch):
    def ask(url, timeout):
        raise OSError("no route to host")

    def load_dataset(path, **options):
        assert huggingface_hub.constants.is_offline_mode()
        return Dataset.from_list(PAIRS)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_records(TaskSpec(name="math", data="owner/name"), ".").records) == 2
    assert not huggingface_hub.constants.is_offline_mode()


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
        "fields name columns that are not there:",
        "  - prompt: no column 'qestion'; columns: question, answer; did you mean 'question'?",
        "  - completion: no column 'hint'; columns: question, answer",
    ]


def test_no_shape(read):
    found = refused(read, [{"question": "q", "answer": "a"}])
    assert found[:2] == ["the columns make up no known shape.", "  columns: question, answer"]
    assert found[-1].startswith("Say with fields: which columns are meant")


def test_records_without_text(read):
    bad = [(" ", "b"), ("a", None), ("a", 5), ({"x": 1}, "b"), ([], "b"), ("a", True)]
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in [("a", "b"), *bad]]
    head, *found = refused(read, rows)
    assert head == "6 of 7 records cannot be used (counted from 0):"
    assert [line.split(",")[0].split(" (")[0] for line in found] == [
        f"  - record {number}: {told}"
        for number, told in enumerate(
            ("prompt is empty", "completion is empty", "completion is the number 5", "prompt is a mapping",
             "prompt is empty", "completion is True"), start=1,
        )
    ]  # fmt: skip


def test_chats_that_are_none(read):
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = [
        [user, answer],
        [user],
        [],
        None,
        "text",
        ["text"],
        [{"role": "robot", "content": "a"}, answer],
        [user, {"role": "assistant", "content": None}],
        [user, {"role": "assistant", "content": ["b"]}],
        [{"role": "user", "content": ""}, answer],
        [{"content": "a"}, answer],
        [{"role": ["user"], "content": "a"}, answer],
    ]
    roles = "expected one of system, developer, user, assistant, tool, human, gpt"
    assert refused(read, [{"messages": row} for row in rows]) == [
        "11 of 12 records cannot be used (counted from 0):",
        "  - record 1: messages has no turn of the assistant",
        "  - record 2: messages is empty, expected a list of messages",
        "  - record 3: messages is nothing, expected a list of messages",
        "  - record 4: messages is text, expected a list of messages",
        "  - record 5: messages[0] is text, expected {role: …, content: …}",
        f"  - record 6: messages[0] has the role 'robot', {roles}",
        "  - record 7: messages[1] is empty",
        "  - record 8: messages[1] is a list, expected text",
        "  - record 9: messages[0] is empty",
        f"  - record 10: messages[0] has the role None, {roles}",
        f"  - record 11: messages[0] has the role ['user'], {roles}",
    ]
