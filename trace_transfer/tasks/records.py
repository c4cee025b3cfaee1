"""Rows of three shapes → conversations in which some turns are answers to learn.

prompt, completion                      each a text; a prompt may also be a list of messages, none of them learned
instruction, input (optional), output   Alpaca; a blank input is none
messages                                [{role, content}, …] or ShareGPT's [{from, value}, …], also as `conversations`
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.errors import listing
from trace_transfer.tasks.columns import Place, Source, UnusableValueError, describe, parse_source
from trace_transfer.tasks.reading import read_rows
from trace_transfer.tasks.spec import OPTIONAL, SHAPES, TaskError, TaskSpec, suggestion

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
SHAREGPT_COLUMN = "conversations"


@dataclass(frozen=True)
class Message:
    """One turn; `is_answer` where it is to be learned."""

    role: str
    content: str
    is_answer: bool = False


@dataclass(frozen=True)
class Record:
    """A conversation that ends with an answer; `number` counts from 0 in its data."""

    number: int
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Records:
    """What was read of a task's data.

    Attributes:
        shape: which of the three; a key of `SHAPES`.
        num_records: in the data; `records` are fewer with `max_examples`.
    """

    task: str
    shape: str
    num_records: int
    records: tuple[Record, ...]


def read_records(spec: TaskSpec, base_directory: Path | str, *, seed: int = 0) -> Records:
    """Read a task's data, a random sample of it where `max_examples` says so, in the order of the file.

    Args:
        base_directory: what a local file's name is relative to: the directory of `tasks.yaml`.
        seed: of the sample. A larger sample with the same seed holds the smaller one.

    Raises:
        TaskError: no records, unknown columns, no known shape, or records without a usable prompt or
            answer (all named).
    """
    rows = read_rows(spec, base_directory)
    shape, sources = _find_shape(spec, rows.column_names)
    numbers = chosen(range(len(rows)), spec.max_examples, f"{seed}/sample")
    return Records(spec.name, shape, len(rows), _convert(spec, rows, numbers, shape, sources))


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
        shape: [name for name in names if name not in sources and name not in OPTIONAL]
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
    spec: TaskSpec, rows: Dataset, numbers: Sequence[int], shape: str, sources: Mapping[str, Source]
) -> tuple[Record, ...]:
    """The chosen rows as conversations, or one error for all that are none."""
    columns = dict.fromkeys(column for source in sources.values() for column in source.columns)
    table = rows.select_columns(list(columns))
    if len(numbers) < len(rows):
        table = table.select(numbers, keep_in_memory=True)
    records, problems = [], []
    for number, row in zip(numbers, table, strict=True):
        try:
            records.append(Record(number, _CONVERTERS[shape](row, sources)))
        except UnusableValueError as problem:
            problems.append(f"record {number}: {problem}")
    if problems:
        count = f"{len(problems)} of {len(numbers)} records cannot be used" if len(numbers) > 1 else "cannot be used"
        raise TaskError(f"{spec.label}: {count} (counted from 0):\n" + listing(problems))
    return tuple(records)


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


def _from_prompt(row: Mapping[str, Any], sources: Mapping[str, Source]) -> tuple[Message, ...]:
    prompt, completion = (_field(row, sources, name) for name in ("prompt", "completion"))
    if isinstance(prompt, list):
        context = tuple(Message(turn.role, turn.content) for turn in _turns(prompt, "prompt"))
    else:
        context = (Message("user", _text(prompt, "prompt")),)
    if isinstance(completion, list):
        return (*context, *_with_answer(_turns(completion, "completion"), "completion"))
    return (*context, Message("assistant", _text(completion, "completion"), True))


def _from_instruction(row: Mapping[str, Any], sources: Mapping[str, Source]) -> tuple[Message, ...]:
    instruction = _text(_field(row, sources, "instruction"), "instruction")
    given = _field(row, sources, "input") if "input" in sources else None
    if given is not None and not (isinstance(given, str) and not given.strip()):
        instruction = f"{instruction}\n\n{_text(given, 'input')}"
    return Message("user", instruction), Message("assistant", _text(_field(row, sources, "output"), "output"), True)


def _from_messages(row: Mapping[str, Any], sources: Mapping[str, Source]) -> tuple[Message, ...]:
    return _with_answer(_turns(_field(row, sources, "messages"), "messages"), "messages")


def _with_answer(turns: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """Up to the last answer: what comes after it would never be learned."""
    ends = [index for index, turn in enumerate(turns) if turn.is_answer]
    if not ends:
        raise UnusableValueError(f"{name} has no turn of the assistant")
    return turns[: ends[-1] + 1]


def _turns(value: Any, name: str) -> tuple[Message, ...]:
    """A list of messages; the assistant's are answers, a blank system message is none."""
    if not isinstance(value, list) or not value:
        raise UnusableValueError(
            f"{name} is {describe(value) if value != [] else 'empty'}, expected a list of messages"
        )
    turns = []
    for place, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise UnusableValueError(f"{name}[{place}] is {describe(item)}, expected {{role: …, content: …}}")
        role = item.get("role") if item.get("role") is not None else item.get("from")
        content = item.get("content") if item.get("content") is not None else item.get("value")
        if not isinstance(role, str) or role not in ROLES:
            raise UnusableValueError(f"{name}[{place}] has the role {role!r}, expected one of {', '.join(ROLES)}")
        if ROLES[role] == "system" and isinstance(content, str) and not content.strip():
            continue
        turns.append(Message(ROLES[role], _text(content, f"{name}[{place}]"), ROLES[role] == "assistant"))
    return tuple(turns)


_CONVERTERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Source]], tuple[Message, ...]]] = dict(
    zip(SHAPES, (_from_prompt, _from_instruction, _from_messages), strict=True)
)
