"""The tiny models and tasks of the study: nothing of a task was read before, and the models have nothing in common."""

import csv
import json
import re

import pytest

from examples.small_to_large.tiny import prepare, tasks


def records(task, part):
    return [json.loads(line) for line in (tasks.DATA / f"{task}.{part}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("task", [*tasks.WORDS, *tasks.DIALECTS])
def test_shipped_tasks(task):
    train, test = records(task, "train"), records(task, "test")
    assert (len(train), len(test)) == (tasks.NUM_TRAIN, tasks.NUM_TEST)
    assert len({row["prompt"] for row in train + test}) == len(train + test)
    for row in train + test:
        assert row["prompt"] == row["prompt"].strip() and row["completion"].startswith(" ")
        if task in tasks.WORDS:
            word = row["prompt"].removeprefix(f"{task}: ").removesuffix(" =")
            assert row["completion"] == f" {tasks.WORDS[task](word)}"


@pytest.mark.parametrize("direction", prepare.DIRECTIONS)
@pytest.mark.parametrize("tasks", prepare.SETS)
def test_run_files_are_those_that_prepare_writes(direction, tasks):
    text = prepare.run_file(direction, tasks)
    assert (prepare.HERE / f"{direction}.{tasks}.yaml").read_text("utf-8") == text


def results(number):
    (file,) = (prepare.HERE / "results").glob(f"{number:02}-*.csv")
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def rounded(text):
    return "–" if not text else f"{float(text):.2f}"


def test_the_tables_of_the_readme_are_those_of_the_run():
    cells = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in (prepare.HERE / "README.md").read_text("utf-8").splitlines()
        if line.startswith("| ")
    ]
    told = {re.sub(r" \(.*\)", "", row[0]): row[1:] for row in cells if len(row) == 6 and row[0] != "method"}
    chosen = {row["method"]: float(row["learning rate"]) for row in results(7) if row[""] == "chosen"}
    rows = [row for row in results(2) if row["method"] != "Base model"]
    assert set(told) == {row["method"] for row in rows} == set(chosen)
    for row in rows:
        _, rate, loss, learned, forgotten = told[row["method"]]
        assert float(rate) == chosen[row["method"]]
        mean, *ends = (-float(row["average" + end]) for end in ("", ": low", ": high"))
        assert loss == f"{mean:.2f} [{min(ends):.2f}, {max(ends):.2f}]"
        assert learned == rounded(row["learning"])
        assert forgotten == rounded(row["backward transfer"] and str(-float(row["backward transfer"])))
    compared = [row for row in cells if len(row) == 4 and row[0] != "comparison"]
    assert len(compared) == len(results(4)) == 13
    of_run = {
        (f"{-float(one['difference']):+.2f}".replace("-", "−"), rounded(one["smallest found"])): one
        for one in results(4)
    }
    for _, difference, p, smallest in compared:
        row = of_run.pop((difference.split()[0], smallest))
        assert float(p) == pytest.approx(float(row["p (Holm)"]), rel=0.05)
