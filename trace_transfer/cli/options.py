"""Options that several commands have, and kinds of values that click lacks, with messages that say what to type."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trace_transfer.cli.help import Option
from trace_transfer.launching import place_among_ranks

if TYPE_CHECKING:
    from trace_transfer.publish.hub import Destination

Decorator = Callable[[Any], Any]
FILE = click.Path(path_type=Path)


class OutPath(click.Path):
    """Where results go, as a path; what cannot be made or written is refused before anything is begun."""

    def __init__(self, *, file: bool = False) -> None:
        super().__init__(path_type=Path, allow_dash=file)
        self.is_file = file

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from trace_transfer.files import check_directory, check_file

        option = max(param.opts, key=len) if param is not None else "--out"
        return check_file(value, option) if self.is_file else check_directory(value, hint=f"; name another {option}")


OUT_DIRECTORY, OUT_FILE = OutPath(), OutPath(file=True)
RATIO = click.FloatRange(0, 1, min_open=True)


def paired(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE` options as pairs."""
    found = []
    for value in values:
        name, _, rest = value.partition("=")
        if not name.strip() or not rest:
            raise click.BadParameter(f"{value!r} is not {parameter.metavar}")
        found.append((name.strip(), rest))
    return tuple(found)


def mapped(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` options as a mapping; a name may be given once."""
    found: dict[str, str] = {}
    for name, value in paired(ctx, parameter, values):
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice")
        found[name] = value
    return found


def files(metavar: str, variable: str = "files") -> Decorator:
    """One file or several, as arguments."""
    return click.argument(variable, nargs=-1, required=True, type=FILE, metavar=f"{metavar}...")


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


def out_option(default: str) -> Decorator:
    return option(
        "--out", default=default, show_default=True, type=OUT_DIRECTORY, help="Directory of the results.",
        group="Output", common=True,
    )  # fmt: skip


def dry_run_option(what: str) -> Decorator:
    return option("--dry-run", is_flag=True, help=what, group="Output", common=True)


def say_next(files: Iterable[object], *command: object) -> None:
    """The end of a command: the page to open, and the command that follows."""
    for file in files:
        if str(file).endswith(".html"):
            click.echo(f"open: {file}")
    if command:
        click.echo(f"next: {shlex.join(['trace-transfer', *map(str, command)])}")


def push_options(what: str) -> Decorator:
    """`--push-to-hub` and `--private` of a command that can send `what`: it gets `to`, the place, or None for nowhere.

    That one may write there is checked before anything is done, by the first of several processes.
    """

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
