"""The tiny models and tasks of the study: nothing of a task was read before, and the models have nothing in common."""

import json

import pytest

from examples.small_to_large.tiny import corpus, prepare, tasks
from examples.small_to_large.tiny.models import SHAPES, config_of


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


def test_no_task_repeats_a_word_or_a_sentence():
    words = [
        row["prompt"].split()[1] for task in tasks.WORDS for part in ("train", "test") for row in records(task, part)
    ]
    assert len(set(words)) == len(words)


def test_held_out_files_and_words(tmp_path, monkeypatch):
    package = tmp_path / "talk"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for i in range(40):
        name = chr(97 + i // 6) * 4 + chr(97 + i % 6) * 3
        (package / f"m{i}.py").write_text(
            f'"""This module is called {name}, and it has no other name than this one."""\n'
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(corpus, "PACKAGES", ("talk",))
    read, kept = corpus.sources(held_out=False), corpus.sources(held_out=True)
    assert len(read) + len(kept) == 41 and kept and not (set(read) & set(kept)) - {""}
    words = corpus.words(held_out=False), corpus.words(held_out=True)
    assert words[1] and not set(words[0]) & set(words[1])
    assert all(word in " ".join(read + kept).lower() for word in words[0] + words[1])


@pytest.mark.parametrize("small, large", [("llama-small", "qwen3-large"), ("qwen3-small", "llama-large")])
def test_a_target_is_another_family_and_at_least_four_times_larger(small, large):
    from transformers import AutoModelForCausalLM

    sizes = [AutoModelForCausalLM.from_config(config_of(*SHAPES[name])).num_parameters() for name in (small, large)]
    assert sizes[1] >= 4 * sizes[0]
    assert SHAPES[small][0] != SHAPES[large][0] and SHAPES[small][1] != SHAPES[large][1]


@pytest.mark.parametrize("direction", prepare.DIRECTIONS)
@pytest.mark.parametrize("tasks", prepare.SETS)
def test_run_files_are_those_that_prepare_writes(direction, tasks):
    text = prepare.run_file(direction, tasks)
    assert (prepare.HERE / f"{direction}.{tasks}.yaml").read_text("utf-8") == text


def test_run_files_can_be_read(tmp_path):
    from trace_transfer.study.run_file import load_run

    file = tmp_path / "run.yaml"
    file.write_text(prepare.run_file("llama_to_qwen3", "words").replace("data/", f"{tasks.DATA}/"), "utf-8")
    for name in prepare.DIRECTIONS["llama_to_qwen3"]:
        config_of(*SHAPES[name]).save_pretrained(tmp_path / "models" / name)
    run = load_run(file)
    assert len(run.seeds) >= 20 and run.tuning is not None and not set(run.tuning.seeds) & set(run.seeds)
    stated = {name for one in run.comparisons for name in (*one.methods, one.against)}
    assert stated <= {method.name for method in run.methods}
