"""A task's data → conversations in which some turns are answers to learn. Rows have one of three shapes:

    prompt, completion                      each a text; a prompt may also be a list of messages, none of them learned
    instruction, input (optional), output   Alpaca; a blank input is none
    messages                                [{role, content}, …] or ShareGPT's [{from, value}, …]; also `conversations`

Of every shape: `system`, `tools` and `chat_template_kwargs`. Of a message `weight`, `train`, `training` and `loss` say
whether an assistant's turn is learned; without them it is. What else a message says is handed to the chat template
(`rendering` sees whether that writes it). What else a record says is named in a note, or refused where its meaning is
known and cannot be honoured.

JSON and CSV are read as they stand: the readers of `datasets` make dates of texts that look like dates, numbers of an
answer 007, and give every record the keys of all others. Code that a data set brings along is never run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.data.tasks_file import Source, TaskError, TaskSpec, UnusableValueError, describe, locate, sources_of
from trace_transfer.errors import listing, suggestion
from trace_transfer.models.sources import hub_silence
from trace_transfer.text_formats import MalformedTextError, json_lines, parse_json, read_text

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = {role: role for role in ("system", "developer", "user", "assistant", "tool")} | {
    "human": "user", "gpt": "assistant",
}  # fmt: skip
MASKS = ("weight", "train", "training", "loss")
_MEDIA = ("images", "image", "audio", "audios", "videos", "video")
# Keys of a message that a model of text cannot honour, and parts of a turn, which are learned as a whole or not.
_UNHONOURED = (*_MEDIA, "train_detail", "training_detail", "loss_mask", "loss_scale")
# Columns that change what a record means; a blank one says nothing.
_REFUSED = dict.fromkeys((*_MEDIA, *MASKS, "label"), "which cannot be honoured") | {
    "history": "give earlier turns as messages",
    "functions": "give them as tools",
    "function_call": "give it as tool_calls of a message",
}


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str
    is_answer: bool = False  # to be learned
    more: Mapping[str, Any] = field(default_factory=dict)  # such as `tool_calls` or `reasoning_content`

    @property
    def parts(self) -> list[Any]:  # for checksums
        return [self.role, self.content, self.is_answer, *([dict(self.more)] if self.more else [])]


@dataclass(frozen=True)
class Record:
    """A conversation that ends with an answer."""

    number: int
    messages: tuple[Message, ...]
    context: Mapping[str, Any] = field(default_factory=dict)  # what the chat template is given beside the messages


@dataclass(frozen=True)
class Records:
    """What was read of a task's data, with notes on what was left out; `num_records` are before `max_examples`."""

    task: str
    num_records: int
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()


def read_records(spec: TaskSpec, base_directory: Path | str, *, seed: int = 0) -> Records:
    """Read a task's data, a random sample of it where `max_examples` says so, in the order of the file.

    A larger sample with the same seed holds the smaller one. A TaskError for no records, unknown columns, no known
    shape, or records that cannot be used (all named)."""
    rows = read_rows(spec, base_directory)
    sources = sources_of(spec, [name for name in rows.column_names if name not in spec.ignore])
    left_out = 0

    def convert(number: int, fields: Mapping[str, Any]) -> Record:
        nonlocal left_out
        messages = _messages(fields, spec.ignore)
        last = max(index for index, turn in enumerate(messages) if turn.is_answer) + 1
        left_out += len(messages) - last
        return Record(number, _with_system(messages[:last], fields.get("system")), _context(fields))

    records, notes = convert_all(spec, rows, sources, convert, seed)
    if left_out:
        notes.append(f"turns left out behind the last answer, as they would never be learned: {left_out:,}")
    return Records(spec.name, len(rows), tuple(records), tuple(notes))


def chosen(names: Iterable[Any], count: int | None, seed: str) -> list[Any]:
    """A random choice in the given order, None for all: those whose hash comes first, whichever others there are."""
    everything = list(names)
    if count is None or count >= len(everything):
        return everything
    ranked = sorted(everything, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    kept = set(ranked[:count])
    return [name for name in everything if name in kept]


def records_sha256(rows: Iterable[Any]) -> str:
    """Of what stands in records, whatever file they came from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()


def convert_all(
    spec: TaskSpec, rows: Rows, sources: Mapping[str, Source], convert: Any, seed: int, limit: int | None = None
) -> tuple[list[Any], list[str]]:
    """What `convert(number, fields)` makes of each row of a sample, at most so many, and notes; a TaskError names all
    columns that are not there, or rows that cannot be used."""
    columns = rows.column_names
    missing = [
        f"{name}: no column '{column}'; {suggestion(column, columns, 'columns')}"
        for name, source in sources.items()
        for column in source.columns
        if column not in columns
    ]
    if missing:
        raise TaskError(f"{spec.label}: columns that are not there (fields: says which are meant):\n{listing(missing)}")
    numbers = chosen(range(len(rows)), spec.max_examples, f"{seed}/sample")[:limit]
    used = {column for source in sources.values() for column in source.columns} | set(spec.ignore)
    refused = [column for column in columns if column in _REFUSED and column not in used]
    unread = [column for column in columns if column not in used and column not in _REFUSED]
    found, problems = [], []
    for number, row in zip(numbers, rows.pick(numbers), strict=True):
        for column in refused:
            value = row.get(column)
            is_harmless = value is not False if column == "label" else column in MASKS and value == 1
            if not is_nothing(value) and not is_harmless:
                why = f"{_REFUSED[column]} (ignore: [{column}] leaves it out)"
                problems.append(f"record {number}: {column} is {describe(value)}, {why}")
        try:
            found.append(convert(number, {name: source.value(row, name) for name, source in sources.items()}))
        except UnusableValueError as problem:
            problems.append(f"record {number}: {problem}")
    if problems:
        bad = len({problem.partition(":")[0] for problem in problems})
        count = f"{bad} of {len(numbers)} records cannot be used (counted from 0)"
        raise TaskError(f"{spec.label}: {count}:\n" + listing(problems))
    return found, [f"columns that are not read: {', '.join(unread)}"] if unread else []


# ---- rows


@dataclass(frozen=True)
class Rows:
    """Columns are in the order in which they come first."""

    table: list[dict[str, Any]] | Dataset
    column_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table)

    def pick(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """These records. A table gives each object the keys of all others: those with nothing in them are left out."""
        if isinstance(self.table, list):
            return [self.table[number] for number in numbers]
        return [_without_nulls(row) for row in self.table.select(numbers).to_list()]

    def dataset(self) -> Dataset:
        """As `datasets` has it; a ValueError if a column has values of several kinds."""
        if not isinstance(self.table, list):
            return self.table
        from datasets import Dataset

        return Dataset.from_dict({name: [row.get(name) for row in self.table] for name in self.column_names})


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def read_rows(spec: TaskSpec, base_directory: Path | str) -> Rows:
    """All rows of a task's data: of a local file, or of a hub data set, which is kept in the cache of `datasets`."""
    table = _read_file(spec, locate(spec.data, base_directory)) if spec.builder else _read_hub(spec)
    if len(table) == 0:
        raise TaskError(f"{spec.label}: no records")
    if isinstance(table, list):
        return Rows(table, tuple(dict.fromkeys(name for row in table for name in row)))
    return Rows(table, tuple(table.column_names))


def _read_file(spec: TaskSpec, file: Path) -> list[dict[str, Any]] | Dataset:
    try:
        if file.stat().st_size == 0:
            return []
        if spec.builder == "json":
            return _read_json(file)
        if spec.builder == "csv":
            import pandas

            found = pandas.read_csv(file, dtype=str, keep_default_na=False)
            return found.astype(object).where(found.notna(), None).to_dict("records")
        from datasets import Dataset
        from pyarrow.parquet import read_table

        return Dataset(read_table(file))
    except Exception as error:  # pyarrow and pandas raise many kinds; each is one message to the user
        said = " ".join(str(error).split()).removeprefix(f"{file}: ")
        raise TaskError(f"{spec.label}: {file} cannot be read as {file.suffix[1:].upper()}: {said:.300}") from error


def _read_json(file: Path) -> Any:
    """A list of objects, or one object a line, whatever the extension says."""
    text = read_text(file, TaskError)
    is_list = text.lstrip().startswith("[")
    records = parse_json(text) if is_list else []
    for number, value in () if is_list else json_lines(text):
        if isinstance(value, MalformedTextError):
            raise MalformedTextError(value.problem, number)
        records.append(value)
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise TaskError(f"record {number} is {describe(record)}, expected an object with a value for each column")
    return records


def _read_hub(spec: TaskSpec) -> Dataset:
    from datasets import load_dataset

    split = spec.split or "train"
    try:
        if silence := hub_silence(spec.data, dataset=True):
            raise ConnectionError(f"it does not answer ({silence}); HF_HUB_OFFLINE=1 reads its cache")
        return load_dataset(spec.data, name=spec.subset, split=split, revision=spec.revision, trust_remote_code=False)
    except Exception as error:  # as above
        cause: BaseException = error
        while cause.__cause__ is not None:  # `datasets` wraps it in a general complaint
            cause = cause.__cause__
        raise TaskError(
            f"{spec.label}: split '{split}' could not be had from the hub: {' '.join(str(cause).split()):.300}. Check "
            "the name, subset: and split:, your connection and, for a gated data set, `hf auth login`"
        ) from error


# ---- a record


def is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _text(value: Any, name: str) -> str:
    if _is_blank(value):
        raise UnusableValueError(f"{name} is empty")
    if not isinstance(value, str):
        hint = ' (a format such as "{column}" makes text of a number)'
        raise UnusableValueError(f"{name} is {describe(value)}, expected text{hint}")
    return value


def _messages(fields: Mapping[str, Any], ignore: Sequence[str]) -> tuple[Message, ...]:
    """The turns of a record, some of them answers."""
    if "messages" in fields:
        return _require_answer(turns_of(fields["messages"], "messages", ignore), "messages")
    if "instruction" in fields:
        prompt = _text(fields["instruction"], "instruction")
        if not _is_blank(given := fields.get("input")):
            prompt = f"{prompt}\n\n{_text(given, 'input')}"
        return Message("user", prompt), Message("assistant", _text(fields["output"], "output"), True)
    asked, completion = fields["prompt"], fields["completion"]
    if isinstance(asked, list):
        context = tuple(replace(turn, is_answer=False) for turn in turns_of(asked, "prompt", ignore))
    else:
        context = (Message("user", _text(asked, "prompt")),)
    if isinstance(completion, list):
        return (*context, *_require_answer(turns_of(completion, "completion", ignore), "completion"))
    return (*context, Message("assistant", _text(completion, "completion"), True))


def _require_answer(turns: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    if not any(turn.is_answer for turn in turns):
        raise UnusableValueError(f"{name} has no turn of the assistant, or none that is to be learned")
    return turns


def turns_of(value: Any, name: str, ignore: Sequence[str]) -> tuple[Message, ...]:
    """A list of messages, without the keys that are ignored; a blank system message is none."""
    if not isinstance(value, list) or not value:
        raise UnusableValueError(f"{name} is {describe(value) if value else 'empty'}, expected a list of messages")
    turns = []
    for place, item in enumerate(value):
        where = f"{name}[{place}]"
        if not isinstance(item, Mapping):
            raise UnusableValueError(f"{where} is {describe(item)}, expected {{role: …, content: …}}")
        said = {key: one for key, one in item.items() if key not in ignore and not is_nothing(one)}
        role = said.pop("role", said.pop("from", None))
        if not isinstance(role, str) or role not in ROLES:
            raise UnusableValueError(f"{where} has the role {role!r}, expected one of {', '.join(ROLES)}")
        role, content = ROLES[role], said.pop("content", said.pop("value", None))
        masks = {key: said.pop(key) for key in MASKS if key in said}
        if wrong := [f"{key} {value!r}" for key, value in masks.items() if value not in (0, 1)]:
            raise UnusableValueError(f"{where} has {wrong[0]}, expected 0 or 1: a turn is learned or not")
        is_answer = role == "assistant" and all(masks.values())
        if unhonoured := [key for key in said if key in _UNHONOURED]:
            key = unhonoured[0]
            raise UnusableValueError(f"{where} has {key}, which cannot be honoured (ignore: [{key}] leaves it out)")
        if isinstance(said.get("tool_calls"), list):
            said["tool_calls"] = [_call(one) for one in said["tool_calls"]]
        if isinstance(content, list):  # OpenAI's parts
            texts = [one["text"] for one in content if isinstance(one, Mapping) and isinstance(one.get("text"), str)]
            if len(texts) < len(content):
                raise UnusableValueError(f"{where} has parts that are no text, which a model of text does not see")
            content = "".join(texts)
        if _is_blank(content) and role == "system":
            continue
        may_be_blank = role == "tool" or (role == "assistant" and bool(said))
        text = (content or "") if _is_blank(content) and may_be_blank else _text(content, where)
        turns.append(Message(role, text, is_answer, said))
    return tuple(turns)


def _call(call: Any) -> Any:
    """A tool call with its arguments as an object: OpenAI has them as JSON in a text, which templates would quote."""
    if isinstance(call, Mapping) and isinstance(function := call.get("function"), Mapping):
        return {**call, "function": _call(function)}
    if isinstance(call, Mapping) and isinstance(text := call.get("arguments"), str):
        with suppress(ValueError):
            arguments = json.loads(text)
            return {**call, "arguments": arguments} if isinstance(arguments, dict) else call
    return call


def _with_system(messages: tuple[Message, ...], given: Any) -> tuple[Message, ...]:
    """With the system message of the record's own column."""
    if _is_blank(given):
        return messages
    system = Message("system", _text(given, "system"))
    own = [message.content.strip() for message in messages if message.role == "system"]
    if any(text != system.content.strip() for text in own):
        raise UnusableValueError("system is another text than that of the system message")
    return messages if own else (system, *messages)


def _context(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template is given beside the messages."""
    found: dict[str, Any] = {}
    for name, kind in (("chat_template_kwargs", dict), ("tools", list)):
        value = fields.get(name)
        if isinstance(value, str) and value.strip():  # a table holds lists of unlike objects as JSON
            with suppress(ValueError):
                value = json.loads(value)
        if is_nothing(value):
            continue
        if not isinstance(value, kind):
            raise UnusableValueError(f"{name} is {describe(value)}, expected a {'list' if kind is list else 'mapping'}")
        found |= value if kind is dict else {name: value}
    return found
