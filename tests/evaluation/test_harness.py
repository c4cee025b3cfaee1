"""Stock tasks of lm-evaluation-harness through us and by hand: the same numbers and texts."""

import tomllib
from functools import partial
from pathlib import Path

import pytest
import torch

from tests import evaluation_files
from tests.data.chat_templates import FAMILIES
from tests.evaluation.by_hand import STOCK, by_hand, local
from tests.evaluation_files import GSM8K, MEDQA, loaded, run, write_records
from trace_transfer.errors import UserError
from trace_transfer.evaluation import harness
from trace_transfer.evaluation.backends import ModelInMemory
from trace_transfer.evaluation.evaluating import prepare_suite
from trace_transfer.evaluation.paper_tasks import INVALID, gsm8k_number, gsm8k_target, medqa_letter
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import Suite, load_suite

ROOT = Path(__file__).parents[2]


suite_of = partial(evaluation_files.suite_of, kind="harness")


@pytest.fixture
def model(tiny):
    return loaded(tiny("llama", max_position_embeddings=2048))


@pytest.fixture(autouse=True)
def _no_look_at_the_machine(monkeypatch):
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds, in each call by hand


@pytest.mark.parametrize(("filter_name", "batch_size"), [("strict-match", 2), ("flexible-extract", 3)])
def test_gsm8k_with_chains_of_thought(model, tmp_path, monkeypatch, filter_name, batch_size):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    item = {"shots": 2, "max_new_tokens": 12, "metric": "exact_match", "filter": filter_name}
    suite = suite_of(tmp_path, GSM8K, task="gsm8k_cot", **item)
    ours = run(*model, suite, limit=3, batch_size=batch_size)
    config = local("gsm8k/gsm8k-cot.yaml", tmp_path / "data.jsonl")
    config["generation_kwargs"]["max_gen_toks"] = 12
    results, samples = by_hand(*model, {**config, "num_fewshot": 2}, limit=3)
    theirs = [one for one in samples if one["filter"] == filter_name]
    assert [one.prompt for one in ours.samples] == [one["arguments"][0][0] for one in theirs]
    assert [one.output for one in ours.samples] == [one["resps"][0][0] for one in theirs]
    assert [one.target for one in ours.samples] == [one["target"] for one in theirs] == ["5", "3", "6"]
    assert ours.value == results[f"exact_match,{filter_name}"]
    assert ours.stderr == results[f"exact_match_stderr,{filter_name}"]
    assert ours.samples[0].prompt.count("Q: ") == 3 and any(one.output for one in ours.samples)


def test_right_answers_are_counted(model, tmp_path, monkeypatch):
    """The numbers above may be equal because all is wrong: here the model says the answer to two of four."""
    said = [" Well. The answer is 5.", " The answer is 4.", "Hm", " The answer is 1000."]
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.generate_until", lambda *_, **__: said)
    outcome = run(*model, suite_of(tmp_path, GSM8K, task="gsm8k_cot", shots=1))
    assert [one.right for one in outcome.samples] == [True, False, False, True]
    assert (outcome.value, outcome.stderr) == (0.5, pytest.approx((1 / 3 / 4) ** 0.5))


def test_medqa_by_likelihoods(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    ours = run(*model, suite_of(tmp_path, MEDQA, task="medqa_4options"))
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(STOCK / "medqa/medqa.yaml")
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}}}
    config |= {"training_split": None, "validation_split": None}
    results, samples = by_hand(*model, config)
    assert ours.value == results["acc,none"] and ours.stderr == results["acc_stderr,none"]
    assert [one.more["filtered"] for one in ours.samples] == [one["filtered_resps"] for one in samples]
    assert [one.value for one in ours.samples] == [one["acc"] for one in samples]
    assert "Question: Patient 0 coughs.\nA. Rest\nB. Tea" in ours.samples[0].prompt


def test_chat_answers_stop_where_training_ended_them(tiny, tmp_path):
    """The end of a turn that is not the end of text; one beginning of text at most; the same day always."""
    model, _ = loaded(tiny("llama", max_position_embeddings=4096))
    tokenizer = FAMILIES["llama3"].tokenizer()
    suite = suite_of(tmp_path, GSM8K, task="gsm8k_cot", shots=1, template="chat", max_new_tokens=2)
    (prepared,) = prepare_suite(suite, EvaluateSettings.of(limit=1), tokenizer, model.config)
    assert prepared.run.__self__.tasks["gsm8k_cot"].config.generation_kwargs["until"][-1] == "<|eot_id|>"
    backend = ModelInMemory(model, tokenizer, EvaluateSettings.of(limit=1))
    prompt = prepared.run(backend, lambda: None).samples[0].prompt
    assert "Today Date: 26 Jul 2024" in prompt and prompt.count("<|begin_of_text|>") == 1
    assert "strftime_now" in tokenizer.chat_template and "macro" not in tokenizer.chat_template
    assert "<|start_header_id|>assistant<|end_header_id|>\n\nThere are 15" in prompt
    refusing = suite_of(tmp_path, GSM8K, task="gsm8k_cot", shots=1, template="chat", system="Count.")
    assert "template: chat: System role not supported" in refused((model, FAMILIES["gemma"].tokenizer()), refusing)
    bare = suite_of(tmp_path, GSM8K, task="gsm8k_cot", shots=1, template="chat")
    assert "the model's tokenizer has no chat template" in refused((model, FAMILIES["plain"].tokenizer()), bare)


@pytest.mark.parametrize("name", ["gsm8k", "medqa"])
def test_the_authors_protocol(model, tmp_path, name):
    suite = load_suite("paper-authors").only([name])
    write_records(tmp_path / "data.jsonl", {"gsm8k": GSM8K, "medqa": MEDQA}[name])
    suite = suite.with_data({name: tmp_path / "data.jsonl"})
    first, again, other = (run(*model, suite, limit=2, seed=seed, max_new_tokens=16) for seed in (1, 1, 2))
    assert first == again != other  # they sample
    if name == "gsm8k":
        assert first.samples[0].prompt.count("Q: ") == 9 and first.samples[0].target == "5"
        assert first.samples[0].prompt.count("The answer is") == 8
        assert first.samples[0].prompt.partition("\n")[0] != other.samples[0].prompt.partition("\n")[0]
    else:
        assert first.samples[0].target == "A" and first.samples[0].prompt.endswith("\nD. Knife\n\nAnswer:")


def refused(model, suite, **settings):
    with pytest.raises(UserError, match="evaluation") as caught:
        prepare_suite(suite, EvaluateSettings.of(**settings), model[1], model[0].config)
    return str(caught.value)


def test_what_is_refused(model, tmp_path, monkeypatch):
    def of(**item):
        return suite_of(tmp_path, GSM8K, **item)

    monkeypatch.setattr(harness, "stock_file", harness._named_files().get)  # no ten seconds for a typo
    assert "no task 'gsm8k_coat' in lm-evaluation-harness; near: " in refused(model, of(task="gsm8k_coat"))
    assert "'mmlu' is a group, whose tasks have data sets of their own" in refused(model, of(task="mmlu"))
    told = refused(model, of(task="gsm8k_cot", metric="exactmatch", filter="strict"))
    assert "metric: unknown 'exactmatch', the task has: exact_match; did you mean" in told
    assert "runs programs that the model writes, with nothing around them" in refused(model, of(task="humaneval"))
    assert "cannot use these records" in refused(model, of(task="medqa_4options"))
    assert "answers of up to 4000 tokens leave no room" in refused(model, of(task="gsm8k_cot"), max_new_tokens=4000)
    hub = Suite.of([{"name": "one", "kind": "harness", "task": "gsm8k_cot"}], tmp_path, "test")
    assert "data set openai/gsm8k/main could not be had from the hub" in refused(model, hub)


def test_a_harness_that_is_not_installed_is_told_once(model, monkeypatch):
    """With the names of all that need it, in the words of the package's own metadata."""
    monkeypatch.setattr("trace_transfer.evaluation.evaluating.find_spec", lambda name: None)
    told = refused(model, load_suite("paper"))
    names = [spec.name for spec in load_suite("paper").specs if spec.kind in ("harness", "humaneval")]
    (wanted,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["evaluation"]
    assert f"{', '.join(names)}: need lm-evaluation-harness" in told and f"pip install '{wanted}'" in told
    assert told.count("not installed") == 1


def test_programs_that_the_model_writes(model, tmp_path, monkeypatch):
    """One is right, one is wrong, one never ends: it is killed, and counts as wrong."""
    bodies = ["    return x + 1\n", "    return x\n", "    while True: pass\n"]
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM.generate_until", lambda *_, **__: bodies)
    records = [
        {"task_id": f"own/{i}", "prompt": f'def f{i}(x):\n    """One more."""\n', "entry_point": f"f{i}",
         "canonical_solution": "",
         "test": "def check(candidate):\n    assert candidate(1) == 2\n"}
        for i in range(3)
    ]  # fmt: skip
    write_records(tmp_path / "code.jsonl", records)
    suite = Suite.of([{"name": "code", "kind": "humaneval", "data": "code.jsonl"}], tmp_path, "test")
    assert "give --allow-code-execution" in refused(model, suite)
    outcome = run(*model, suite, allow_code_execution=True)
    assert [one.right for one in outcome.samples] == [True, False, False]
    assert [one.output for one in outcome.samples] == bodies
    assert (outcome.value, outcome.stderr, outcome.num_errors) == (1 / 3, pytest.approx(1 / 3), 1)


def test_nothing_is_printed_and_nothing_stays_changed(model, tmp_path, capfd):
    before = torch.random.get_rng_state()
    run(*model, suite_of(tmp_path, GSM8K, task="gsm8k_cot", shots=0, max_new_tokens=2))
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_task_in_a_file_of_ones_own(model, tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(
        "task: mine\noutput_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{q}}'\n"
        "doc_to_target: 0\ndoc_to_choice: ['yes', 'no']\nmetric_list: [{metric: acc}]\n"
    )
    outcome = run(*model, suite_of(tmp_path, [{"q": "So?"}, {"q": "No?"}], task="tasks/mine.yaml"))
    assert [one.prompt for one in outcome.samples] == ["So?", "No?"]
    assert outcome.samples[0].more["continuations"] == [" yes", " no"]


# ---- how the authors' scripts read an answer, on texts for which it can be said by reading those scripts


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is $1,234.50 or 9. The answer is 8", "1234.50"),
        ("It is 4, no, 12.", "12"),
        ("12. The answer is unknown.", INVALID),
    ],
)
def test_gsm8k(text, number):
    assert gsm8k_number(text) == number


def test_gsm8k_target():
    assert gsm8k_target({"answer": "8 * 9\n#### 1,072"}) == "1072"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Well.\nc: X-ray", "C"),
        ("A 45-year-old should rest.", "A"),
        ("The answer is D: knife", "D"),
        ("I would say B", "B"),
        ("Never", INVALID),
    ],
)
def test_medqa(text, letter):
    assert medqa_letter(text) == letter
