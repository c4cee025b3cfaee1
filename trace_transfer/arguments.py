"""Checks what the Python functions are called with, by their annotations, and tells all that cannot be used at once.

The command line has click for this. A path may be a text or whatever stands for one, and one may stand for several.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from annotated_types import Ge

from trace_transfer import keywords

AnyPath = str | Path
Paths = AnyPath | Iterable[AnyPath]  # one, or several
Named = Mapping[str, AnyPath]
Texts = str | Sequence[str]
Count = Annotated[int, Ge(1)]
Function = TypeVar("Function", bound=Callable[..., Any])


def checked(settings: str = "") -> Callable[[Function], Function]:
    """Check the arguments of a function, and its settings, before it is called, with a `SettingsError` for all.

    It is then called with `str` for a path, a tuple of them for several, and Python's numbers.

    Args:
        settings: module and class of its `**settings` (and `profile`), below `trace_transfer`, which is imported when
            the function is called; empty where it has none.
    """

    def of(function: Function) -> Function:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # raises it, in Python's own words
            bound.apply_defaults()
            from trace_transfer.settings import SettingsError

            problems: list[str] = []
            for name, value in bound.arguments.items():
                bound.arguments[name] = _checked(signature.parameters[name], value, problems)
            if settings:
                problems += _settings_problems(settings, signature, bound.arguments)
            if problems:
                raise SettingsError(problems, what=f"{function.__name__}: arguments that cannot be used")
            return function(*bound.args, **bound.kwargs)

        call.__signature__ = _spelt_out(signature)  # type: ignore[attr-defined]
        return call  # type: ignore[return-value]

    return of


def _spelt_out(signature: inspect.Signature) -> inspect.Signature:
    """With a keyword for each setting, for notebooks and `help`; an ellipsis stands for the default of the profile."""
    *own, last = signature.parameters.values()
    if last.kind is not inspect.Parameter.VAR_KEYWORD:
        return signature
    known = getattr(keywords, last.annotation.removeprefix("Unpack[").removesuffix("]")).__annotations__
    more = [last.replace(name=name, kind=last.KEYWORD_ONLY, default=..., annotation=known[name]) for name in known]
    return signature.replace(parameters=[*own, *more])


def listed(values: Any) -> tuple[str, ...]:
    """Several paths as `checked` has made them, for type checkers."""
    return cast(tuple[str, ...], values)


def _checked(parameter: inspect.Parameter, value: Any, problems: list[str]) -> Any:
    from trace_transfer import settings

    name, hint = parameter.name, parameter.annotation
    if isinstance(hint, str) or name == "profile":  # a reporter, a class, settings: checked by who takes them
        return value
    hint = settings.Texts if hint in (Paths, Texts) else hint
    if parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
        return settings.validated(name, value, hint, problems)
    found = [path for one in value for path in settings.validated(name, one, hint, problems) or ()]
    problems += [] if found or problems else [f"{name}: none given; expected one or more"]
    return tuple(found)


def _settings_problems(settings: str, signature: inspect.Signature, arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with the settings of a call; a name that is like that of another argument means that one."""
    from trace_transfer.settings import SettingsError, unknown_problems

    module, _, name = settings.rpartition(".")
    kind = getattr(import_module(f"trace_transfer.{module}"), name)
    given, own = arguments["settings"], kind.names()
    profile = {"profile": arguments["profile"]} if "profile" in signature.parameters else {}
    problems: list[str] = unknown_problems(given, {*signature.parameters, *own} - {"settings"}, tell=own)
    try:
        kind.of(**profile, **{one: given[one] for one in given if one in own})
    except SettingsError as error:
        problems += error.problems
    return problems
