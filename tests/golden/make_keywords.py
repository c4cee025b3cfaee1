"""Makes the keywords of the settings: `python -m tests.golden.make_keywords > trace_transfer/keywords.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, get_args, get_origin

from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.settings import Settings, Single, bare, singles, words
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings

CLASSES: dict[str, type[Settings]] = {
    "IdentifyKeywords": IdentifySettings,
    "MapKeywords": MapSettings,
    "StreamKeywords": StreamSettings,
    "EvaluateKeywords": EvaluateSettings,
}
HEAD = '''\
"""The settings as keywords of the Python functions, for editors and type checkers; the defaults are beside them.

Made of the classes of settings by `python -m tests.golden.make_keywords`; not to be edited.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict
'''


def written(hint: Any) -> str:
    """A type as people give it: a path may be a text, and one text may stand for several."""
    kind, optional = bare(hint)
    if get_origin(kind) is Literal:
        text = f"Literal[{', '.join(repr(one).replace(chr(39), chr(34)) for one in get_args(kind))}]"
    elif get_origin(kind) is tuple:
        item = written(get_args(kind)[0])
        text = f"{item} | Sequence[{item}]"
    else:
        text = "Mapping[str, Any]" if get_origin(kind) is Mapping else _NAMES[kind]
        text += "".join(f' | Literal["{word}"]' for word in words(hint))
    return f"{text} | None" if optional else text


_NAMES = {int: "int", float: "float", bool: "bool", str: "str", Path: "str | PathLike[str]"}


def line(one: Single) -> str:
    default = "" if one.name == "cache" else f"  # {one.default!r}".replace("'", '"')
    text = f"    {one.name}: {written(one.field.annotation)}{default}"
    if len(text) <= 120:
        return text
    before, _, values = text.partition("[")
    values, _, after = values.partition("]")
    wrapped = fill(values, 120, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return f"{before}[\n{wrapped}\n    ]{after}" + ("  # fmt: skip" if "\n" in wrapped else "")


def module() -> str:
    parts = [HEAD]
    for name, kind in CLASSES.items():
        lines = [line(one) for one in singles(kind)]
        doc = f'    """Of `{kind.__name__}`."""'
        parts.append("\n".join([f"class {name}(TypedDict, total=False):", doc, "", *lines, ""]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(module(), end="")
