"""What the Python functions are called with → what the stages take, or one error for all that cannot be used.

The command line has click for this. Here a path may be a text or whatever stands for one, and several may be one.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

PathLike = str | Path
Paths = PathLike | Sequence[PathLike]  # one, or several
# A parameter's name → what is expected of it, for messages.
MODEL = "a directory, a GGUF file or a hub name"
WORDS = {
    **dict.fromkeys(("base", "src", "dst", "model"), MODEL),
    "out": "a directory's name",
    "tasks": "the name of a file such as tasks.yaml",
    "stream": "the name of a file such as stream.yaml",
    "suite": "the name of a suite, or its file",
    "file": "a file's name",
    "run": "the directory of a run",
}
ONE, SEVERAL, NAMED = "a path", "a path, or a list of paths", "a mapping name → path"


Given = ParamSpec("Given")
Result = TypeVar("Result")


def checked(settings: str = "") -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Check the arguments of a function by its annotations, and its settings, before it is called.

    It is then called with `str` and `Path` for paths, tuples for several of them, and Python's numbers.

    Args:
        settings: module and class of its `**settings` (and `profile`), below `trace_transfer`, which is imported when
            the function is called; empty where it has none.

    Raises:
        SettingsError: of each call that cannot be used, with all that is wrong.
    """

    def of(function: Callable[Given, Result]) -> Callable[Given, Result]:
        @wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            signature = inspect.signature(function)
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # raises it, in Python's own words
            bound.apply_defaults()
            from trace_transfer.settings import SettingsError

            problems: list[str] = []
            for name, value in bound.arguments.items():
                if (check := _CHECKS.get(str(signature.parameters[name].annotation))) is not None:
                    bound.arguments[name] = check(name, value, problems)
            if settings:
                problems += _settings_problems(settings, signature, bound.arguments)
            if problems:
                raise SettingsError(problems, what=f"{function.__name__}: arguments that cannot be used")
            return function(*bound.args, **bound.kwargs)

        return call

    return of


def _settings_problems(settings: str, signature: inspect.Signature, arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with the settings of a call; names of other arguments are known, and meant by what is like them."""
    from trace_transfer.settings import SettingsError, unknown_problems

    module, _, name = settings.rpartition(".")
    kind = getattr(import_module(f"trace_transfer.{module}"), name)
    given, own = arguments["settings"], kind.names()
    profile = {"profile": arguments["profile"]} if "profile" in signature.parameters else {}
    problems = unknown_problems(given, {*signature.parameters, *own} - {"settings"}, tell=own)
    try:
        kind.of(**profile, **{one: given[one] for one in given if one in own})
    except SettingsError as error:
        problems += error.problems
    return problems


def several(values: PathLike | Iterable[PathLike]) -> tuple[PathLike, ...]:
    """One or several as a tuple."""
    return (values,) if isinstance(values, (str, Path)) else tuple(values)


def texts(values: Paths) -> tuple[str, ...]:
    """One or several as texts."""
    return tuple(map(str, several(values)))


def _shown(value: Any) -> str:
    from trace_transfer.settings import shown

    return shown(value)


def _path(name: str, value: Any, problems: list[str], what: str | None = None) -> PathLike:
    """A path, or a name: a text stays one, for it may be a name on the hub."""
    if isinstance(value, (str, Path)):
        return value
    if isinstance(value, os.PathLike) and isinstance(text := os.fspath(value), str):
        return Path(text)
    problems.append(f"{name}: found {_shown(value)}, expected {what or WORDS.get(name, ONE)}")
    return ""


def _paths(name: str, values: Any, problems: list[str]) -> tuple[PathLike, ...]:
    if isinstance(values, (str, os.PathLike)):
        return (_path(name, values, problems),)
    if isinstance(values, (bytes, Mapping)) or not isinstance(values, Iterable):
        problems.append(f"{name}: found {_shown(values)}, expected {SEVERAL}")
        return ()
    return tuple(_path(f"{name}[{number}]", value, problems) for number, value in enumerate(values))


def _each(name: str, values: Iterable[Any], problems: list[str]) -> tuple[PathLike, ...]:
    """Of `*files`: one after the other, or in lists."""
    found = tuple(path for value in values for path in _paths(name, value, problems))
    if not found and not problems:
        problems.append(f"{name}: none given; expected one or more")
    return found


def _named(name: str, values: Any, problems: list[str]) -> Mapping[str, PathLike] | None:
    if values is None or isinstance(values, Mapping):
        wrong = [key for key in values or () if not isinstance(key, str)]
        problems += [f"{name}: found the key {_shown(key)}, expected {NAMED}" for key in wrong]
        paths = {key: _path(f"{name}[{key!r}]", value, problems, ONE) for key, value in (values or {}).items()}
        return None if values is None else paths
    problems.append(f"{name}: found {_shown(values)}, expected {NAMED}")
    return None


def _artefact(name: str, value: Any, problems: list[str]) -> Any:
    from trace_transfer.formats import ARTEFACTS

    if value is not None and value not in ARTEFACTS.values():
        problems.append(f"{name}: found {_shown(value)}, expected a class of trace_transfer.formats such as CoreFile")
    return value


def _typed(hint: Any) -> Callable[[str, Any, list[str]], Any]:
    def check(name: str, value: Any, problems: list[str]) -> Any:
        from trace_transfer.settings import validated

        return validated(name, value, hint, problems)

    return check


# An annotation as it is written in `trace_transfer.api` → its check. What is not here (a reporter) is taken as it is.
_CHECKS: dict[str, Callable[[str, Any, list[str]], Any]] = {
    "PathLike": _path,
    "PathLike | None": lambda name, value, problems: None if value is None else _path(name, value, problems),
    "Paths": _paths,
    "PathLike | Iterable[PathLike]": _each,
    "Mapping[str, PathLike] | None": _named,
    "str | Sequence[str]": _typed(tuple[str, ...]),
    "float | None": _typed(float | None),
    "int | None": _typed(int | None),
    "str | None": _typed(str | None),
    "bool": _typed(bool),
    "type[Any] | None": _artefact,
}
