"""Makes `data/`: three small tasks for a model that has read children's books: sums, spelling, what comes next.

python -m examples.quickstart.tasks
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

NAMES = ("Tom", "Anna", "Ben", "Lily", "Max", "Mia", "Sam", "Zoe")
THINGS = ("apples", "balls", "books", "cakes", "coins", "stones")
WORDS = ("cat", "dog", "sun", "tree", "boat", "fish", "star", "bird", "cake", "ball", "moon", "house", "bread", "river",
         "cloud", "horse", "apple", "garden", "window", "flower", "summer", "winter", "mother", "father")  # fmt: skip
SERIES = (
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"),
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
)


def sums() -> list[tuple[str, str]]:
    found = []
    for i in range(48):
        name, things, a, b = NAMES[i % len(NAMES)], THINGS[i % len(THINGS)], 2 + i % 7, 1 + i % 5
        asked = f"{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?"
        found.append((asked, f"{a} and {b} make {a + b}. {name} has {a + b} {things} now."))
    return found


def spelling() -> list[tuple[str, str]]:
    forwards = [(f"How do you spell {word}?", f"You spell {word} like this: {', '.join(word)}.") for word in WORDS]
    return forwards + [(f"Say {word} backwards.", f"{word} backwards is {word[::-1]}.") for word in WORDS]


def series() -> list[tuple[str, str]]:
    pairs = [pair for names in SERIES for pair in pairwise(names)]
    after = [(f"What comes after {one}?", f"After {one} comes {other}.") for one, other in pairs]
    return (after + [(f"What comes before {other}?", f"Before {other} comes {one}.") for one, other in pairs])[:48]


TASKS = {"sums": sums, "spelling": spelling, "series": series}


def write_data(directory: Path) -> None:
    """Write `TASK.train.jsonl` and `TASK.test.jsonl`: every third example is for the test."""
    directory.mkdir(parents=True, exist_ok=True)
    for task, examples in TASKS.items():
        lines = [json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in examples()]
        tested = lines[::3]
        (directory / f"{task}.test.jsonl").write_text("".join(tested), "utf-8")
        (directory / f"{task}.train.jsonl").write_text("".join(line for line in lines if line not in tested), "utf-8")


if __name__ == "__main__":
    write_data(Path(__file__).parent / "data")
