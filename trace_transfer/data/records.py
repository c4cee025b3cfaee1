"""Rows of three shapes → conversations in which some turns are answers to learn.

    prompt, completion                      each a text; a prompt may also be a list of messages, none of them learned
    instruction, input (optional), output   Alpaca; a blank input is none
    messages                                [{role, content}, …] or ShareGPT's [{from, value}, …]; also `conversations`

Of every shape: `system`, `tools` and `chat_template_kwargs`. Of a message `weight`, `train`, `training` and `loss` say
whether an assistant's turn is learned; without them it is. What else a message says is handed to the chat template
(`rendering` sees whether that writes it). What else a record says is named in a note, or refused where its meaning is
known and cannot be honoured.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trace_transfer.data.reading import Rows, read_rows
from trace_transfer.data.tasks_file import (
    OPTIONAL,
    SHAPES,
    Place,
    Source,
    TaskError,
    TaskSpec,
    UnusableValueError,
    describe,
    parse_source,
    suggestion,
)
from trace_transfer.errors import listing

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "gpt": "assistant",
}  # fmt: skip
MASKS = ("weight", "train", "training", "loss")
_SAID = ("role", "from", "content", "value", *MASKS)
# Keys of a message that a model of text cannot honour, and parts of a turn, which are learned as a whole or not.
_UNHONOURED = (
    "images", "image", "audio", "audios", "videos", "video", "train_detail", "training_detail", "loss_mask",
    "loss_scale",
)  # fmt: skip


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        is_answer: where it is to be learned.
        more: what it says beside role and content, such as `tool_calls` or `reasoning_content`.
    """

    role: str
    content: str
    is_answer: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def not_learned(self) -> Message:
        return replace(self, is_answer=False)

    @property
    def parts(self) -> list[Any]:
        """All that it is, for checksums."""
        return [self.role, self.content, self.is_answer, *([dict(self.more)] if self.more else [])]


def turns_of(value: Any, name: str, *, ignore: Sequence[str], exact: bool) -> tuple[Message, ...]:
    """A list of messages; a blank system message is none.

    Args:
        ignore: keys that are left out as if they were not there.
        exact: whether a key with nothing in it was written there; a table gives every message the keys of all.

    Raises:
        UnusableValueError: it is no such list, or a message says something that cannot be honoured.
    """
    if not isinstance(value, list) or not value:
        raise UnusableValueError(
            f"{name} is {describe(value) if value != [] else 'empty'}, expected a list of messages"
        )
    turns = []
    for place, item in enumerate(value):
        where = f"{name}[{place}]"
        if not isinstance(item, Mapping):
            raise UnusableValueError(f"{where} is {describe(item)}, expected {{role: …, content: …}}")
        said = {key: one for key, one in item.items() if key not in ignore}
        role = _role(said, where)
        more = {key: _more(key, one, where, exact) for key, one in said.items() if key not in _SAID}
        more = {key: one for key, one in more.items() if not is_nothing(one)}
        content = _content(said, where, may_be_blank=role == "tool" or (role == "assistant" and bool(more)))
        if content is not None:
            turns.append(Message(role, content, mask_of(said, role, where), more))
    return tuple(turns)


def is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def mask_of(item: Mapping[str, Any], role: str, where: str) -> bool:
    """Whether a turn is learned: an assistant's, unless a key says otherwise."""
    given = {key: item[key] for key in MASKS if item.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise UnusableValueError(
                f"{where} has {key} {value!r}, expected 0 or 1, false or true: a turn is learned or not"
            )
        if value and role != "assistant" and key in ("train", "training"):
            raise UnusableValueError(
                f"{where} has {key} {value!r}: a turn of the {role}, and only the assistant's are learned (ignore: "
                f"[{key}] leaves it out)"
            )
    if len({bool(value) for value in given.values()}) > 1:
        said = ", ".join(f"{key} {value!r}" for key, value in given.items())
        raise UnusableValueError(f"{where} has {said}, which contradict each other")
    return role == "assistant" and all(given.values())


def _one_of(item: Mapping[str, Any], first: str, second: str, where: str) -> Any:
    """The value under either name of a key."""
    one, other = item.get(first), item.get(second)
    if one is not None and other is not None and one != other:
        raise UnusableValueError(f"{where} has {first} and {second}, which contradict each other")
    return one if one is not None else other


def _role(item: Mapping[str, Any], where: str) -> str:
    role = _one_of(item, "role", "from", where)
    if not isinstance(role, str) or role not in ROLES:
        raise UnusableValueError(f"{where} has the role {role!r}, expected one of {', '.join(ROLES)}")
    return ROLES[role]


def _content(item: Mapping[str, Any], where: str, *, may_be_blank: bool) -> str | None:
    """The text of a message; None for a system message that says nothing."""
    content = _one_of(item, "content", "value", where)
    if isinstance(content, list) and content and all(isinstance(part, Mapping) for part in content):
        content = "".join(_part(part, f"{where}.content[{place}]") for place, part in enumerate(content))
    if content is None or (isinstance(content, str) and not content.strip()):
        if may_be_blank:
            return content or ""
        if isinstance(content, str) and item.get("role", item.get("from")) == "system":
            return None
    return _text(content, where)


def _part(part: Mapping[str, Any], where: str) -> str:
    """The text of a part of OpenAI's form."""
    others = [key for key, value in part.items() if key not in ("type", "text") and not is_nothing(value)]
    if part.get("type", "text") != "text" or others or not isinstance(part.get("text"), str):
        kind = part.get("type")
        raise UnusableValueError(
            f"{where} is of type {kind!r}" + (f" with {', '.join(others)}" if others else "") + ", expected {type: "
            "text, text: …}: a model of text sees nothing else"
        )
    return str(part["text"])


def _more(key: str, value: Any, where: str, exact: bool) -> Any:
    """What else a message says, as chat templates expect it."""
    if key in _UNHONOURED and not is_nothing(value):
        raise UnusableValueError(f"{where} has {key}, which cannot be honoured (ignore: [{key}] leaves it out)")
    value = without_nulls(value, exact)
    if key == "tool_calls" and isinstance(value, list):
        return [_call(one) for one in value]
    return value


def _call(call: Any) -> Any:
    """A tool call with its arguments as an object: OpenAI has them as JSON in a text, which templates would quote."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(function := call.get("function"), Mapping):
        return {**call, "function": _call(function)}
    if isinstance(text := call.get("arguments"), str):
        try:
            arguments = json.loads(text)
        except ValueError:
            return call
        return {**call, "arguments": arguments} if isinstance(arguments, dict) else call
    return call


def without_nulls(value: Any, exact: bool) -> Any:
    """A table gives each object the keys of all others, with nothing in them; the data of JSON stay what they are."""
    if exact:
        return value
    if isinstance(value, dict):
        return {key: without_nulls(one, exact) for key, one in value.items() if one is not None}
    return [without_nulls(one, exact) for one in value] if isinstance(value, list) else value


SHAREGPT_COLUMN = "conversations"
# Columns that change what a record means, and what is to be done; a blank one says nothing.
_UNSEEN = "a model of text does not see it"
_REFUSED = {
    **dict.fromkeys(("images", "image", "audio", "audios", "videos", "video"), _UNSEEN),
    "history": "earlier turns; give them as messages",
    "functions": "give them as tools",
    "function_call": "give it as tool_calls of a message",
}


@dataclass(frozen=True)
class Record:
    """A conversation that ends with an answer.

    Attributes:
        number: counted from 0 in its data.
        context: what the chat template is given beside the messages: `tools`, and what `chat_template_kwargs` says.
    """

    number: int
    messages: tuple[Message, ...]
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Records:
    """What was read of a task's data.

    Attributes:
        shape: which of the three; a key of `SHAPES`.
        num_records: in the data; `records` are fewer with `max_examples`.
        notes: what was left out of them, with counts.
    """

    task: str
    shape: str
    num_records: int
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()


def read_records(spec: TaskSpec, base_directory: Path | str, *, seed: int = 0) -> Records:
    """Read a task's data, a random sample of it where `max_examples` says so, in the order of the file.

    Args:
        base_directory: what a local file's name is relative to: the directory of `tasks.yaml`.
        seed: of the sample. A larger sample with the same seed holds the smaller one.

    Raises:
        TaskError: no records, unknown columns, no known shape, or records without a usable prompt or answer, or with
            something that cannot be honoured (all named).
    """
    rows = read_rows(spec, base_directory)
    shape, sources = _find_shape(spec, [name for name in rows.column_names if name not in spec.ignore])
    numbers = chosen(range(len(rows)), spec.max_examples, f"{seed}/sample")
    records, notes = _convert(spec, rows, numbers, shape, sources)
    return Records(spec.name, shape, len(rows), records, notes)


def chosen(names: Iterable[Any], count: int | None, seed: str) -> list[Any]:
    """A random choice in the given order; None for all.

    Those whose hash comes first: the same with every version of every library, whichever others there are.
    """
    everything = list(names)
    if count is None or count >= len(everything):
        return everything
    ranked = sorted(everything, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    kept = set(ranked[:count])
    return [name for name in everything if name in kept]


def _find_shape(spec: TaskSpec, columns: Sequence[str]) -> tuple[str, dict[str, Source]]:
    """The shape that the mapped and the remaining columns make up, and where each of its fields comes from."""
    sources = {name: parse_source(text) for name, text in spec.fields.items()}
    missing = [
        f"{name}: no column '{column}'; {suggestion(column, columns, 'columns')}"
        for name, source in sources.items()
        for column in source.columns
        if column not in columns
    ]
    if missing:
        raise TaskError(f"{spec.label}: fields name columns that are not there:\n" + listing(missing))
    for name in {name for names in SHAPES.values() for name in names} - set(sources):
        if name in columns:
            sources[name] = Source((Place(name),), is_format=False)
    if "messages" not in sources and SHAREGPT_COLUMN in columns:
        sources["messages"] = Source((Place(SHAREGPT_COLUMN),), is_format=False)
    lacking = {
        shape: [name for name in names if name not in sources and name not in ("input", *OPTIONAL)]
        for shape, names in SHAPES.items()
        if set(spec.fields) <= set(names)
    }
    complete = [shape for shape, names in lacking.items() if not names]
    if len(complete) == 1:
        return complete[0], {name: sources[name] for name in SHAPES[complete[0]] if name in sources}
    found = "the columns make up more than one shape" if complete else "the columns make up no known shape"
    shapes = complete or [f"{shape} (lacks {', '.join(names)})" for shape, names in lacking.items()]
    raise TaskError(
        f"{spec.label}: {found}.\n  columns: {', '.join(columns)}\n  shapes:  {'; '.join(shapes)}\n"
        "Say with fields: which columns are meant, such as fields: {prompt: …, completion: …}"
    )


def _convert(
    spec: TaskSpec, rows: Rows, numbers: Sequence[int], shape: str, sources: Mapping[str, Source]
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """The chosen rows as conversations with notes on them, or one error for all that are none."""
    columns = list(dict.fromkeys(column for source in sources.values() for column in source.columns))
    problems, notes = beside(spec, rows, numbers, columns)
    records, counts = [], Counter[str]()
    for number, row in zip(numbers, rows.of(numbers, columns), strict=True):
        try:
            messages = _CONVERTERS[shape](_Row(row, sources, spec.ignore, rows.is_exact))
            kept = _up_to_the_last_answer(messages)
            counts["turns left out behind the last answer, as they would never be learned"] += len(messages) - len(kept)
            context = _context(row, sources, exact=rows.is_exact)
            records.append(Record(number, _with_system(kept, row, sources), context))
        except UnusableValueError as problem:
            problems.append((number, str(problem)))
    if problems:
        bad = len({number for number, _ in problems})
        count = f"{bad} of {len(numbers)} records cannot be used" if len(numbers) > 1 else "cannot be used"
        lines = [f"record {number}: {problem}" for number, problem in sorted(problems)]
        raise TaskError(f"{spec.label}: {count} (counted from 0):\n" + listing(lines))
    return tuple(records), (*notes, *(f"{what}: {count:,}" for what, count in counts.items() if count))


def beside(
    spec: TaskSpec, rows: Rows, numbers: Sequence[int], used: Sequence[str]
) -> tuple[list[tuple[int, str]], list[str]]:
    """Records that a column beside those which are read makes unusable, and a note on the columns that say nothing."""
    problems, unread = [], []
    for column in rows.column_names:
        if column in used or column in spec.ignore:
            continue
        if column not in (*_REFUSED, *MASKS, "label"):
            unread.append(column)
            continue
        for number, value in zip(numbers, rows.given(column, numbers), strict=True):
            why = _REFUSED.get(column, "a record that is not to be learned, or otherwise than the rest")
            if column in MASKS and (value is True or value == 1):
                continue
            if is_nothing(value) or (column == "label" and value is not False):
                continue
            problems.append((number, f"{column} is {describe(value)}: {why} (ignore: [{column}] leaves it out)"))
    notes = [f"columns that are not read: {', '.join(unread)}"] if unread else []
    return problems, notes


@dataclass(frozen=True)
class _Row:
    """A record under the names of its shape."""

    columns: Mapping[str, Any]
    sources: Mapping[str, Source]
    ignore: Sequence[str]
    is_exact: bool

    def field(self, name: str) -> Any:
        return _field(self.columns, self.sources, name)

    def turns(self, value: Any, name: str) -> tuple[Message, ...]:
        return turns_of(value, name, ignore=self.ignore, exact=self.is_exact)


def _field(row: Mapping[str, Any], sources: Mapping[str, Source], name: str) -> Any:
    try:
        return sources[name].value(row)
    except UnusableValueError as problem:
        raise UnusableValueError(f"{name} {problem}") from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        hint = ' (a format such as "{column}" makes text of it)' if number else ""
        raise UnusableValueError(
            f"{name} is {describe(value)}, expected text{hint}" if value is not None else f"{name} is empty"
        )
    if not value.strip():
        raise UnusableValueError(f"{name} is empty")
    return value


def _from_prompt(row: _Row) -> tuple[Message, ...]:
    prompt, completion = row.field("prompt"), row.field("completion")
    if isinstance(prompt, list):
        context = tuple(turn.not_learned() for turn in row.turns(prompt, "prompt"))
    else:
        context = (Message("user", _text(prompt, "prompt")),)
    if isinstance(completion, list):
        return (*context, *_require_answer(row.turns(completion, "completion"), "completion"))
    return (*context, Message("assistant", _text(completion, "completion"), True))


def _from_instruction(row: _Row) -> tuple[Message, ...]:
    instruction = _text(row.field("instruction"), "instruction")
    given = row.field("input") if "input" in row.sources else None
    if given is not None and not (isinstance(given, str) and not given.strip()):
        instruction = f"{instruction}\n\n{_text(given, 'input')}"
    return Message("user", instruction), Message("assistant", _text(row.field("output"), "output"), True)


def _from_messages(row: _Row) -> tuple[Message, ...]:
    return _require_answer(row.turns(row.field("messages"), "messages"), "messages")


def _require_answer(turns: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    if not any(turn.is_answer for turn in turns):
        masked = any(turn.role == "assistant" for turn in turns)
        raise UnusableValueError(
            f"{name} has no turn of the assistant" + (" that is to be learned: all are masked" if masked else "")
        )
    return turns


def _up_to_the_last_answer(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """What comes after it would never be learned."""
    return turns[: max(index for index, turn in enumerate(turns) if turn.is_answer) + 1]


def _with_system(
    messages: tuple[Message, ...], row: Mapping[str, Any], sources: Mapping[str, Source]
) -> tuple[Message, ...]:
    """With the system message of the record's own column."""
    given = _field(row, sources, "system") if "system" in sources else None
    if given is None or (isinstance(given, str) and not given.strip()):
        return messages
    system = Message("system", _text(given, "system"))
    if any(message.role == "system" and message.content.strip() != system.content.strip() for message in messages):
        raise UnusableValueError("system is another text than that of the system message")
    return messages if any(message.role == "system" for message in messages) else (system, *messages)


def _context(row: Mapping[str, Any], sources: Mapping[str, Source], *, exact: bool) -> dict[str, Any]:
    """What the chat template is given beside the messages."""
    found: dict[str, Any] = {}
    for name, kind in (("chat_template_kwargs", dict), ("tools", list)):
        value = _field(row, sources, name) if name in sources else None
        if isinstance(value, str) and value.strip():  # a table holds lists of unlike objects as JSON
            try:
                value = json.loads(value)
            except ValueError:
                raise UnusableValueError(f"{name} is text, and not JSON: {value:.40}") from None
        if is_nothing(value):
            continue
        if not isinstance(value, kind):
            raise UnusableValueError(f"{name} is {describe(value)}, expected a {'list' if kind is list else 'mapping'}")
        found |= without_nulls(value, exact) if kind is dict else {name: without_nulls(value, exact)}
    return found


_CONVERTERS: dict[str, Callable[[_Row], tuple[Message, ...]]] = dict(
    zip(SHAPES, (_from_prompt, _from_instruction, _from_messages), strict=True)
)
