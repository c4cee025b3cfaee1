"""Options that several commands have, and kinds of values that click lacks, with messages that say what to type."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trace_transfer.cli.help import Option

if TYPE_CHECKING:
    from trace_transfer.publish.hub import Destination

Decorator = Callable[[Any], Any]
FILE = click.Path(path_type=Path)


class OutPath(click.Path):
    """Where results go, as a path; what cannot be made or written is refused before anything is begun."""

    def __init__(self, *, file: bool = False, dash: bool = False) -> None:
        super().__init__(path_type=Path)
        self.is_file, self.dash = file, dash

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from trace_transfer.files import check_directory, check_file

        option = max(param.opts, key=len) if param is not None else "--out"
        what = "file" if self.is_file else "directory"
        if value == "-" and self.dash:
            return Path("-")
        if value == "-":
            self.fail(f"'-': expected a {what}; ./- is one of that name", param, ctx)
        if str(value) == "":
            self.fail(f"'' is no name of a {what}", param, ctx)
        return check_file(value, option) if self.is_file else check_directory(value, hint=f"; name another {option}")


OUT_DIRECTORY, OUT_FILE = OutPath(), OutPath(file=True)


class Ratio(click.FloatRange):
    """A share in (0, 1]; who types a percentage is told what it is as a share."""

    def __init__(self) -> None:
        super().__init__(0, 1, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = click.FLOAT.convert(value, param, ctx)
        if number <= 0 or number > 1:
            percent = number if 1 < number <= 100 else 5.0
            hint = f"{percent:g} % is {percent / 100:g}"
            self.fail(f"{number:g}: expected more than 0 and at most 1 ({hint})", param, ctx)
        return number


RATIO = Ratio()


def folded(name: str) -> str:
    """A name without what people write differently: capitals, hyphens, underscores, blanks."""
    return "".join(character for character in name.casefold() if character.isalnum())


class FoldedChoice(click.Choice[str]):
    """One of some names, however it is spelt: `llamafactory` is `llama-factory`; a similar name is suggested."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        known = {folded(choice): choice for choice in self.choices}
        if (found := known.get(folded(str(value)))) is not None:
            return found
        close = get_close_matches(folded(str(value)), known, 1)
        hint = f" Did you mean {known[close[0]]!r}?" if close else ""
        self.fail(f"{value!r} is not one of {', '.join(map(repr, self.choices))}.{hint}", param, ctx)


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


def files(metavar: str, variable: str = "files") -> Decorator:
    """One file or several, as arguments."""
    return click.argument(variable, nargs=-1, required=True, type=FILE, metavar=f"{metavar}...")


def out_option(default: str) -> Decorator:
    return option(
        "--out", default=default, show_default=True, type=OUT_DIRECTORY, help="Directory of the results.",
        group="Output", common=True,
    )  # fmt: skip


def dry_run_option(what: str) -> Decorator:
    return option("--dry-run", is_flag=True, help=what, group="Output", common=True)


option = partial(click.option, cls=Option)  # takes `group` and `common`, too
rules_option = option(
    "--rules", multiple=True, metavar="PATH", group="Data",
    help="Your own rules, a file or a directory; they add families or replace shipped ones.",
)  # fmt: skip
tasks_option = option(
    "--tasks", required=True, type=FILE, metavar="FILE", group="Data", common=True,
    help="tasks.yaml: the tasks and their data.",
)  # fmt: skip


def say_next(files: Iterable[object], *command: object) -> None:
    """The end of a command: the page to open, and the command that follows."""
    for file in files:
        if str(file).endswith(".html"):
            click.echo(f"open: {file}")
    if command:
        click.echo(f"next: {shlex.join(['trace-transfer', *map(str, command)])}")


def push_options(what: str) -> Decorator:
    """`--push-to-hub` and `--private` of a command that can send `what`."""

    def add(command: Any) -> Any:
        private = option("--private", is_flag=True, group="Hub", help="Make a new repository private.")
        return option(
            "--push-to-hub", metavar="OWNER/NAME", group="Hub",
            help=f"Send {what} to this repository of the hub, which is created if it does not exist. Login and "
            "permission are checked before anything else.",
        )(private(command))  # fmt: skip

    return add


def asked_destination(push_to_hub: str | None, private: bool) -> Destination | None:
    """Where to send what will be made; None for nowhere.

    Raises:
        HubError: one cannot write there.
        click.UsageError: `--private` without a repository.
    """
    if push_to_hub is None:
        if private:
            raise click.UsageError("--private: says how the repository of --push-to-hub is made; give that, too")
        return None
    from trace_transfer.publish.hub import destination

    return destination(push_to_hub, private=private)
