"""The study's tables in this directory's README, from the CSV tables of its runs.

python -m examples.small_to_large.table                                # of results/: the runs that the README tells of
python -m examples.small_to_large.table runs/small_to_large/tables     # of a run of run.yaml of your own
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from examples.small_to_large.tiny.table import comparisons, methods

RESULTS = Path(__file__).parent / "results"
TUNED = RESULTS / "tuned"
LEARNED, TIME, MEMORY = "02-*.csv", "05-*.csv", "06-*.csv"
HEAD = "| method | mean loss | forgetting | learned | finding core sets, s | its memory, GB | training, s |"


def rows_of(tables: Path, pattern: str) -> dict[str, dict[str, str]]:
    """Method → column → value of the one table of that name."""
    (file,) = tables.glob(pattern)
    with file.open(encoding="utf-8", newline="") as lines:
        return {row["method"]: row for row in csv.DictReader(lines)}


def value(row: dict[str, str], column: str, digits: int, sign: int = 1) -> str:
    """`0.79 [0.64, 0.95]`; a dash where the method has none. A sign of -1 turns a flipped loss back."""
    if not row[column]:
        return "–"
    mean, *ends = (sign * float(row[column + end]) for end in ("", ": low", ": high"))
    return f"{mean:.{digits}f} [{', '.join(f'{end:.{digits}f}' for end in sorted(ends))}]"


def number(row: dict[str, str], column: str, times: float, digits: int) -> str:
    return f"{times * float(row[column] or 0):.{digits}f}"


def table(tables: Path) -> str:
    """Markdown: means and 95 % intervals over seeds; times are means of clock times, memory the largest of a step."""
    learned, time, memory = (rows_of(tables, pattern) for pattern in (LEARNED, TIME, MEMORY))
    lines = [HEAD, "|---|---|---|---|---|---|---|"]
    for method, row in learned.items():
        finds = float(time[method]["identify, min"]) > 0
        finding = float(time[method]["identify, min"]) + float(time[method]["map, min"])
        cells = [
            method,
            value(row, "average", 2, -1),
            value(row, "forgetting (less is better)", 2),
            value(row, "learning", 2),
            f"{60 * finding:.0f}" if finds else "–",
            number(memory[method], "peak memory, identify, GB", 1, 2) if finds else "–",
            number(time[method], "train, min", 60, 0),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def tuned(tables: Path) -> str:
    """Markdown: how each method of tuned.yaml ends at its own rate, and what was asked beforehand."""
    return "\n".join([*methods(tables), "", *comparisons([tables])]) + "\n"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])) if len(sys.argv) > 1 else f"{table(RESULTS)}\n{tuned(TUNED)}", end="")
