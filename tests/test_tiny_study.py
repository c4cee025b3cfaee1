"""The tiny models and tasks of the study: nothing of a task was read before, and the models have nothing in common."""

import json

import pytest

from examples.small_to_large.tiny import prepare, table, tasks


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
@pytest.mark.parametrize("kind", prepare.KINDS)
def test_run_files_are_those_that_prepare_writes(direction, tasks, kind):
    text = prepare.run_file(direction, tasks, kind)
    assert (prepare.HERE / f"{direction}.{tasks}{kind}.yaml").read_text("utf-8") == text


def test_the_tables_of_the_readme_are_those_of_the_runs():
    text = (prepare.HERE / "README.md").read_text("utf-8")
    assert [part for part in table.tables().split("\n\n") if part.strip() not in text] == []
