"""Makes the keywords of the settings: `python -m tests.golden.make_keywords > trace_transfer/keywords.py`."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill
from typing import Any

from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.settings import Settings, settings_schema
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings

HEAD = '''\
"""The settings as keywords of the Python functions, for editors and type checkers.

Made of the classes of settings by `python -m tests.golden.make_keywords`; not to be edited.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict
'''
_NAMES = {
    "integer": "int", "number": "float", "boolean": "bool", "string": "str", "object": "Mapping[str, Any]",
    "null": "None",
}  # fmt: skip


def name_of(kind: type[Settings]) -> str:
    return f"{kind.__name__.removesuffix('Settings')}Keywords"


def written(schema: dict[str, Any]) -> str:
    """A type as people give it."""
    match schema:
        case {"anyOf": several}:
            return " | ".join(map(written, several))
        case {"enum": allowed}:
            return f"Literal[{', '.join(f'{chr(34)}{one}{chr(34)}' for one in allowed)}]"
        case {"const": word}:
            return f'Literal["{word}"]'
        case {"items": item}:
            return f"Sequence[{written(item)}]"
        case {"format": "path"}:
            return "str | PathLike[str]"
    return _NAMES[schema["type"]]


def line(name: str, schema: dict[str, Any]) -> str:
    text = f"    {name}: {written(schema)}"
    if len(text) <= 120:
        return text
    before, _, values = text.partition("[")
    values, _, after = values.partition("]")
    wrapped = fill(values, 120, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return f"{before}[\n{wrapped}\n    ]{after}" + ("  # fmt: skip" if "\n" in wrapped else "")


def classes(kind: type[Settings]) -> Iterator[tuple[str, str]]:
    """Name and text of a class of keywords, after those of the parts of its settings."""
    parts = [type(field.get_default(call_default_factory=True)) for field in kind.model_fields.values()]
    parts = [part for part in parts if issubclass(part, Settings)]
    for part in parts:
        yield from classes(part)
    own = [line(name, schema) for name, schema in settings_schema(kind).items() if name in kind.model_fields]
    bases = [name_of(part) for part in parts] or ["TypedDict"]
    head = f"class {name_of(kind)}({', '.join(bases)}, total=False):"
    yield name_of(kind), "\n".join([head, *(own or ["    pass"]), ""])


def module() -> str:
    found: dict[str, str] = {}
    for kind in (IdentifySettings, MapSettings, StreamSettings, EvaluateSettings):
        found |= dict(classes(kind))
    return "\n\n".join([HEAD, *found.values()])


if __name__ == "__main__":
    print(module(), end="")
