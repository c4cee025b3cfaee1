"""The tables of README.md, from the CSV tables of the runs in results/.

    python -m examples.small_to_large.tiny.table

Losses are nats per token with 95 % intervals, so less is better; the CSV tables have them with their sign flipped.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from examples.small_to_large.tiny.prepare import KINDS

RESULTS = Path(__file__).parent / "results"
OLD = "within tensors", "inside"  # what an earlier version called them
Row = dict[str, str]


def rows_of(run: Path, name: str) -> list[Row]:
    (file,) = run.glob(f"[0-9][0-9]-{name}.csv")
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(line.replace(*OLD) for line in lines))


def flipped(row: Row, column: str, form: str) -> str:
    """A mean with its interval; positive and negative, and so the interval's ends, exchanged."""
    mean, high, low = (-float(row[column + end]) for end in ("", ": low", ": high"))
    return " ".join([format(mean, form), f"[{low:{form}}, {high:{form}}]"]).replace("-", "−")


def number(text: str, sign: int = 1) -> str:
    return f"{sign * float(text):.2f}".replace("-", "−") if text else "–"


def methods(run: Path) -> Iterator[str]:
    """How each method ends, at its rate."""
    yield f"| {run.name} | rate | mean loss [95 %] | learned | forgotten |"
    yield "|---|---|---|---|---|"
    rates = {row["method"]: float(row["learning rate"]) for row in rows_of(run, "learning-rates") if row[""]}
    ended = rows_of(run, "what-was-learned-and-what-was-kept")
    for row in sorted(ended, key=lambda row: -float(row["average"] or 0)):
        if row["method"] in rates:
            cells = [f"{rates[row['method']]:g}", flipped(row, "average", ".2f"), number(row["learning"])]
            yield f"| {' | '.join([row['method'], *cells, number(row['backward transfer'], -1)])} |"


def comparisons(runs: list[Path]) -> Iterator[str]:
    """What was asked beforehand, of several runs side by side; bold where p is below 0.05."""
    found = [{row["pair"]: row for row in rows_of(run, "what-the-methods-say-about-each-other")} for run in runs]
    heads = [f"{run.name}: difference [95 %] | p (Holm) | smallest found" for run in runs]
    yield f"| {' | '.join(['comparison', *heads])} |"
    yield f"|{'---|' * (1 + 3 * len(runs))}"
    for pair in found[0]:
        cells = []
        for one in (rows[pair] for rows in found):
            difference, p = flipped(one, "difference", "+.2f"), one["p (Holm)"]
            bold = "**" * (float(p.strip("< ")) < 0.05)
            told = p if "<" in p else f"{float(p):.2g}"
            cells += [f"{bold}{difference}{bold}", told, number(one["smallest found"])]
        yield f"| {' | '.join([pair, *cells])} |"


def tables() -> str:
    """All of them, Markdown."""
    runs = sorted(RESULTS.iterdir(), key=lambda run: (run.name.partition(".")[0], "dialects" in run.name))
    parts: list[Iterator[str]] = []
    for kind in KINDS:
        of_kind = [run for run in runs if run.name == ".".join(run.name.split(".")[:2]) + kind]
        parts += [*map(methods, of_kind), *([comparisons(of_kind)] if of_kind else [])]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


if __name__ == "__main__":
    print(tables(), end="")
