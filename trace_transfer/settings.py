"""Settings: one description of each, from which its checks, its option with help, its keyword and its JSON Schema come.

A class of settings is a frozen pydantic model. Its fields may be settings themselves (`WarmStartSettings.train`); to
people all of them have single names (`epochs`), so that a command, a Python call and a section of a run file are the
same flat list. What cannot be used is told at once, in one `SettingsError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from functools import cache
from re import findall
from reprlib import Repr
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from trace_transfer.errors import UserError, listing

PAST = {"cache_prefix"}  # recorded by earlier versions, and of no influence on results
LARGEST = 2**31 - 1  # what every library below takes
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """A value as messages show it: not a page of it."""
    return _SHORT.repr(value)


class SettingsError(UserError):
    """Settings cannot be used.

    Attributes:
        problems: each begins with the setting's name.
        alone: those of them that are wrong whatever the other settings are.
        usable: the settings with defaults in the places of those.
    """

    def __init__(self, problems: Iterable[str], contradictions: Iterable[str] = (), usable: Any = None) -> None:
        self.alone, self.usable = tuple(problems), usable
        self.problems = (*self.alone, *contradictions)
        super().__init__("settings that cannot be used:\n" + listing(self.problems))


def plain(value: Any) -> Any:
    """A path as its text, several values as a list; pydantic makes the rest of what means the same."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, AbstractSet, Iterator)):
        found = [plain(one) for one in value]
        return sorted(found, key=str) if isinstance(value, AbstractSet) else found
    return value


def texts(value: Any) -> Any:
    """Several texts, or one: `"norm"` is not n, o, r, m."""
    return plain([value] if isinstance(value, (str, os.PathLike)) else value)


Count = Annotated[int, Ge(1), Le(LARGEST)]
Seed = Annotated[int, Ge(0), Le(LARGEST)]
Share = Annotated[float, Gt(0), Le(1)]
Texts = Annotated[tuple[str, ...], BeforeValidator(texts, json_schema_input_type=str | list[str])]


def setting(
    default: Any, help: str, *, metavar: str | None = None, group: str | None = None, common: bool = False,
    **limits: Any,
) -> Any:  # fmt: skip
    """A field of settings: its default, what its option's help says, and limits as pydantic's `Field` takes them.

    Args:
        help: its first sentence is all that the short help of a command shows.
        group: where the help lists the option, if not under the `GROUP` of its class.
        common: whether the short help shows the option.
    """
    made = {"default_factory": default} if callable(default) else {"default": default}
    extra: dict[str, Any] = {"metavar": metavar, "group": group, "common": common}
    return Field(**made, description=help, json_schema_extra=extra, **limits)


# ---- classes of settings


class Settings(BaseModel):
    """Frozen, and flat to people."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    PROFILES: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}  # what each sets; what is given stays
    UNRECORDED: ClassVar[frozenset[str]] = frozenset()  # what changes no result
    LATER: ClassVar[frozenset[str]] = frozenset()  # recorded where not the default: records of before compare equal
    GROUP: ClassVar[str] = "Options"  # where help lists the options

    def __init__(self, **given: Any) -> None:
        given = {name: plain(value) for name, value in given.items()}
        try:
            super().__init__(**given)
        except ValidationError as error:
            wrong = {str(one["loc"][0]) for one in error.errors()}
            usable = type(self).model_construct(**{name: given[name] for name in given if name not in wrong})
            problems = _problems(error, given, type(self).model_fields)
            raise SettingsError(problems, usable.contradictions(), usable=usable) from None
        if contradictions := self.contradictions():
            raise SettingsError((), contradictions)

    def contradictions(self) -> list[str]:
        """What is wrong with settings that could be used each by itself."""
        return []

    @classmethod
    def of(cls, profile: str = "default", **given: Any) -> Self:
        """From single names, as on the command line; what is given stands over the profile."""
        names = cls.names()
        problems = choice("profile", profile, cls.PROFILES) + unknown_problems(given, names)
        base = cls.PROFILES.get(profile, {})
        found: Self = _made(cls, {**base, **{name: given[name] for name in given if name in names}}, problems)
        if problems:
            raise SettingsError(problems)
        return found

    @classmethod
    @cache
    def names(cls) -> frozenset[str]:
        """All that `of` takes, beside the profile."""
        return frozenset(one.name for one in singles(cls))

    def recorded(self) -> dict[str, Any]:
        """As they are saved beside each result: what decides it, in what JSON can hold."""
        found: dict[str, Any] = {}
        parts: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Settings):
                parts |= value.recorded()
            elif name in self.LATER and value == field.get_default(call_default_factory=True):
                continue
            elif name not in self.UNRECORDED:
                found[name] = to_jsonable_python(value)
        return found | parts


def side_by_side(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    """Recorded settings by name, as they were and as they are, without those that are no more."""
    return [(name, then.get(name), now.get(name)) for name in sorted((then.keys() | now.keys()) - PAST)]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Mappings within each other, and lists of them by their names, as one: `tasks.math.sha256`."""
    if isinstance(value, list) and any(isinstance(one, (Mapping, list)) for one in value):
        value = {str(one.get("name", i)) if isinstance(one, Mapping) else i: one for i, one in enumerate(value)}
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, one in value.items():
        found |= flat(one, f"{prefix}.{key}" if prefix else str(key))
    return found


class Single(NamedTuple):
    """A setting as people have it: `owner` is the class that has the field, `default` that of the whole."""

    name: str
    field: FieldInfo
    default: Any
    owner: type[Settings]

    def told(self, what: str) -> Any:
        """What `setting` was told for help: "metavar", "group" or "common"."""
        extra = self.field.json_schema_extra
        return extra.get(what) if isinstance(extra, dict) else None


def singles(kind: type[Settings], defaults: Settings | None = None) -> Iterator[Single]:
    """Every setting of a class and its parts, in order."""
    for name, field in kind.model_fields.items():
        default = getattr(defaults, name) if defaults else field.get_default(call_default_factory=True)
        if isinstance(default, Settings):
            yield from singles(type(default), default)
        else:
            yield Single(name, field, default, kind)


def _made(kind: type[Settings], given: Mapping[str, Any], problems: list[str], base: Settings | None = None) -> Any:
    """Settings of single names; what is wrong is noted, and the defaults stand in for it."""
    values = {name: getattr(base, name) for name in base.model_fields_set} if base else {}
    for name, field in kind.model_fields.items():
        default = values.get(name, field.get_default(call_default_factory=True))
        if isinstance(default, Settings):
            values[name] = _made(type(default), given, problems, default)
        elif name in given:
            values[name] = given[name]
    try:
        return kind(**values)
    except SettingsError as error:
        problems += error.problems
        return base or kind()


# ---- messages


def choice(name: str, value: Any, allowed: Iterable[Any]) -> list[str]:
    """A value must be one of these; says what was probably meant."""
    known = list(allowed)
    if value in known:
        return []
    close = get_close_matches(str(value), [str(one) for one in known], 1)
    told = f"{name}: {shown(value)} is none of {', '.join(map(str, known))}"
    return [told + (f"; did you mean {close[0]}?" if close else "")]


def unknown_problems(given: Iterable[str], known: Iterable[str]) -> list[str]:
    """Names that are no setting, each with what was probably meant, or with all that there are."""
    names = sorted(known)
    problems = []
    for name in sorted(set(given) - set(names)):
        close = get_close_matches(name, names, 1)
        problems.append(f"{name}: no such setting; " + (f"did you mean {close[0]}?" if close else ", ".join(names)))
    return problems


def validated(name: str, value: Any, hint: Any, problems: list[str]) -> Any:
    """A value as one of a type hint, or None and a line for what is wrong with it."""
    try:
        return TypeAdapter(hint).validate_python(plain(value))
    except ValidationError as error:
        problems += _problems(error, plain(value), (), name)
        return None


def _problems(error: ValidationError, given: Any, known: Iterable[str], name: str = "") -> list[str]:
    """pydantic's errors in our words, one for each field."""
    found: dict[str, list[str]] = {}
    for one in error.errors():
        field, where, value = name or str(one["loc"][0]), name, given
        for step in one["loc"]:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):  # pydantic's name of a part of a union
                break
            where += f"[{step!r}]" if where else str(step)
        told = unknown_problems([field], known) if one["type"] == "extra_forbidden" else problem_with(where, one)
        found.setdefault(field, told)
    return [problem for told in found.values() for problem in told]


def problem_with(where: str, error: Any) -> list[str]:
    """What is wrong with a value, by one of pydantic's errors."""
    if error["type"] == "literal_error" and (allowed := findall("'([^']*)'", error["ctx"]["expected"])):
        return choice(where, error["input"], allowed)
    expected = error["msg"].removeprefix("Input should be ")
    if expected != error["msg"]:
        return [f"{where}: found {shown(error['input'])}, expected {expected}"]
    return [f"{where}: {expected.removeprefix('Value error, ')}; found {shown(error['input'])}"]


@cache
def settings_schema(kind: type[Settings]) -> dict[str, dict[str, Any]]:
    """The JSON Schema of each setting, of which options, keywords and the schemas of files are made."""
    properties: dict[str, dict[str, Any]] = {}
    for one in singles(kind):
        schema = TypeAdapter(one.field.rebuild_annotation()).json_schema()
        properties[one.name] = {**schema, "description": one.field.description}
        if isinstance(one.default, (str, int, float)):
            properties[one.name]["default"] = one.default
    return properties
