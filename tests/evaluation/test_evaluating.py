"""From a model and a suite to `evaluation.json`: what is run, what is not run again, and states of a stream."""

import json
import re

import pytest

from tests.evaluation_files import write_records, write_suite
from tests.patch_files import make_patch, mask_of, state_of
from trace_transfer.errors import UserError
from trace_transfer.evaluation import evaluating
from trace_transfer.evaluation.evaluating import evaluate, plan_evaluation
from trace_transfer.evaluation.outcome import EvaluationError
from trace_transfer.evaluation.records import EvaluationFile
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import Suite, load_suite
from trace_transfer.formats import read_any
from trace_transfer.patch.model_state import PatchedModel, write_model
from trace_transfer.progress import Silent

SILENT = Silent()


@pytest.fixture
def counted(monkeypatch):
    """Names of the evaluations that were run, and `None` for each loading of a model."""
    calls = []
    score_one, load = evaluating.score_one, PatchedModel.load

    def counting(backend, prepared, *more):
        calls.append(prepared.spec.name)
        return score_one(backend, prepared, *more)

    def loading(self, dtype):
        calls.append(None)
        return load(self, dtype)

    monkeypatch.setattr(evaluating, "score_one", counting)
    monkeypatch.setattr(PatchedModel, "load", loading)
    return calls


def run(model, suite, out, **settings):
    return evaluate(plan_evaluation(model, suite, EvaluateSettings.of(**settings)), out, SILENT)


def values(file):
    return {score.name: score.value for score in file.scores}


def test_what_is_written(tiny, tmp_path):
    found = run(tiny("llama"), load_suite(write_suite(tmp_path / "suite")), tmp_path / "out")
    assert read_any(tmp_path / "out" / "evaluation.json", EvaluationFile) == found
    assert found.model.family == "llama" and found.suite == "mine" and found.settings["dtype"] == "float32"
    assert found.fingerprint == state_of(tiny("llama")).fingerprint
    nats, said, chosen = found.scores
    assert (nats.name, nats.kind, nats.metric, nats.num_examples) == ("nats", "loss", "loss", 5)
    assert not nats.higher_is_better and nats.stderr > 0
    assert said.settings["max_new_tokens"] == 6 and said.settings["template"] == "plain" and said.num_errors == 0
    assert chosen.metric == "acc" and chosen.data_sha256 and chosen.data_sha256 != said.data_sha256 == nats.data_sha256
    lines = [json.loads(one) for one in (tmp_path / "out/samples/chosen.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == [0, 1, 2, 3]
    assert {"prompt", "output", "target", "right", "value"} <= lines[0].keys()
    assert chosen.value == sum(line["right"] for line in lines) / 4


def test_what_is_finished_is_not_run_again(tiny, tmp_path, counted):
    file, out = write_suite(tmp_path / "suite"), tmp_path / "out"
    first = run(tiny("llama"), load_suite(file), out)
    assert counted == [None, "nats", "said", "chosen"]
    counted.clear()
    assert run(tiny("llama"), load_suite(file), out, batch_size=2).scores == first.scores
    assert counted == []  # nothing was loaded, either
    (out / "finished" / "said.json").write_text("{")
    (out / "samples" / "chosen.jsonl").unlink()
    assert values(run(tiny("llama"), load_suite(file), out)) == values(first)
    assert counted == [None, "said", "chosen"]


def test_what_is_run_anew(tiny, tmp_path, counted):
    file, out = write_suite(tmp_path / "suite"), tmp_path / "out"
    text, model = file.read_text(), tiny("llama")

    def ran(**settings):
        counted.clear()
        run(model, load_suite(file), out, **settings)
        return list(counted)

    assert ran() == ran(limit=2) == ran() == [None, "nats", "said", "chosen"]
    file.write_text(text.replace("max_new_tokens: 6", "max_new_tokens: 5"))
    assert ran() == [None, "said"]
    records = (file.parent / "choices.jsonl").read_text()
    (file.parent / "moved.jsonl").write_text(records)
    file.write_text(text.replace("choices.jsonl", "moved.jsonl").replace("max_new_tokens: 6", "max_new_tokens: 5"))
    assert ran() == []  # the same records under another name
    (file.parent / "moved.jsonl").write_text(records.partition("\n")[2])
    assert ran() == [None, "chosen"]


def test_scores_of_other_weights_are_not_replaced(tiny, tmp_path, counted):
    suite, out = load_suite(write_suite(tmp_path / "suite")), tmp_path / "out"
    base = state_of(tiny("llama"))
    run(base, suite, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    patched = base.apply(make_patch(base, tmp_path / "p.patch.safetensors", mask_of(base), 1))
    counted.clear()
    there = str(tiny("llama"))
    for model, told in (
        (tiny("gpt2"), f"out: holds the scores of {there}, and {tiny('gpt2')} is to be scored now; the weights, with"),
        (patched, f"out: holds the scores of {there}, and"),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            run(model, suite, out)
    assert counted == []
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    (out / "evaluation.json").unlink()  # as an interrupted one leaves it
    with pytest.raises(UserError, match=re.escape(told)):
        run(patched, suite, out)
    assert [score.name for score in run(base, suite.only(["said"]), out).scores] == ["said"]  # less of the same model
    plan = plan_evaluation(patched, suite, EvaluateSettings())
    assert evaluate(plan, out, SILENT, replace=True).fingerprint == patched.fingerprint  # as a run does


def test_a_failure_leaves_what_was_finished(tiny, tmp_path, counted, monkeypatch):
    suite, out = load_suite(write_suite(tmp_path / "suite")), tmp_path / "out"
    score_one = evaluating.score_one

    def fail(backend, prepared, *more):
        if prepared.spec.name == "chosen":
            raise EvaluationError("no luck")
        return score_one(backend, prepared, *more)

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "score_one", fail)
        with pytest.raises(EvaluationError, match="no luck"):
            run(tiny("llama"), suite, out)
    assert not (out / "evaluation.json").exists()
    counted.clear()
    run(tiny("llama"), suite, out)
    assert counted == [None, "chosen"]


def test_states_of_a_stream(tiny, tmp_path):
    """Base and patches, and the model that they make on disk."""
    base = state_of(tiny("llama"))
    state = base.apply(make_patch(base, tmp_path / "p.patch.safetensors", mask_of(base), 1))
    suite = load_suite(write_suite(tmp_path / "suite"))
    patched = run(state, suite, tmp_path / "patched")
    write_model(state, tmp_path / "model", SILENT)
    assert values(run(tmp_path / "model", suite, tmp_path / "written")) == values(patched)
    bare = run(base, suite, tmp_path / "bare")
    assert values(bare) != values(patched) and bare.fingerprint != patched.fingerprint == state.fingerprint


def test_everything_is_refused_at_once_and_nothing_loaded(tiny, tmp_path, counted):
    write_records(tmp_path / "a.jsonl", [{"x": 1}])
    items = [
        {"name": "b", "kind": "multiple-choice", "data": "a.jsonl"},
        {"name": "c", "kind": "humaneval"},
        {"name": "e", "kind": "harness", "task": "gsm8k_cot", "metric": "none", "data": "a.jsonl"},
    ]
    suite = Suite.of(items, tmp_path, "mine")
    with pytest.raises(UserError, match="suite mine: cannot be run") as caught:
        plan_evaluation(tiny("llama"), suite, EvaluateSettings.of(max_new_tokens=8))
    for told in (
        "evaluation b (a.jsonl): columns that are not there",
        "evaluation c: it runs programs that the model writes; give --allow-code-execution",
        "evaluation e (a.jsonl): ",
    ):
        assert told in str(caught.value)
    assert counted == []
