"""`tasks.yaml`: which tasks there are, where their data lie, and where in these each field's text comes from.

A field is a column, or a text with columns in braces:

    question                                a column
    "{question}\\nA. {opa}\\nB. {opb}"        columns filled in
    "{choices[0]}", "{input[1][content]}"   an item of a list (negative from its end), an entry of a mapping
    "{{literal}}"                           braces of the text itself
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from trace_transfer.errors import UserError, listing, suggestion
from trace_transfer.records import TASK, Strict
from trace_transfer.settings import problem_with, texts
from trace_transfer.text_formats import kind_of, read_yaml

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}\[\]]+)((?:\[[^\[\]{}]+\])*)\}|[{}]")
FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}  # extension → builder of datasets
OPTIONAL = ("system", "tools", "chat_template_kwargs")  # of every shape
SHAPES: dict[str, tuple[str, ...]] = {
    "prompt and completion": ("prompt", "completion", *OPTIONAL),
    "instruction, input (optional) and output": ("instruction", "input", "output", *OPTIONAL),
    "messages": ("messages", *OPTIONAL),
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Kinds of file that people try, which would otherwise be taken for the name of a hub data set.
_OTHER_FILES = re.compile(r"\.(txt|tsv|xlsx?|xml|ya?ml|md|zip|gz|bz2|xz|zst|tar|arrow|feather|db|sqlite|py|json5)")


class UnusableValueError(UserError):
    """A record has no usable value here; the message ends a sentence that begins with the field's name."""


@dataclass(frozen=True)
class Place:
    """A column and the way into its value."""

    column: str
    path: tuple[str, ...] = ()

    def value(self, row: Mapping[str, Any]) -> Any:
        found: Any = row.get(self.column)
        for step in self.path:
            try:
                found = found[int(step)] if isinstance(found, list) else found[step]
            except (KeyError, IndexError, TypeError, ValueError):
                way = self.column + "".join(f"[{step}]" for step in self.path)
                raise UnusableValueError(f"has nothing at {way}") from None
        return found

    def text(self, row: Mapping[str, Any]) -> str:
        value = self.value(row)
        if value is not None and not isinstance(value, (str, int, float)):
            raise UnusableValueError(f"takes {describe(value)} from column '{self.column}', expected text or a number")
        return "" if value is None else str(value)


@dataclass(frozen=True)
class Source:
    """Where a field's value comes from; `pieces` are literal texts and places, one place alone is a plain column."""

    pieces: tuple[str | Place, ...]
    is_format: bool

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(piece.column for piece in self.pieces if isinstance(piece, Place)))

    def value(self, row: Mapping[str, Any], field: str) -> Any:
        """The column's value as it is, or the filled-in text; an UnusableValueError that names the field."""
        try:
            if not self.is_format and isinstance(self.pieces[0], Place):
                return self.pieces[0].value(row)
            return "".join(piece if isinstance(piece, str) else piece.text(row) for piece in self.pieces)
        except UnusableValueError as problem:
            raise UnusableValueError(f"{field} {problem}") from None


def parse_source(text: str) -> Source:
    """Read one value of `fields:`; a ValueError if it is blank, or braces do not fit."""
    if not text.strip():
        raise ValueError("a field needs a column's name, or a text with columns in braces")
    if "{" not in text and "}" not in text:
        return Source((Place(text),), is_format=False)
    pieces: list[str | Place] = []
    end = 0
    for match in _PIECE.finditer(text):
        pieces.append(text[end : match.start()])
        end = match.end()
        if match[0] in ("{{", "}}"):
            pieces.append(match[0][0])
        elif match[0] in ("{", "}"):
            raise ValueError(f"'{text}': a brace at character {match.start() + 1} has no partner, or nothing in it")
        else:
            pieces.append(Place(match[1], tuple(re.findall(r"\[([^\]]+)\]", match[2]))))
    pieces.append(text[end:])
    return Source(tuple(piece for piece in pieces if piece != ""), is_format=True)


def describe(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, str) and not value.strip():
        return "blank text"
    is_plain = isinstance(value, (str, int, float, list, dict, type(None))) and not isinstance(value, bool)
    return kind_of(value) if is_plain else f"{value!r:.60}"


class TaskError(UserError):
    """A task's description or data cannot be used; lists every problem of its kind."""


class TaskSpec(Strict):
    """One task of `tasks.yaml`.

    Attributes:
        data: a local file, relative to `tasks.yaml`, or a hub data set `owner/name`.
        fields: canonical name (`prompt`, `completion`; `instruction`, `input`, `output`; `messages`; with each of them
            `system`, `tools`, `chat_template_kwargs`) → a column's name, or a text with columns in braces:
            `"{question}\\nA. {choices[0]}"`.
        subset, split, revision: of a hub data set; `split` is `train` if not given.
        max_examples: a seeded random sample of so many records, in the order of the file; None for all.
        template: `chat` for the model's chat template, `plain` for the stated one, `auto` for chat where there is one.
        system: a system message for records that have none of their own.
        ignore: columns, and keys of messages, that are left out as if they were not there.
        mismatch: what becomes of an answer that the chat template does not write as it will be generated: `refuse` it,
            `compose` it from the prompt of generation, the answer as it stands in the data and the end of the turn, or
            `keep` it as the template writes it.
        chat_template_kwargs: given to the chat template, such as `{enable_thinking: false}`; a record's own go first.
    """

    name: str = Field(pattern=TASK)
    data: str
    fields: Mapping[str, str] = Field(default_factory=dict)
    subset: str | None = None
    split: str | None = None
    revision: str | None = None
    max_examples: int | None = Field(default=None, ge=1, strict=True)
    template: Literal["auto", "chat", "plain"] = "auto"
    system: str | None = None
    ignore: Annotated[tuple[str, ...], BeforeValidator(texts, json_schema_input_type=str | list[str])] = ()
    mismatch: Literal["refuse", "compose", "keep"] = "refuse"
    chat_template_kwargs: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def builder(self) -> str | None:
        """The builder of `datasets` that reads the local file; None for a hub data set."""
        return FORMATS.get(suffix_of(self.data or ""))

    @property
    def label(self) -> str:
        return f"task {self.name} ({self.data})"

    @classmethod
    def local_files(cls, item: Mapping[str, Any]) -> dict[str, str]:
        """Key → file, of those keys of an unchecked item that name a file which must be there."""
        data = item.get("data")
        return {"data": data} if isinstance(data, str) and suffix_of(data) in FORMATS else {}

    @field_validator("data", "eval_data", check_fields=False)
    @classmethod
    def _file_or_hub_name(cls, value: str | None) -> str | None:
        suffix = suffix_of(value or "")
        if value is None or suffix in FORMATS or (_HUB_NAME.fullmatch(value) and not _OTHER_FILES.fullmatch(suffix)):
            return value
        found = f"the extension '{suffix}' of '{value}' is unknown" if suffix else f"'{value}' cannot be used"
        raise ValueError(f"{found}; expected a {', '.join(FORMATS)} file or a hub data set owner/name")

    @property
    def shapes(self) -> Mapping[str, tuple[str, ...]]:
        """Shapes of records with the names of their fields."""
        return SHAPES

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problems := self.problems():
            raise ValueError("; ".join(problems))
        return self

    def problems(self) -> list[str]:
        """What is wrong with the fields, and with keys that do not go together."""
        known = list(dict.fromkeys(name for names in self.shapes.values() for name in names))
        unknown = [name for name in self.fields if name not in known]
        found = [f"fields: unknown field '{name}', {suggestion(name, known)}" for name in unknown]
        if not unknown and not any(set(self.fields) <= set(names) for names in self.shapes.values()):
            names, shapes = ", ".join(self.fields), "; ".join(self.shapes)
            found.append(f"fields: {names} are of different shapes; the shapes are {shapes}")
        for name, several in self.fields.items():
            for text in several if isinstance(several, (list, tuple)) else [several]:
                try:
                    parse_source(text)
                except ValueError as error:
                    found.append(f"fields: {name}: {error}")
        given = [name for name in ("subset", "split", "revision") if getattr(self, name) is not None]
        if self.builder and given:
            found.append(f"{', '.join(given)}: only for hub data sets; {self.data} is a local file")
        return found


def sources_of(spec: TaskSpec, columns: Sequence[str]) -> dict[str, Source]:
    """Where each field comes from, of the one shape that the mapped and the remaining columns make up."""
    sources = {name: parse_source(text) for name, text in spec.fields.items() if isinstance(text, str)}
    fields = {name for names in SHAPES.values() for name in names}
    sources |= {name: parse_source(name) for name in fields & set(columns) - set(sources)}
    if "conversations" in columns:  # ShareGPT's
        sources.setdefault("messages", parse_source("conversations"))
    possible = {shape: names for shape, names in SHAPES.items() if set(spec.fields) <= set(names)}
    complete = [shape for shape, names in possible.items() if set(names) - sources.keys() <= {"input", *OPTIONAL}]
    if len(complete) == 1:
        return {name: sources[name] for name in SHAPES[complete[0]] if name in sources}
    shapes = complete or possible
    raise TaskError(
        f"{spec.label}: the columns make up {'more than one' if complete else 'no known'} shape.\n"
        f"  columns: {', '.join(columns)}\n  shapes:  {'; '.join(shapes)}\n"
        "Say with fields: which columns are meant, such as fields: {prompt: …, completion: …}"
    )


Spec = TypeVar("Spec", bound=TaskSpec)


def load_tasks(path: Path | str, kind: type[Spec] = TaskSpec) -> tuple[Spec, ...]:  # type: ignore[assignment]
    """Read `tasks.yaml`, or a file like it of a kind with further keys; a TaskError with all that is wrong at once."""
    file = Path(path)
    specs, problems = checked_items(items_under("tasks", file, "data:"), kind, file.parent)
    refuse(problems, str(file))
    return specs


def refuse(problems: Sequence[str], where: str) -> None:
    """Raise one error for all problems, if there are any."""
    if problems:
        count = f"{len(problems)} problem" + ("" if len(problems) == 1 else "s")
        raise TaskError(f"{where}: {count}:\n" + listing(problems))


def checked_items(
    items: Sequence[Any], kind: type[Spec], base_directory: Path, what: str = "task"
) -> tuple[tuple[Spec, ...], list[str]]:
    """Items of a list as specs, and a line for each problem of any of them: keys, names, files that are missing."""
    problems, specs = [], []
    for number, item in enumerate(items, start=1):
        named = isinstance(item, Mapping) and "name" in item
        label = f"{what} '{item['name']}'" if named else f"{what} {number} of the list"
        try:
            specs.append(kind.model_validate(item))
        except ValidationError as error:
            problems += [f"{label}: {_problem(found, kind.model_fields)}" for found in error.errors()]
        for key, data in kind.local_files(item).items() if isinstance(item, Mapping) else ():
            if not (file := locate(data, base_directory)).is_file():
                problems.append(f"{label}: {key}: {file}: no such file")
    names = Counter(spec.name for spec in specs)
    problems += [f"{what} '{name}': {count} {what}s have this name" for name, count in names.items() if count > 1]
    return tuple(specs), problems


def locate(file: str, base_directory: Path | str) -> Path:
    """A file named in a file that lies in that directory."""
    return Path(base_directory) / Path(file).expanduser()


def suffix_of(data: str) -> str:
    return PurePosixPath(data).suffix.lower()


def items_under(key: str, file: Path, needs: str) -> list[Any]:
    """The list under the one key of a YAML file."""
    content = read_yaml(file, TaskError)
    expected = f"expected a list of {key} under '{key}:' and nothing else, each with name: and {needs}"
    if not isinstance(content, Mapping) or set(content) != {key}:
        found = f"the keys {', '.join(map(str, content))}" if isinstance(content, Mapping) else kind_of(content)
        raise TaskError(f"{file}: found {found}; {expected}")
    items = content[key]
    if not isinstance(items, list) or not items:
        raise TaskError(f"{file}: {key}: found {kind_of(items) if items else f'no {key}'}; {expected}")
    return items


def _problem(error: Any, fields: Mapping[str, FieldInfo]) -> str:
    """One problem of pydantic's in our words."""
    location, given = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] == "extra_forbidden":
        return f"unknown key '{location}', {suggestion(location, fields)}"
    if error["type"] == "missing":
        return f"'{location}:' is missing"
    if error["type"] == "value_error":
        return f"{location}: {error['ctx']['error']}" if location else str(error["ctx"]["error"])
    if error["type"] == "string_pattern_mismatch":
        return f"{location}: '{given}' is not a name of letters, digits and _ . -, beginning with a letter or digit"
    return "; ".join(problem_with(location or "its keys", error))
