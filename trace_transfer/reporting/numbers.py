"""Numbers as the report writes them: means with their intervals, in units that a person reads."""

from __future__ import annotations

from collections.abc import Sequence

from trace_transfer.reporting.records import Interval
from trace_transfer.tables import Number

TIMES = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
COUNTS = ((1e9, "billion"), (1e6, "million"))
Units = Sequence[tuple[float, str]]


def single(number: float) -> Interval:
    return Interval(mean=number, num=1)


def number(found: Interval | float, share: bool, *, signed: bool = False) -> Number:
    """A share in percent with one digit, other metrics in their own unit with three."""
    found = found if isinstance(found, Interval) else single(found)
    scale, digits = (100.0, 1) if share else (1.0, 3)
    low, high = (None if end is None else end * scale for end in (found.low, found.high))
    return Number(found.mean * scale, low, high, digits, signed)


def amount(found: Interval | float, share: bool) -> str:
    """`+3.1 points [+1.0, +5.2]`: a difference, of shares in percentage points; a number alone has no sign."""
    mean, *ends = number(found, share, signed=isinstance(found, Interval)).text.split(" ", 1)
    return " ".join([mean, *["points"] * share, *ends])


def measured(found: Interval, scale: float) -> Number:
    """Three significant digits, without an interval where all were the same."""
    ends = (None, None) if found.low == found.high else (found.low, found.high)
    low, high = (None if end is None else end / scale for end in ends)
    return Number(found.mean / scale, low, high, digits=3, significant=True)


def unit_of(most: float, units: Units) -> tuple[float, str]:
    return next((unit for unit in units if most >= unit[0]), units[-1])


def seconds(found: Interval) -> str:
    """`2.50 [2.40, 2.70] min`, in the unit of the mean."""
    scale, unit = unit_of(found.mean, TIMES)
    return f"{measured(found, scale).text} {unit}"


def count(number: float) -> str:
    """`134.5 million`, `12,345`."""
    unit = next(((size, word) for size, word in COUNTS if number >= size), None)
    return f"{number:,.0f}" if unit is None else f"{number / unit[0]:,.1f} {unit[1]}"


def several(number: int, word: str, plural: str | None = None) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
