"""The commands, settings files and Python of the documentation, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("examples/*/README.md")]
)
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
# How the pages of examples write commands: indented, as the README does.
PROGRAMS = ("trace-transfer", "make", "pip", "python", "deepspeed", "torchrun", "hf", "git")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the title (a file's name) if it has one, and where it begins."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str


@dataclass(frozen=True)
class Command:
    """One command, with its continued lines joined and without its comment."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text.partition('  #')[0].strip()}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def ours(self) -> list[str] | None:
        """The arguments that trace-transfer gets, directly or from a launcher; None for another program's command."""
        words = self.words
        if words[0] == "trace-transfer":
            return words[1:]
        if words[0] in ("deepspeed", "torchrun", "python") and "trace_transfer" in words:
            return words[words.index("trace_transfer") + 1 :]
        return None


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks of a page; what is included from other files is not looked at, those are pages or data."""
    text = page.read_text("utf-8")
    for found in FENCE.finditer(text):
        title = TITLE.search(found[2])
        yield Block(page, text.count("\n", 0, found.start()) + 2, found[1], title and title[1], found[3])


def commands(page: Path) -> Iterator[Command]:
    """Every line of a ```bash block, and every indented line that begins with a program's name."""
    for block in blocks(page):
        if block.language in ("bash", "sh", "shell", "console"):
            yield from _joined(page, block.line, block.text.splitlines())
    outside = FENCE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text("utf-8"))
    lines = [line[4:] if line.startswith("    ") else "" for line in outside.splitlines()]
    for command in _joined(page, 1, lines):
        if command.text.split()[0] in PROGRAMS:
            yield command


def _joined(page: Path, first: int, lines: list[str]) -> Iterator[Command]:
    text, start = "", first
    for number, line in enumerate(lines, start=first):
        start = start if text else number
        text += line.strip()
        if text.endswith("\\"):
            text = text[:-1]
            continue
        if text and not text.startswith("#"):
            yield Command(page, start, text)
        text = ""
