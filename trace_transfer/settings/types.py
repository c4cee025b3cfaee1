"""What Python callers give for a setting → a value of its declared type, or a problem that names it.

Numbers of numpy, lists, and paths are what they mean; a text for a number, or True for one, is refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from numbers import Real
from pathlib import Path
from reprlib import Repr
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """A value as messages show it: not a page of it."""
    return _SHORT.repr(value)


def type_problems(settings: Any) -> list[str]:
    """Bring the fields of a frozen dataclass to their types; a line for each that cannot be.

    A field that cannot has its default afterwards, so that the checks of ranges can look at all of them.
    """
    problems, hints = [], get_type_hints(type(settings))
    for field in fields(settings):
        given, hint = getattr(settings, field.name), hints[field.name]
        try:
            value = converted(given, hint)
        except TypeError:
            problems.append(f"{field.name}: found {shown(given)}, expected {expected(hint)}")
            value = field.default if field.default_factory is MISSING else field.default_factory()
        object.__setattr__(settings, field.name, value)
    return problems


def converted(value: Any, hint: Any) -> Any:
    """A value as one of a type hint of our settings.

    Raises:
        TypeError: it is none, and does not stand for one.
    """
    if get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    convert = _CONVERSIONS.get(get_origin(hint) or hint)
    if convert is not None:
        return convert(_plain(value))
    if not isinstance(value, hint):
        raise TypeError(value)
    return value


def expected(hint: Any) -> str:
    """A type hint in words."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
        return f"{expected(hint)}, or None"
    kind = get_origin(hint) or hint
    return _WORDS.get(kind) or f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _plain(value: Any) -> Any:
    """What a scalar of numpy holds: its truth values are no `bool`, and neither they nor its integers go into JSON."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # 1e3
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(value)
    return value


def _number(value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(value)
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _text(value: Any) -> str:
    text = os.fspath(value)  # a TypeError for what is neither text nor path
    if not isinstance(text, str):
        raise TypeError(value)
    return text


def _texts(value: Any) -> tuple[str, ...]:
    """Several texts, or one: `"norm"` is not n, o, r, m."""
    if isinstance(value, (str, os.PathLike)):
        return (_text(value),)
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(value)
    texts = [_text(one) for one in value]
    return tuple(sorted(texts) if isinstance(value, (set, frozenset)) else texts)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(value)
    return value


_CONVERSIONS: dict[Any, Callable[[Any], Any]] = {
    int: _whole,
    float: _number,
    bool: _truth,
    str: _text,
    tuple: _texts,
    Path: lambda value: Path(_text(value)),
    Mapping: _mapping,
}
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    tuple: "a text, or a list of texts",
    Path: "a path",
    Mapping: "a mapping",
}
