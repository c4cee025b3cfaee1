"""Options that several commands have: each made of the setting that it sets, with its default, limits and help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

import click
from click.core import ParameterSource

from trace_transfer.cli.values import OUT_DIRECTORY, RATIO
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.identification.scoring_settings import Compute, ScoreSettings
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.identification.warm_start_settings import WarmStartSettings
from trace_transfer.settings import LARGEST, Settings, Single, bare, choices, limits_of, singles
from trace_transfer.training.settings import StreamSettings

Decorator = Callable[[Any], Any]
Chosen = TypeVar("Chosen", bound=Settings)


def setting_options(kind: type[Settings], *names: str, without: tuple[str, ...] = ()) -> Decorator:
    """An option for each setting of a class and its parts.

    Args:
        names: only these, in this order; all in the order of the class if none are given.
        without: settings that the command does not have.
    """
    known = {one.name: one for one in singles(kind)}
    chosen = names or tuple(name for name in known if name not in without)

    return _all(*(_option(known[name]) for name in chosen))


def _all(*decorators: Decorator) -> Decorator:
    def apply(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


def _option(setting: Single) -> Decorator:
    name, field, default, _ = setting
    kind, _ = bare(field.annotation)
    told = field.json_schema_extra
    extra: dict[str, Any] = {"help": field.description, "default": default, "show_default": default is not None}
    extra["metavar"] = told.get("metavar") if isinstance(told, dict) else None
    flag = f"--{name.replace('_', '-')}"
    if name in _READERS:  # a text or a file that stands for the value
        kind, callback = _READERS[name]
        return click.option(flag, type=kind, **{**extra, "default": None, "show_default": False}, callback=callback)
    if kind is bool:
        declaration = f"{flag}/--no-{name.rpartition('_')[2]}" if default else flag
        return click.option(declaration, is_flag=True, default=default, help=field.description)
    if get_origin(kind) is tuple:
        allowed = choices(field.annotation)
        chosen = click.Choice(allowed) if allowed else None
        return click.option(flag, multiple=True, type=chosen, metavar=extra["metavar"], help=field.description)
    return click.option(flag, type=_type(field), **extra)


def _type(field: Any) -> Any:
    """What click is to make of the text: it refuses what can be refused by looking at it alone."""
    kind, _ = bare(field.annotation)
    if allowed := choices(field.annotation):
        return click.Choice(allowed)
    low, high = limits_of(field.annotation, field.metadata)
    if kind is int:
        most = getattr(high, "le", None)
        return click.IntRange(getattr(low, "ge", None), None if most == LARGEST else most)
    if kind is float:
        return RATIO if getattr(low, "gt", None) == 0 and getattr(high, "le", None) == 1 else click.FLOAT
    return click.Path(path_type=Path, file_okay=False) if kind is Path else click.STRING


def _deepspeed_json(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Any:
    from trace_transfer.engine.deepspeed_json import read_deepspeed_json

    return {} if value is None else read_deepspeed_json(value)


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",")) if value else ()


_READERS: Mapping[str, tuple[Any, Any]] = {
    "deepspeed": (click.Path(path_type=Path), _deepspeed_json),
    "order": (click.STRING, _names),
}


def given_settings(
    kind: type[Chosen], ctx: click.Context, options: Mapping[str, Any], profile: str = "default", **more: Any
) -> Chosen:
    """Settings of a profile, or the defaults, with the options on top that were given explicitly, and `more`."""
    given = {
        name: value for name, value in options.items() if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if given.get("max_grad_norm") == 0:
        given["max_grad_norm"] = None
    return kind.of(profile, **given, **more)


def profile_option(kind: type[Settings], why: str) -> Decorator:
    return click.option(
        "--profile", type=click.Choice(tuple(kind.PROFILES)), default="default", show_default=True,
        help=f"{why}. Options beside it stay.",
    )  # fmt: skip


def paired(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE` options as pairs."""
    found = []
    for value in values:
        name, separator, rest = value.partition("=")
        if not separator or not name.strip() or not rest:
            raise click.BadParameter(f"{value!r} is not {parameter.metavar}")
        found.append((name.strip(), rest))
    return tuple(found)


def mapped(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping; a name may be given once."""
    pairs = paired(ctx, parameter, values)
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise click.BadParameter(f"{twice!r} is given twice")
    return dict(pairs)


def tuned_option(why: str) -> Decorator:
    return click.option("--tuned", multiple=True, callback=mapped, metavar="TASK=MODEL", help=why)


def out_option(default: str) -> Decorator:
    return click.option(
        "--out", default=default, show_default=True, type=OUT_DIRECTORY, help="Directory for the results."
    )


rules_option = click.option(
    "--rules", multiple=True, metavar="PATH", help="Your own rules, a file or a directory, beside or over the shipped."
)
seed_option = setting_options(TrainSettings, "seed")
data_options = setting_options(WarmStartSettings, "max_length", "too_long")
score_options = _all(
    profile_option(ScoreSettings, "'paper': as its equations say; 'authors-code': as their published code does"),
    setting_options(ScoreSettings),
)
compute_options = setting_options(Compute)
warm_start_options = setting_options(
    IdentifySettings,
    without=("seed", "max_length", "too_long", *ScoreSettings.names(), *Compute.names()),
)
stream_options = setting_options(StreamSettings, without=("seed",))
