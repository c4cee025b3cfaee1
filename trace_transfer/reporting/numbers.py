"""Numbers as the report writes them: means with their intervals, in units that a person reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trace_transfer.files import SIZES
from trace_transfer.reporting.records import Interval

TIMES = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
COUNTS = ((1e9, "billion"), (1e6, "million"))


def value(number: float, share: bool = False) -> str:
    """`41.2` of a share, in percent; `0.412`, `12.3` of others."""
    number = number * 100 if share else number
    text = f"{abs(number):,.{1 if share or abs(number) >= 10 else 3}f}"
    return ("-" if number < 0 and text.strip("0.,") else "") + text


def signed(number: float, share: bool = False) -> str:
    """`+3.1`, `-0.210`, `0.000`."""
    text = value(number, share)
    return f"+{text}" if number > 0 and text.strip("0.,") else text


def interval(found: Interval, write: Callable[[float], str] = value) -> str:
    """`0.412 [0.380, 0.444]`; the mean alone where there is no interval."""
    if found.low is None or found.high is None:
        return write(found.mean)
    return f"{write(found.mean)} [{write(found.low)}, {write(found.high)}]"


def amount(found: Interval, share: bool) -> str:
    """`+3.1 points [+1.0, +5.2]`: of shares in percentage points."""
    mean, *ends = interval(found, lambda number: signed(number, share)).split(" ", 1)
    return " ".join([mean, *(["points"] if share else []), *ends])


def _measured(found: Interval, units: Sequence[tuple[float, str]]) -> str:
    size, unit = next(((size, unit) for size, unit in units if abs(found.mean) >= size), units[-1])

    def write(number: float) -> str:
        return f"{number / size:.3g}" if abs(number) < 1000 * size else f"{number / size:,.0f}"

    ends = (found.low, found.high)
    told = found if ends != (found.mean, found.mean) else Interval(mean=found.mean, num=found.num)
    return f"{interval(told, write)} {unit}"


def seconds(found: Interval) -> str:
    """`2.5 [2.4, 2.7] min`, in the unit of the mean."""
    return _measured(found, TIMES)


def size(found: Interval) -> str:
    """Bytes in decimal units."""
    return _measured(found, SIZES)


def count(number: float) -> str:
    """`134.5 million`, `12,345`."""
    unit = next(((size, word) for size, word in COUNTS if number >= size), None)
    return f"{number:,.0f}" if unit is None else f"{number / unit[0]:,.1f} {unit[1]}"


def one(number: float) -> Interval:
    """A single number as the writers above take it."""
    return Interval(mean=number, num=1)


def several(number: int, word: str, plural: str | None = None) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
