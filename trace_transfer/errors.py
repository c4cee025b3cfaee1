"""The errors of this package: one base for what the user can mend, one for what went wrong while running.

The command line turns a `UserError` into one message and exit code 2, any other `TraceTransferError` into one message
and exit code 1; neither shows a traceback.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import TypeVar

MAX_LISTED = 20
Item = TypeVar("Item")
Made = TypeVar("Made")


class TraceTransferError(Exception):
    """Base of all errors raised on purpose by this package."""


class UserError(TraceTransferError):
    """Something given by the user cannot be used: an option, a file, a model. The message says what to do."""


class ModelError(UserError):
    """A model's files are missing, damaged, of an unsupported kind, or hold values that cannot be used."""


class RulesError(UserError):
    """A rules file, or a set of rules applied to a model, is wrong; lists every problem found, each with its line."""


class ArtefactError(UserError):
    """A file of ours is of another format, version or model than the one it is used with."""


class ProbeError(UserError):
    """A probe set cannot be used: empty, not text, too few texts, or texts that do not differ."""


class TrainingError(UserError):
    """A training cannot go on: NaN, data without supervised tokens, a full disk, a checkpoint of something else."""


class FrozenMovedError(TraceTransferError):
    """What was to stay bit-identical did not."""


class NumericalError(TraceTransferError):
    """A computation met NaN or Inf; names the model, the layer and the text."""


def listing(problems: Sequence[str], indent: str = "  - ") -> str:
    """Lay out problems one a line, the first 20 and then a count of the rest."""
    lines = [indent + problem.replace("\n", "\n" + " " * len(indent)) for problem in problems[:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        lines.append(f"{indent}… and {len(problems) - MAX_LISTED} more")
    return "\n".join(lines)


def few(items: Sequence[object], most: int = 3) -> str:
    """The first of them in a line, and their number if there are more: `a, b, c, … (7)`."""
    return ", ".join(map(str, items[:most])) + f", … ({len(items)})" * (len(items) > most)


def together(heading: str, problems: Sequence[str]) -> str:
    """Several problems below a heading; one alone speaks for itself."""
    return problems[0] if len(problems) == 1 else f"{heading}:\n{listing(problems)}"


def each_of(
    items: Iterable[Item], use: Callable[[Item], Made], heading: str, kind: type[UserError] = UserError
) -> list[Made]:
    """What is made of each item; one error of that kind for all that cannot be used."""
    made, problems = [], []
    for item in items:
        try:
            made.append(use(item))
        except kind as error:
            problems.append(str(error))
    if problems:
        raise kind(together(heading, problems))
    return made


def suggestion(word: str, allowed: Collection[str], what: str = "allowed") -> str:
    """All that is allowed, and what was probably meant."""
    close = get_close_matches(str(word), list(allowed), 1, cutoff=0.6)
    meant = f"; did you mean '{close[0]}'?" if close else ""
    return f"{what}: {', '.join(allowed)}{meant}"


def first_line(error: BaseException) -> str:
    """What another library's error says, without its many lines; its kind if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
