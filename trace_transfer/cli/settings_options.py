"""An option for each setting of a command, made of its JSON Schema and description: default, limits and help."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from trace_transfer.cli.options import FILE, RATIO, Decorator, mapped, option
from trace_transfer.errors import UserError
from trace_transfer.settings import LARGEST, Settings, SettingsError, Single, settings_schema, singles
from trace_transfer.text_formats import kind_of, parse_yaml, read_json_object, read_yaml

_NUMBERS = {"integer": "N", "number": "X"}
LONGEST = 60  # characters of all choices in a line of help


def setting_options(kind: type[Settings], *, profiles: str = "", without: Collection[str] = ()) -> Decorator:
    """An option for each setting of a class and its parts; the command gets `settings` in the place of all of them.

    Args:
        profiles: what the profiles of the class are, for a command that has `--profile`.
        without: settings that the command does not need.
    """
    schemas = settings_schema(kind)
    known = [one for one in singles(kind) if one.name not in without]

    def add(function: Any) -> Any:
        @click.pass_context
        @wraps(function)
        def command(ctx: click.Context, /, config: Path | None, **given: Any) -> Any:
            names = {one.name for one in known} | ({"profile"} if profiles else set())
            return function(settings=_settings(kind, ctx, config, {name: given.pop(name) for name in names}), **given)

        for one in reversed(known):
            command = _option(one, schemas[one.name])(command)
        command = option(
            "--config", type=FILE, metavar="FILE", group="Data", common=True,
            help="Settings as YAML. The keys are those of the same section in run.yaml. Options that are given win.",
        )(command)  # fmt: skip
        if profiles:
            command = option(
                "--profile", type=click.Choice(tuple(kind.PROFILES)), default="default", group=kind.GROUP, common=True,
                help=f"Whose defaults the other options have. {profiles}. Options that are given win.",
            )(command)  # fmt: skip
        return command

    return add


def _settings(kind: type[Settings], ctx: click.Context, config: Path | None, values: Mapping[str, Any]) -> Settings:
    """Defaults, over them the settings of `--config`, over them the options that were given."""
    given = {name: one for name, one in values.items() if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    if given.get("max_grad_norm") == 0:
        given["max_grad_norm"] = None
    read = {} if config is None else read_yaml(config)
    if not isinstance(read, dict):
        raise UserError(f"{config}: found {kind_of(read)}, expected settings: epochs: 3")
    try:
        return kind.of(**{**read, **given})
    except SettingsError as error:
        by_file = read.keys() - given.keys()
        raise SettingsError(
            f"{config}: {one}" if one.partition(":")[0].partition("[")[0] in by_file else one for one in error.problems
        ) from None


def _option(setting: Single, schema: Mapping[str, Any]) -> Decorator:
    name, field, default, owner = setting
    first, *others = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    kind, flag = first["type"], f"--{name.replace('_', '-')}"
    long = name.upper() if len("|".join(first.get("enum", ()))) > LONGEST else None  # its help names them
    extra: dict[str, Any] = {
        "help": field.description, "metavar": setting.told("metavar") or _NUMBERS.get(kind) or long,
        "group": setting.told("group") or owner.GROUP, "common": bool(setting.told("common")),
    }  # fmt: skip
    if name in _READERS:  # a text or a file that stands for the value
        read_type, callback = _READERS[name]
        return option(flag, type=read_type, callback=callback, **extra)
    if kind == "boolean":
        declaration = f"{flag}/--no-{name.rpartition('_')[2]}" if default else flag
        return option(declaration, is_flag=True, default=default, **extra)
    if kind == "object":
        return option(flag, multiple=True, callback=_values, **extra)
    if others and others[0]["type"] == "array":
        return option(flag, multiple=True, **extra)
    click_type = click.STRING if others else _type(first)  # of several types the settings themselves find out which
    return option(flag, type=click_type, default=default, show_default=default is not None, **extra)


def _type(schema: Mapping[str, Any]) -> Any:
    """What click is to make of the text: it refuses what can be refused by looking at it alone."""
    match schema:
        case {"enum": allowed}:
            return click.Choice(allowed)
        case {"type": "integer"}:
            most = schema.get("maximum")
            return click.IntRange(schema.get("minimum"), None if most == LARGEST else most)
        case {"exclusiveMinimum": 0, "maximum": 1}:
            return RATIO
        case {"type": "number"}:
            return click.FLOAT
        case {"format": "path"}:
            return click.Path(path_type=Path, file_okay=False)
    return click.STRING


def _values(ctx: click.Context, parameter: click.Parameter, given: Iterable[str]) -> dict[str, Any]:
    """`NAME=VALUE` options as a mapping; a value as it would stand in a YAML file."""
    return {name: parse_yaml(text) for name, text in mapped(ctx, parameter, given).items()}


_READERS: Mapping[str, tuple[Any, Any]] = {
    "deepspeed": (FILE, lambda ctx, parameter, file: read_json_object(file) if file else {}),
    "order": (str, lambda ctx, parameter, text: tuple(map(str.strip, text.split(","))) if text else ()),
    "backend_arguments": (str, lambda ctx, parameter, text: _values(ctx, parameter, text.split(",") if text else ())),
}
