"""What settings have in common: fixed choices, least values, and one message for all that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trace_transfer.errors import UserError, listing

LARGEST = 2**31 - 1  # what every library below takes


def choice_problems(settings: Any, choices: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Fields whose value is none of those allowed, each with what was probably meant."""
    problems = []
    for name, allowed in choices.items():
        value = getattr(settings, name)
        if value not in allowed:
            close = get_close_matches(str(value), allowed, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            problems.append(f"{name}: {value!r} is none of {', '.join(allowed)}{hint}")
    return problems


def count_problems(settings: Any, least: Mapping[str, int]) -> list[str]:
    """Fields below their least value; None is left to the field's meaning."""
    return [
        f"{name}: {value} is not in [{bound}, {LARGEST}]"
        for name, bound in least.items()
        if (value := getattr(settings, name)) is not None and not bound <= value <= LARGEST
    ]


def share_problem(name: str, value: float | None) -> list[str]:
    """A share must be in (0, 1]."""
    return [] if value is None or 0 < value <= 1 else [f"{name}: {value} is not in (0, 1]"]


def unknown_problems(given: Iterable[str], known: Iterable[str]) -> list[str]:
    """Names that are no setting, each with what was probably meant."""
    names = sorted(known)
    problems = []
    for name in sorted(set(given) - set(names)):
        close = get_close_matches(name, names, 1)
        problems.append(f"{name}: no such setting; " + (f"did you mean {close[0]}?" if close else ", ".join(names)))
    return problems


class SettingsError(UserError):
    """Settings cannot be used; `problems` names each by the setting's name."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("settings that cannot be used:\n" + listing(self.problems))


def refuse(problems: Iterable[str]) -> None:
    """Raise one error for all problems, if there are any."""
    found = list(problems)
    if found:
        raise SettingsError(found)


def recorded(settings: Any) -> dict[str, Any]:
    """Settings as they are saved beside each result: what JSON can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {f.name: plain(getattr(settings, f.name)) for f in fields(settings)}
