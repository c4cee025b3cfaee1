"""Settings: one description of each, from which its checks, its option with help, its keyword and its JSON Schema come.

A class of settings is a frozen pydantic model. Its fields may be settings themselves (`WarmStartSettings.train`); to
people all of them have single names (`epochs`), so that a command, a Python call and a section of a run file are the
same flat list. What cannot be used is told at once, in one `SettingsError`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

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

    def __init__(
        self, problems: Iterable[str], contradictions: Iterable[str] = (), what: str = "settings that cannot be used",
        usable: Any = None,
    ) -> None:  # fmt: skip
        self.alone, self.usable = tuple(problems), usable
        self.problems = (*self.alone, *contradictions)
        super().__init__(f"{what}:\n" + listing(self.problems))


def refuse(problems: Iterable[str]) -> None:
    """Raise one error for all problems, if there are any."""
    if found := list(problems):
        raise SettingsError(found)


# ---- values: what means the same in Python is taken, and nothing else


def _plain(value: Any) -> Any:
    """A scalar of numpy as Python's: its truth values are no `bool`, and neither they nor its integers are JSON."""
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def _whole(value: Any) -> Any:
    value = _plain(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 1e3


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _path(value: Any) -> Any:
    return Path(value) if isinstance(value, (str, os.PathLike)) else value


def texts(value: Any) -> Any:
    """Several texts, or one: `"norm"` is not n, o, r, m."""
    if isinstance(value, (str, os.PathLike)):
        return (_text(value),)
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        return value
    texts = [_text(one) for one in value]
    return tuple(sorted(texts) if isinstance(value, AbstractSet) else texts)


def _normal(value: Any, hint: Any) -> Any:
    kind, _ = bare(hint)
    convert = _NORMAL.get(get_origin(kind) or kind)
    return convert(value) if convert else value


def _named(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: list(one) if isinstance(one, tuple) else _plain(_text(one)) for key, one in value.items()}


_NORMAL: dict[Any, Callable[[Any], Any]] = {
    int: _whole, float: _plain, bool: _plain, str: _text, Path: _path, tuple: texts, Mapping: _named,
}  # fmt: skip

Count = Annotated[int, Ge(1), Le(LARGEST)]
Seed = Annotated[int, Ge(0), Le(LARGEST)]
Share = Annotated[float, Gt(0), Le(1)]
Texts = tuple[str, ...]


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
    """Frozen, strict, and flat to people."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    PROFILES: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}  # what each sets; what is given stays
    UNRECORDED: ClassVar[frozenset[str]] = frozenset()  # what changes no result
    LATER: ClassVar[frozenset[str]] = frozenset()  # recorded where not the default: records of before compare equal
    GROUP: ClassVar[str] = "Options"  # where help lists the options

    def __init__(self, **given: Any) -> None:
        fields = type(self).model_fields
        given = {
            name: _normal(value, fields[name].annotation) if name in fields else value for name, value in given.items()
        }
        try:
            super().__init__(**given)
        except ValidationError as error:
            problems = _problems(error, fields)
            wrong = {str(one["loc"][0]) for one in error.errors() if one["loc"]}
            usable = type(self).model_construct(**{name: given[name] for name in given if name not in wrong})
            raise SettingsError(problems, usable.contradictions(), usable=usable) from None
        if contradictions := self.contradictions():
            raise SettingsError((), contradictions)

    def contradictions(self) -> list[str]:
        """What is wrong with settings that could be used each by itself."""
        return []

    @classmethod
    def of(cls, profile: str = "default", **given: Any) -> Self:
        """From single names, as on the command line; what is given stands over the profile.

        Raises:
            SettingsError: an unknown name or profile, or values that cannot be used; all at once.
        """
        problems = choice("profile", profile, cls.PROFILES) + unknown_problems(given, cls.names())
        base = cls.PROFILES.get(profile, {})
        found: Self = _made(cls, {**base, **{name: given[name] for name in given if name in cls.names()}}, problems)
        refuse(problems)
        return found

    @classmethod
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
                found[name] = _json(value)
        return found | parts


def side_by_side(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    """Recorded settings by name, as they were and as they are, without those that are no more."""
    return [(name, then.get(name), now.get(name)) for name in sorted((then.keys() | now.keys()) - PAST)]


def _json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


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


def validated(name: str, value: Any, hint: Any, problems: list[str]) -> Any:
    """A value as one of a type hint, or None and a line for what is wrong with it."""
    try:
        return TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(_normal(value, hint))
    except ValidationError as error:
        problems += _problems(error, {name: FieldInfo.from_annotation(hint)}, name)
        return None


def _problems(error: ValidationError, fields: Mapping[str, FieldInfo], name: str | None = None) -> list[str]:
    """pydantic's errors in our words, one for each field."""
    first: dict[str, Any] = {}
    for one in error.errors():
        first.setdefault(name or str(one["loc"][0]), one)
    found: list[str] = []
    for field, one in first.items():
        if one["type"] == "extra_forbidden":
            found += unknown_problems([field], fields)
            continue
        hint, limits, where = fields[field].annotation, tuple(fields[field].metadata), field
        items, inner = one["loc"][0 if name else 1 :], get_args(bare(hint)[0])
        if items and inner:  # of a list, or of a mapping; else which part of a union was tried
            is_key = items[-1] == "[key]"
            hint, limits = inner[0 if is_key or get_origin(bare(hint)[0]) is tuple else 1], ()
            where = f"a key of {field}" if is_key else f"{field}[{items[0]!r}]"
        found += problem_with(where, one["input"], one["type"], hint, limits)
    return found


_OUT_OF_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


def problem_with(name: str, value: Any, kind: str, hint: Any, limits: Sequence[Any]) -> list[str]:
    """What is wrong with a value of a type hint, for one of pydantic's kinds of error."""
    if (allowed := choices(hint)) and isinstance(value, type(allowed[0])):
        return choice(name, value, allowed)
    if kind in _OUT_OF_BOUNDS:
        return [f"{name}: {value} is not {bounds(hint, limits)}"]
    return [f"{name}: found {shown(value)}, expected {expected(hint, limits)}"]


def bounds(hint: Any, limits: Sequence[Any] = ()) -> str:
    """The limits of a number in words: `in [1, 2147483647]`, `above 0`."""
    low, high = limits_of(hint, limits)
    if high is None:
        word = getattr(low, "gt", None)
        return f"above {word}" if word is not None else f"{getattr(low, 'ge', 0)} or more"
    left = f"({low.gt}" if isinstance(low, Gt) else f"[{getattr(low, 'ge', '')}"
    return f"in {left}, " + (f"{high.lt})" if isinstance(high, Lt) else f"{high.le}]")


def limits_of(hint: Any, limits: Sequence[Any] = ()) -> tuple[Any, Any]:
    """The lower and the upper limit of a number, as `annotated_types` has them; the outermost of each wins."""
    found = [*_metadata(hint), *limits]
    lows = [one for one in found if isinstance(one, (Gt, Ge))]
    highs = [one for one in found if isinstance(one, (Lt, Le))]
    return (lows[-1] if lows else None), (highs[-1] if highs else None)


def _metadata(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return [*_metadata(get_args(hint)[0]), *hint.__metadata__]
    return [one for inner in get_args(hint) for one in _metadata(inner)]


def bare(hint: Any) -> tuple[Any, bool]:
    """A type hint without what annotates it, and whether None is one of its values."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        inner = [one for one in get_args(hint) if one is not type(None)]
        return bare(inner[0])[0], len(inner) < len(get_args(hint))
    return hint, False


def choices(hint: Any) -> tuple[Any, ...]:
    """The values that a field may have, where they are few and named; of a tuple those of its items."""
    kind, _ = bare(hint)
    if get_origin(kind) is tuple:
        return choices(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) is Literal else ()


def words(hint: Any) -> tuple[str, ...]:
    """Those that may stand in the place of a number, such as `auto`."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return tuple(word for one in members if get_origin(one) is Literal for word in get_args(one))


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    tuple: "a text, or a list of texts",
    Path: "a path",
    Mapping: "a mapping",
}


def expected(hint: Any, limits: Sequence[Any] = ()) -> str:
    """A type hint in words."""
    kind, optional = bare(hint)
    if allowed := choices(hint):
        kind = tuple if get_origin(kind) is tuple else type(allowed[0])
    kind = get_origin(kind) or kind
    own = [one for one in (*_metadata(hint), *limits) if isinstance(one, str)]  # words that an annotation has
    word = (
        (own[-1] if own else None)
        or _WORDS.get(kind)
        or f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
    )
    return ", or ".join([word, *([] if allowed else words(hint)), *(["None"] if optional else [])])
