r"""What may reach a terminal or a log: every character is seen, none is obeyed.

Names and texts come from others: a task, a tensor or a file may be called `\x1b[2J`, and a library's error repeats it.
Whatever the program writes passes guarded streams or a console of `terminal`, and both call `printable`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

PIPED, LEAST = 100, 80  # columns where there is no terminal; columns that tables are made for at least

# Control characters but tab and newline; separators of lines; marks that turn the direction of what follows; halves of
# surrogate pairs, as which Python holds bytes of file names that are no UTF-8; invisible tags.
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_silenced: dict[ExitStack, None] = {}  # what `quiet` has to undo, the innermost last


def printable(text: str) -> str:
    r"""The text with `\x1b` for an escape, `\u202e` for a turn of direction; tabs and line breaks stay."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text.replace("\r\n", "\n"))


def is_name(text: str) -> bool:
    """Whether a text is one line in which nothing is obeyed: what models, tensors and methods may be called."""
    return OBEYED.search(text) is None and not {"\n", "\t"} & set(text)


def width() -> int:
    """Columns for what is printed: COLUMNS if it is set, else the terminal's, else 100; never less than 80."""
    return max(shutil.get_terminal_size((PIPED, 24)).columns, LEAST)


class Guarded:
    """A text stream that writes only what is printable."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        # A line that is drawn over itself is how other libraries show progress.
        start = "\r" if text.startswith("\r") and not text.startswith("\r\n") else ""
        self.stream.write(start + printable(text[len(start) :]))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard(stream: TextIO) -> TextIO:
    """The stream, guarded once; what its encoding lacks is written as an escape, too."""
    if isinstance(stream, Guarded):
        return stream
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return Guarded(stream)  # type: ignore[return-value]  # it is all of a text stream that a writer needs


def unguarded(stream: TextIO) -> TextIO:
    """For a console, which colours what it writes and sees to the rest itself."""
    return stream.stream if isinstance(stream, Guarded) else stream


@contextmanager
def guarded_streams() -> Iterator[None]:
    """While it lasts all that is printed, logged or warned is printable; so is the traceback of what nobody foresaw."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = guard(sys.stdout), guard(sys.stderr)
    try:
        yield
    finally:
        if not isinstance(sys.exc_info()[1], Exception):  # Python prints its traceback later
            sys.stdout, sys.stderr = before


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing on stdout and stderr, from C++ neither: results go to stdout. What fails raises all the same."""
    sys.stdout.flush()
    sys.stderr.flush()
    with ExitStack() as undo:
        _silenced[undo] = None
        undo.callback(_silenced.pop, undo, None)
        nowhere = undo.enter_context(Path(os.devnull).open("w"))
        for number in (1, 2):
            undo.callback(os.close, copy := os.dup(number))
            undo.callback(os.dup2, copy, number)
            os.dup2(nowhere.fileno(), number)
        for context in (redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings()):
            undo.enter_context(context)
        warnings.simplefilter("ignore")
        yield


def end_quiet() -> None:
    """For whoever tells of Ctrl-C: raised at the first instruction of an `__exit__`, it leaves `quiet` as it was."""
    while _silenced:
        next(reversed(_silenced)).close()
