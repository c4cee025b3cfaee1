"""The data of the study: real, short, in three formats, and no test question in training."""

import json
import re

import pytest

from examples.small_to_large import table
from examples.small_to_large.make_data import DATA, EXAMS, MOST_TRAIN, NUM_TEST

SHOWN = (  # in the table of the first README, in words
    "Sequential", "Joint", "DMT", "Sequential LoRA", "TRACE-LF", "Transfer-LF", "Proportional layer map", "Random set",
    "TRACE-SNR, rows", "Random rows",
)  # fmt: skip
ANSWERS = {"medicine": r"^[a-d]\) .+", "knowledge": r"^The answer is \([A-D]\)\.$", "maths": r"^#### -?[\d,.]+$"}


def records(task, part):
    return [json.loads(line) for line in (DATA / f"{task}.{part}.jsonl").read_text("utf-8").splitlines()]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("task", EXAMS)
def test_shipped_data(task):
    train, test = records(task, "train"), records(task, "test")
    assert len(test) == NUM_TEST and 64 <= len(train) <= MOST_TRAIN
    questions = [row["question"] for row in train + test]
    assert len(set(questions)) == len(questions)
    for row in train + test:
        assert set(row) == {"question", "answer"}
        assert len(row["question"]) + len(row["answer"]) <= EXAMS[task].longest
        assert re.search(ANSWERS[task], row["answer"])


def test_the_tables_of_the_readmes_are_made_of_the_results():
    """Fifteen methods, five seeds each, and not a number written by hand."""
    made = table.table(table.RESULTS)
    assert made in (DATA.parent / "README.md").read_text("utf-8") and made.count("\n") == 17
    rows = table.rows_of(table.RESULTS, "01-*.csv")
    assert {row["seeds"] for method, row in rows.items() if method != "Base model"} == {"5"}
    text = (DATA.parents[2] / "README.md").read_text("utf-8")
    short = text[text.index("## Is a core set worth it?") :].partition("\n## ")[0]
    rows = [cells(line)[1:] for line in short.splitlines() if "[" in line and line.startswith("| ")]
    at_one_rate = {cells(line)[0]: cells(line)[1] for line in made.splitlines()}
    at_its_own = {cells(line)[0]: cells(line)[2] for line in table.tuned(table.TUNED).splitlines() if "[" in line}
    assert rows == [[at_one_rate.get(name, ""), at_its_own.get(name, "")] for name in SHOWN]


def test_the_tables_of_the_tuned_run_are_made_of_its_results():
    text = (DATA.parent / "README.md").read_text("utf-8")
    ended, asked = table.tuned(table.TUNED).split("\n\n")
    assert ended in text and ended.count("\n") == 6  # five methods
    assert asked in text and asked.count("\n") == 6  # four questions
    rows = table.rows_of(table.TUNED, "01-*.csv")
    assert {row["seeds"] for method, row in rows.items() if method != "Base model"} == {"7"}
