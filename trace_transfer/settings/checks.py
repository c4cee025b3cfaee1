"""What settings have in common: fixed choices, least values, and one message for all that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from trace_transfer.errors import UserError, listing

LARGEST = 2**31 - 1  # what every library below takes
PAST = {"cache_prefix"}  # recorded by earlier versions, and of no influence on results
Made = TypeVar("Made")


def choice_problems(settings: Any, choices: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Fields whose value is none of those allowed, each with what was probably meant."""
    return [problem for name, allowed in choices.items() for problem in choice(name, getattr(settings, name), allowed)]


def choice(name: str, value: Any, allowed: Iterable[str]) -> list[str]:
    """A value must be one of these; says what was probably meant."""
    known = list(allowed)
    if value in known:
        return []
    close = get_close_matches(str(value), known, 1)
    return [f"{name}: {value!r} is none of {', '.join(known)}" + (f"; did you mean {close[0]}?" if close else "")]


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


def unknown_problems(given: Iterable[str], known: Iterable[str], tell: Iterable[str] | None = None) -> list[str]:
    """Names that are no setting, each with what was probably meant.

    Args:
        tell: what is listed where nothing is close; all that is known if not given.
    """
    names = sorted(known)
    problems = []
    for name in sorted(set(given) - set(names)):
        close = get_close_matches(name, names, 1)
        others = ", ".join(names if tell is None else sorted(tell))
        problems.append(f"{name}: no such setting; " + (f"did you mean {close[0]}?" if close else others))
    return problems


class SettingsError(UserError):
    """Settings cannot be used.

    Attributes:
        problems: each begins with the setting's name.
        alone: those of them that are wrong whatever the other settings are.
    """

    def __init__(
        self, problems: Iterable[str], contradictions: Iterable[str] = (), what: str = "settings that cannot be used"
    ) -> None:
        self.alone = tuple(problems)
        self.problems = (*self.alone, *contradictions)
        super().__init__(f"{what}:\n" + listing(self.problems))


def refuse(problems: Iterable[str], contradictions: Iterable[str] = ()) -> None:
    """Raise one error for all problems, if there are any.

    Args:
        contradictions: of settings that could be used each by itself.
    """
    found, contradicting = list(problems), list(contradictions)
    if found or contradicting:
        raise SettingsError(found, contradicting)


def made(problems: list[str], make: Callable[..., Made], given: Mapping[str, Any]) -> Made:
    """Settings of these values; what is wrong with them is noted, and the defaults stand in for them."""
    try:
        return make(**given)
    except SettingsError as error:
        problems += error.problems
        return make()


def of_profile(
    kind: Callable[..., Made], profiles: Mapping[str, Mapping[str, Any]], profile: str, given: Mapping[str, Any]
) -> Made:
    """Settings of a profile, with what was given explicitly on top.

    Args:
        kind: a dataclass.

    Raises:
        SettingsError: an unknown name or profile, or values that cannot be used; all at once.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass is made by calling it
    problems = choice("profile", profile, profiles) + unknown_problems(given, known)
    base = {} if problems else profiles[profile]
    found = made(problems, kind, {**base, **{name: given[name] for name in given if name in known}})
    refuse(problems)
    return found


def recorded(settings: Any) -> dict[str, Any]:
    """Settings as they are saved beside each result: what JSON can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    return {f.name: plain(getattr(settings, f.name)) for f in fields(settings)}


def side_by_side(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    """Recorded settings by name, as they were and as they are, without those that are no more."""
    return [(name, then.get(name), now.get(name)) for name in sorted((then.keys() | now.keys()) - PAST)]
