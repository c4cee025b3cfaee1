"""What commands share: help in two lengths, options that several have, and kinds of values that click lacks.

`--help` shows by group the options that most people set, `--help-all` shows every option.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trace_transfer.launching import place_among_ranks

if TYPE_CHECKING:
    from trace_transfer.publish.hub import Destination

LAST = ("Output", "Hub", "Help")  # groups that come after those of the command itself
COLUMN = 30  # characters of the left column
EVERYTHING = f"{__name__}.everything"


class Option(click.Option):
    """An option with the group it is listed in; `--help` shows it only if it is `common`."""

    def __init__(self, *arguments: Any, group: str = "Options", common: bool = False, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.group, self.common = group, common


def _show_all(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        ctx.meta[EVERYTHING] = True
        click.echo(ctx.get_help())
        ctx.exit()


class Command(click.Command):
    """A command with so many options that its help comes in two lengths."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.params.append(
            Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_show_all, group="Help",
                common=True, help=f"Show all {len(self.params) + 2} options and their limits.",
            )
        )  # fmt: skip

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        everything = ctx.meta.get(EVERYTHING, False)
        sections = {
            title: [_record(one, ctx, everything) for one in options if everything or getattr(one, "common", True)]
            for title, options in groups(self, ctx)
        }
        width = min(max(len(name) for rows in sections.values() for name, _ in rows), COLUMN)
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), text) for name, text in rows], COLUMN)


def groups(command: click.Command, ctx: click.Context) -> Iterator[tuple[str, list[click.Option]]]:
    """The options that can be seen, by group: first the groups of the command itself."""
    found: dict[str, list[click.Option]] = {}
    for option in command.get_params(ctx):
        if isinstance(option, click.Option) and not option.hidden:
            group = "Help" if "--help" in option.opts else getattr(option, "group", "Options")
            found.setdefault(group, []).append(option)
    for title, options in sorted(found.items(), key=lambda item: LAST.index(item[0]) if item[0] in LAST else -1):
        yield title, sorted(options, key=lambda option: not getattr(option, "common", True))


def _record(option: click.Option, ctx: click.Context, everything: bool) -> tuple[str, str]:
    """What stands in both columns; of a common option in short help the first sentence and the default."""
    name, text = option.get_help_record(ctx) or ("", "")
    if everything:
        return name, text
    extra = option.get_help_extra(ctx)
    notes = [f"default: {extra['default']}"] if "default" in extra else []
    notes += ["required"] if option.required else []
    first = (option.help or "").partition(". ")[0].rstrip(".") + "."
    return name, f"{first}  [{'; '.join(notes)}]" if notes else first


# ---- options

Decorator = Callable[[Any], Any]
FILE = click.Path(path_type=Path)


class OutPath(click.Path):
    """Where results go, as a path; what cannot be made or written is refused before anything is begun."""

    def __init__(self, *, file: bool = False) -> None:
        super().__init__(path_type=Path, file_okay=file, dir_okay=not file, allow_dash=file)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from trace_transfer.files import check_directory

        path: Path = super().convert(value, param, ctx)  # type: ignore[assignment]  # `path_type` makes it one
        option = max(param.opts, key=len) if param is not None else "--out"
        check_directory(path if self.dir_okay else path.parent, hint=f"; name another {option}")
        return path


OUT_DIRECTORY, OUT_FILE = OutPath(), OutPath(file=True)
RATIO = click.FloatRange(0, 1, min_open=True)


def paired(ctx: click.Context, parameter: click.Parameter, values: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE` options as pairs."""
    found = []
    for value in values:
        name, _, rest = value.partition("=")
        if not name.strip() or not rest:
            raise click.BadParameter(f"{value!r} is not {parameter.metavar}")
        found.append((name.strip(), rest))
    return tuple(found)


def mapped(ctx: click.Context, parameter: click.Parameter, values: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping; a name may be given once."""
    found: dict[str, str] = {}
    for name, value in paired(ctx, parameter, values):
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice")
        found[name] = value
    return found


files = partial(click.argument, nargs=-1, required=True, type=FILE)  # one or several
option = partial(click.option, cls=Option)  # takes `group` and `common`, too
many = partial(option, multiple=True, group="Data", common=True)
rules_option = option(
    "--rules", multiple=True, metavar="PATH", group="Data",
    help="Your own rules, a file or a directory; they add families or replace shipped ones.",
)  # fmt: skip
tasks_option = option(
    "--tasks", required=True, type=FILE, metavar="FILE", group="Data", common=True,
    help="tasks.yaml: the tasks and their data.",
)  # fmt: skip
out_option = partial(
    option, "--out", show_default=True, type=OUT_DIRECTORY, group="Output", common=True,
    help="Directory of the results.",
)  # fmt: skip
dry_run_option = partial(option, "--dry-run", is_flag=True, group="Output", common=True)


def say_next(files: Iterable[object], *command: object) -> None:
    """The end of a command: the page to open, and the command that follows."""
    for file in files:
        if str(file).endswith(".html"):
            click.echo(f"open: {file}")
    if command:
        click.echo(f"next: {shlex.join(['trace-transfer', *map(str, command)])}")


def push_options(what: str) -> Decorator:
    """`--push-to-hub` and `--private` of a command that can send `what`: it gets `to`, the place, or None for nowhere.

    That one may write there is checked before anything is done, by the first of several processes."""

    def add(function: Any) -> Any:
        @wraps(function)
        def command(*, push_to_hub: str | None, private: bool, **given: Any) -> Any:
            return function(to=_destination(push_to_hub, private), **given)

        command = option("--private", is_flag=True, group="Hub", help="Make a new repository private.")(command)
        return option(
            "--push-to-hub", metavar="OWNER/NAME", group="Hub",
            help=f"Send {what} to this repository of the hub, which is created if it does not exist. Login and "
            "permission are checked before anything else.",
        )(command)  # fmt: skip

    return add


def _destination(push_to_hub: str | None, private: bool) -> Destination | None:
    if push_to_hub is None and private:
        raise click.UsageError("--private: says how the repository of --push-to-hub is made; give that, too")
    if push_to_hub is None or place_among_ranks().rank != 0:
        return None
    from trace_transfer.publish.hub import destination

    return destination(push_to_hub, private=private)
