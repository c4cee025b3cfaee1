"""Kinds of values that options have and click has not, with messages that say what to type."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click


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
    """One of some names, however it is spelt: `llamafactory` is `llama-factory`; what is close to one is suggested."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        known = {folded(choice): choice for choice in self.choices}
        if (found := known.get(folded(str(value)))) is not None:
            return found
        close = get_close_matches(folded(str(value)), known, 1)
        hint = f" Did you mean {known[close[0]]!r}?" if close else ""
        self.fail(f"{value!r} is not one of {', '.join(map(repr, self.choices))}.{hint}", param, ctx)
