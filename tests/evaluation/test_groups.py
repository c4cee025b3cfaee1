"""Groups of lm-evaluation-harness: all members and the aggregate, as the harness gives them by hand."""

from functools import partial

import pytest

from tests.evaluation.by_hand import quietly
from tests.evaluation_files import loaded, run, write_records
from trace_transfer.errors import UserError
from trace_transfer.evaluation.evaluating import evaluate, plan_evaluation
from trace_transfer.evaluation.records import EvaluationFile
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.show import render_evaluation
from trace_transfer.evaluation.suite_file import Suite
from trace_transfer.formats import read_any
from trace_transfer.progress import Silent

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: 0
doc_to_choice: ["yes", "no"]
metric_list: [{{metric: acc}}]
"""
GROUP = """
group: mine
task:
  - group: small
    task: [one, two]
    aggregate_metric_list: [{metric: acc, weight_by_size: true}]
  - three
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A group's file beside its tasks; only their directory is looked through, which saves ten seconds."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    for name, count in (("one", 3), ("two", 5), ("three", 2)):
        file = write_records(tmp_path / f"{name}.jsonl", [{"q": f"{name} {number}?"} for number in range(count)])
        (folder / f"{name}.yaml").parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file))
    (folder / "mine.yaml").write_text(GROUP)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    return folder / "mine.yaml"


def suite_of(group, **item):
    return Suite.of([{"name": "mine", "kind": "harness", "task": str(group), **item}], group.parent, "test")


def test_as_by_hand(tiny, tmp_path, group):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = loaded(tiny("llama"))
    ours = run(model, tokenizer, suite_of(group))
    with quietly():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
        theirs = lm_eval.simple_evaluate(
            lm, tasks=["mine"], task_manager=TaskManager(include_path=group.parent), bootstrap_iters=100
        )
    results = theirs["results"] | theirs["groups"]
    assert (ours.value, ours.stderr) == (results["mine"]["acc,none"], results["mine"]["acc_stderr,none"])
    found = {one.name: (one.value, one.stderr, one.num_examples) for one in ours.members}
    assert [count for _, _, count in found.values()] == [8, 3, 5, 2]
    for name, (value, stderr, count) in found.items():
        one = results[name]
        assert (value, stderr, count) == (one["acc,none"], one["acc_stderr,none"], one["sample_len"])
    assert [sample.more["task"] for sample in ours.samples] == ["one"] * 3 + ["two"] * 5 + ["three"] * 2


def test_what_is_kept_and_shown(tiny, tmp_path, group):
    plan = plan_evaluation(tiny("llama"), suite_of(group, shots=0, limit=4), EvaluateSettings())
    found = evaluate(plan, tmp_path / "out", Silent())
    (score,) = found.scores
    assert read_any(tmp_path / "out" / "evaluation.json", EvaluationFile) == found
    assert score.num_examples == 9 and score.settings["shots"] == 0 and len(score.members) == 4
    assert "mine::small" in render_evaluation(found)


def test_what_is_refused(tiny, tmp_path, group):
    model, tokenizer = loaded(tiny("llama"))

    def refused(text=GROUP, **item):
        group.write_text(text)
        with pytest.raises(UserError, match="evaluation mine") as caught:
            run(model, tokenizer, suite_of(group, **item))
        return str(caught.value)

    assert "'mine' is a group, whose tasks have data sets of their own" in refused(data=str(tmp_path / "one.jsonl"))
    assert "metric: unknown 'accuracy', the task has: acc" in refused(metric="accuracy")
    bare = GROUP.rpartition("aggregate_metric_list")[0]
    assert "the group 'mine' has no score of its own; list its tasks" in refused(bare)
    task = group.parent / "two.yaml"
    task.write_text(task.read_text() + "unsafe_code: true\n")
    assert "the task 'two' runs programs that the model writes, with nothing around them" in refused()
