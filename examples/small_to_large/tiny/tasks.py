"""Makes `data/`: two sets of three tasks, from texts that the tiny models have not read.

    python -m examples.small_to_large.tiny.tasks

*words* asks for three transformations of a word, written alike: who learns one unlearns another. *dialects* continues a
sentence in three spellings of English: here the tasks share most of what they need.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from examples.small_to_large.tiny.corpus import sentences, words

DATA = Path(__file__).parent / "data"
NUM_TRAIN, NUM_TEST = 160, 48
BEGIN, CONTINUE = 5, 4  # words of a sentence that are given, and that are asked for
Transform = Callable[[str], str]

WORDS: dict[str, Transform] = {
    "reverse": lambda word: word[::-1],
    "double": lambda word: "".join(letter * 2 for letter in word),
    "vowels": lambda word: "".join("#" if letter in "aeiou" else letter for letter in word),
}
DIALECTS: dict[str, Transform] = {
    "shouted": str.upper,
    "spaced": " ".join,
    "backwards": lambda text: " ".join(word[::-1] for word in text.split()),
}


def word_tasks(drawn: random.Random) -> dict[str, list[tuple[str, str]]]:
    """Each task with words of its own, so that the answer to none is seen in another."""
    known = words(held_out=True)
    drawn.shuffle(known)
    size = NUM_TRAIN + NUM_TEST
    return {
        task: [(f"{task}: {word} =", f" {transform(word)}") for word in known[i * size : (i + 1) * size]]
        for i, (task, transform) in enumerate(WORDS.items())
    }


def dialect_tasks(drawn: random.Random) -> dict[str, list[tuple[str, str]]]:
    """Each task with sentences of its own."""
    every = (sentence.split() for sentence in sentences(held_out=True))
    known = list({" ".join(one[:BEGIN]): one for one in every if len(one) >= BEGIN + CONTINUE}.values())
    drawn.shuffle(known)
    size = NUM_TRAIN + NUM_TEST
    found = {}
    for i, (task, transform) in enumerate(DIALECTS.items()):
        mine = known[i * size : (i + 1) * size]
        found[task] = [
            (transform(" ".join(one[:BEGIN])), " " + transform(" ".join(one[BEGIN : BEGIN + CONTINUE]))) for one in mine
        ]
    return found


def main() -> None:
    """Write `TASK.train.jsonl` and `TASK.test.jsonl` of both sets."""
    DATA.mkdir(exist_ok=True)
    for tasks in (word_tasks(random.Random(0)), dialect_tasks(random.Random(0))):
        for task, examples in tasks.items():
            if len(examples) < NUM_TRAIN + NUM_TEST:
                raise SystemExit(f"{task}: {len(examples)} examples, {NUM_TRAIN + NUM_TEST} are needed")
            lines = [json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in examples]
            (DATA / f"{task}.train.jsonl").write_text("".join(lines[:NUM_TRAIN]), "utf-8")
            (DATA / f"{task}.test.jsonl").write_text("".join(lines[NUM_TRAIN:]), "utf-8")


if __name__ == "__main__":
    main()
