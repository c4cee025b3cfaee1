"""An option for each setting of a command, made of its description: default, limits and help."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

import click
from click.core import ParameterSource

from trace_transfer.cli.help import Option
from trace_transfer.cli.options import FILE, RATIO, Decorator, mapped
from trace_transfer.errors import UserError
from trace_transfer.settings import LARGEST, Settings, SettingsError, Single, bare, choices, limits_of, singles, words

Chosen = TypeVar("Chosen", bound=Settings)


def setting_options(kind: type[Settings], *, without: Collection[str] = ()) -> Decorator:
    """An option for each setting of a class and its parts, but those `without`; and `--config`, a file of them."""

    def add(command: Any) -> Any:
        command = click.option(
            "--config", type=FILE, metavar="FILE", cls=Option, group="Data", common=True,
            help="Settings as YAML. The keys are those of the same section in run.yaml. Options that are given win.",
        )(command)  # fmt: skip
        for one in reversed(list(singles(kind))):
            if one.name not in without:
                command = _option(one)(command)
        return command

    return add


def profile_option(kind: type[Settings], why: str) -> Decorator:
    return click.option(
        "--profile", type=click.Choice(tuple(kind.PROFILES)), default="default",
        help=f"Whose defaults the other options have. {why}. Options that are given win.",
        cls=Option, group=kind.GROUP, common=True,
    )  # fmt: skip


def given_settings(
    kind: type[Chosen], ctx: click.Context, options: Mapping[str, Any], profile: str = "default", **more: Any
) -> Chosen:
    """Settings of a profile, or the defaults; on top of them those of `--config`, the options given, and `more`.

    Raises:
        SettingsError: whatever cannot be used, and where it stands; all at once.
    """
    names = {name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    given = {name: value for name, value in options.items() if name in names and name != "config"} | more
    if given.get("max_grad_norm") == 0:
        given["max_grad_norm"] = None
    if "profile" in names:
        given["profile"] = profile
    read = _read(options.get("config"))
    try:
        return kind.of(**{"profile": profile, **read, **given})
    except SettingsError as error:
        by_file = read.keys() - given.keys()
        raise SettingsError(
            f"{options['config']}: {one}" if one.partition(":")[0].partition("[")[0] in by_file else one
            for one in error.problems
        ) from None


def _read(file: Path | None) -> dict[str, Any]:
    from trace_transfer.text_formats import kind_of, read_yaml

    found = {} if file is None else read_yaml(file)
    if not isinstance(found, dict):
        raise UserError(f"{file}: found {kind_of(found)}, expected settings: epochs: 3")
    return {str(key): value for key, value in found.items()}


_NUMBERS = {int: "N", float: "X"}
LONGEST = 60  # characters of all choices in a line of help


def _option(setting: Single) -> Decorator:
    name, field, default, owner = setting
    kind, _ = bare(field.annotation)
    flag = f"--{name.replace('_', '-')}"
    long = name.upper() if len("|".join(map(str, choices(field.annotation)))) > LONGEST else None  # its help names them
    extra: dict[str, Any] = {
        "help": field.description, "metavar": setting.told("metavar") or _NUMBERS.get(kind) or long, "cls": Option,
        "group": setting.told("group") or owner.GROUP, "common": bool(setting.told("common")),
    }  # fmt: skip
    if name in _READERS:  # a text or a file that stands for the value
        read_type, callback = _READERS[name]
        return click.option(flag, type=read_type, callback=callback, **extra)
    if kind is bool:
        declaration = f"{flag}/--no-{name.rpartition('_')[2]}" if default else flag
        return click.option(declaration, is_flag=True, default=default, **extra)
    if get_origin(kind) is Mapping:
        return click.option(flag, multiple=True, callback=_values, **extra)
    if get_origin(kind) is tuple:
        allowed = choices(field.annotation)
        return click.option(flag, multiple=True, type=click.Choice(allowed) if allowed else None, **extra)
    return click.option(flag, type=_type(field), default=default, show_default=default is not None, **extra)


def _type(field: Any) -> Any:
    """What click is to make of the text: it refuses what can be refused by looking at it alone."""
    kind, _ = bare(field.annotation)
    if allowed := choices(field.annotation):
        return click.Choice(allowed)
    low, high = limits_of(field.annotation, field.metadata)
    if kind is int:
        most = getattr(high, "le", None)
        number = click.IntRange(getattr(low, "ge", None), None if most == LARGEST else most)
        return _NumberOr(number, words(field.annotation)) if words(field.annotation) else number
    if kind is float:
        return RATIO if getattr(low, "gt", None) == 0 and getattr(high, "le", None) == 1 else click.FLOAT
    return click.Path(path_type=Path, file_okay=False) if kind is Path else click.STRING


class _NumberOr(click.ParamType):  # type: ignore[type-arg]  # generic only since click 8.5
    """A number, or a word in its place."""

    def __init__(self, number: click.ParamType[Any], words: tuple[str, ...]) -> None:
        self.number, self.words, self.name = number, words, "|".join(("integer", *words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self.words else self.number.convert(value, param, ctx)


def _deepspeed_json(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Any:
    from trace_transfer.engine.deepspeed_json import read_deepspeed_json

    return {} if value is None else read_deepspeed_json(value)


def _values(ctx: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=VALUE` options as a mapping; a value as it would stand in a YAML file."""
    from trace_transfer.text_formats import MalformedTextError, parse_yaml

    found = {}
    for name, text in mapped(ctx, parameter, given).items():
        try:
            found[name] = parse_yaml(text)
        except MalformedTextError as error:
            raise click.BadParameter(f"{name}={text}: not valid YAML: {error.problem}") from error
    return found


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",")) if value else ()


def _arguments(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any]:
    return _values(ctx, parameter, tuple(value.split(",")) if value else ())


_READERS: Mapping[str, tuple[Any, Any]] = {
    "deepspeed": (FILE, _deepspeed_json),
    "order": (click.STRING, _names),
    "backend_arguments": (click.STRING, _arguments),
}
