"""What a suite's file may say, and what each mistake is answered with."""

from pathlib import Path

import pytest

from trace_transfer.data.tasks_file import TaskError
from trace_transfer.evaluation.suite_file import Suite, load_suite, shipped_suites


@pytest.fixture
def write(tmp_path):
    """`write(text)`: a suite's file beside two data files."""
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.csv").write_text("x\n")

    def _write(text: str, name: str = "mine.yaml") -> Path:
        file = tmp_path / name
        file.write_text(text, "utf-8")
        return file

    return _write


def refused(call, *given) -> str:
    with pytest.raises(TaskError, match=r"mine|data that cannot be used|no such") as caught:
        call(*given)
    return str(caught.value)


def test_every_kind(write, tmp_path):
    suite = load_suite(write("""
evaluations:
  - {name: nats, kind: loss, metric: token-accuracy, data: a.jsonl, fields: {prompt: q, completion: "{a}."}, limit: 3}
  - {name: said, kind: exact-match, data: b.csv, extract: "[0-9]+", until: ["\\n"], normalise: [number]}
  - {name: chosen, kind: multiple-choice, data: a.jsonl, fields: {choices: [a, "{b}"], answer: n}, count_from: 1}
  - {name: gsm8k, kind: harness, task: gsm8k_cot, shots: 8, filter: strict-match, data: a.jsonl, shots_data: b.csv}
  - {name: hub, kind: loss, data: owner/name, subset: main, split: test, max_examples: 5, system: Be brief.}
  - {name: code, kind: humaneval}
"""))  # fmt: skip
    assert (suite.name, suite.directory) == ("mine", tmp_path)
    nats, said, chosen, gsm8k, hub, code = suite.specs
    assert (nats.first_metric, nats.limit, nats.builder) == ("token-accuracy", 3, "json")
    assert (said.normalise, said.until) == (("number",), ("\n",))
    assert (chosen.fields["choices"], chosen.count_from) == (("a", "{b}"), 1)
    assert (gsm8k.task, gsm8k.shots, gsm8k.label) == ("gsm8k_cot", 8, "evaluation gsm8k (a.jsonl)")
    assert (hub.builder, hub.split, hub.first_metric) == (None, "test", "loss")
    assert (code.data, code.builder, code.label, code.first_metric) == (None, None, "evaluation code", "pass@1")


def test_all_that_is_wrong_is_told_at_once(write):
    told = refused(load_suite, write("""
evaluations:
  - {name: a, kind: los, data: a.jsonl}
  - {name: b, kind: loss}
  - {name: d, kind: exact-match, metric: exact_match, data: a.jsonl, extract: "(", normalise: [capital]}
  - {name: e, kind: multiple-choice, data: a.txt, fields: {prompt: q, completion: a}}
  - {name: f, kind: harness, shots: -1, data: owner/name, limt: 5}
  - {name: i, kind: harness, data: owner/name}
"""))  # fmt: skip
    for line in (
        "evaluation 'a': kind: 'los' is none of loss, multiple-choice, exact-match, humaneval, harness; did you",
        "evaluation 'b': 'data:' is missing",
        "evaluation 'd': extract: '(' is not a regular expression: missing )",
        "evaluation 'd': normalise.0: 'capital' is none of space, case, punctuation, number",
        "evaluation 'e': data: the extension '.txt' of 'a.txt' is unknown",
        "evaluation 'f': unknown key 'limt'",
        "evaluation 'f': shots: found -1, expected greater than or equal to 0",
        "evaluation 'i': data: 'owner/name': expected a local .json, .jsonl, .csv, .parquet file, or none",
    ):
        assert line in told


def test_shipped_suites():
    assert shipped_suites() == ("paper", "paper-authors")
    paper = load_suite("paper")
    assert (paper.specs[0].task, paper.specs[0].shots) == ("gsm8k_cot", 8)
    assert load_suite("paper-authors").names == ("gsm8k", "medqa")


def test_items_of_another_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    item = {"name": "a", "kind": "loss", "data": "a.jsonl"}
    assert Suite.of([item], tmp_path, "mine").names == ("a",)
    told = refused(Suite.of, [item, item, {"name": "c", "kind": "loss", "data": "c.jsonl"}], tmp_path, "mine")
    assert told.startswith("evaluations of mine: 2 problems:") and "c.jsonl: no such file" in told


def test_other_data(write, tmp_path):
    suite = load_suite(write("""
evaluations:
  - {name: gsm8k, kind: harness}
  - {name: a, kind: loss, data: owner/name, split: test, fields: {prompt: q}}
"""))  # fmt: skip
    given = {"gsm8k": tmp_path / "a.jsonl", "gsm8k.shots": tmp_path / "b.csv", "a": tmp_path / "b.csv"}
    changed = suite.with_data(given)
    gsm8k, a = changed.specs
    assert (gsm8k.data, gsm8k.shots_data) == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv"))
    assert (a.data, a.split, a.fields) == (str(tmp_path / "b.csv"), None, {"prompt": "q"})
    assert suite.specs[0].data is None
    told = refused(suite.with_data, {"a.shots": tmp_path / "a.jsonl"})
    assert "evaluation 'a': shots_data: not for kind loss" in told
    told = refused(suite.with_data, {"x": "a.jsonl", "gsm8k": tmp_path / "c.jsonl"})
    assert "x: no such evaluation, the suite has: gsm8k, a" in told and "c.jsonl: no such file" in told
