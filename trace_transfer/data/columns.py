"""Where a field's text comes from: a column, or a text with columns in braces.

question                                a column
"{question}\\nA. {opa}\\nB. {opb}"        columns filled in
"{choices[0]}", "{input[1][content]}"   an item of a list (negative from its end), an entry of a mapping
"{{literal}}"                           braces of the text itself
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trace_transfer.errors import UserError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}\[\]]+)((?:\[[^\[\]{}]+\])*)\}|[{}]")


class UnusableValueError(UserError):
    """A record has no usable value here; the message ends a sentence that begins with the field's name."""


@dataclass(frozen=True)
class Place:
    """A column and the way into its value."""

    column: str
    path: tuple[str, ...] = ()

    def value(self, row: Mapping[str, Any]) -> Any:
        """What lies there.

        Raises:
            UnusableValueError: the way leads nowhere.
        """
        found = row[self.column]
        for step in self.path:
            try:
                found = found[int(step)] if isinstance(found, list) else found[step]
            except (KeyError, IndexError, TypeError, ValueError):
                way = self.column + "".join(f"[{step}]" for step in self.path)
                raise UnusableValueError(f"has nothing at {way}") from None
        return found


@dataclass(frozen=True)
class Source:
    """Where a field's value comes from; `pieces` are literal texts and places, one place alone is a plain column."""

    pieces: tuple[str | Place, ...]
    is_format: bool

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(piece.column for piece in self.pieces if isinstance(piece, Place)))

    def value(self, row: Mapping[str, Any]) -> Any:
        """The column's value as it is, or the filled-in text.

        Raises:
            UnusableValueError: something that is not text, a number or a truth value is to be filled in.
        """
        if not self.is_format:
            (place,) = self.pieces
            assert isinstance(place, Place)  # a plain column
            return place.value(row)
        return "".join(piece if isinstance(piece, str) else _as_text(piece.value(row), piece) for piece in self.pieces)


def parse_source(text: str) -> Source:
    """Read one value of `fields:`.

    Raises:
        ValueError: it is blank, or braces do not fit.
    """
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
            pieces.append(Place(match[1], tuple(step for step in re.findall(r"\[([^\]]+)\]", match[2]))))
    pieces.append(text[end:])
    return Source(tuple(piece for piece in pieces if piece != ""), is_format=True)


def _as_text(value: Any, place: Place) -> str:
    if value is None:
        return ""
    if isinstance(value, (str, int, float)):
        return str(value)
    raise UnusableValueError(f"takes {describe(value)} from column '{place.column}', expected text or a number")


def describe(value: Any) -> str:
    """What a value is, for messages."""
    if value is None:
        return "nothing"
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    if isinstance(value, str):
        return "text" if value.strip() else "blank text"
    if isinstance(value, (int, float)):
        return f"the number {value}" if not isinstance(value, bool) else f"{value}"
    if isinstance(value, datetime.date):
        return f"a date, {value} (as it is stored in the data; in JSON and CSV dates are text)"
    return f"a {type(value).__name__} ({value})"
