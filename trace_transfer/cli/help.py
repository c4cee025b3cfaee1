"""Help in two lengths: `--help` shows by group the options that most people set, `--help-all` shows every option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

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
