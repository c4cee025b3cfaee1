"""`multiple-choice` beside a sum of log-probabilities, token by token, and beside lm-evaluation-harness."""

import pytest

from tests.evaluation_files import CHOICE_FIELDS, CHOICES, loaded, run, suite_of
from tests.reference.scores_one_by_one import answer_tokens, log_probabilities
from trace_transfer.errors import UserError


def likelihoods(model, tokenizer, leading):
    """Of each choice's own text, after the plain template's prompt."""
    found = []
    for record in CHOICES:
        start = len(record["q"]) + 2
        found.append([])
        for choice in record["options"]:
            text = f"{record['q']}\n\n{choice}"
            tokens = answer_tokens(model, tokenizer, text, start, len(text), leading)
            found[-1].append(-sum(loss for loss, _ in tokens))
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "gpt_neox"])
def test_as_a_sum_token_by_token(tiny, tmp_path, family):
    model, tokenizer = loaded(tiny(family))
    expected = likelihoods(model, tokenizer, [0] if family in ("llama", "gemma2", "gpt2") else [])
    for metric in ("acc", "acc_norm"):
        suite = suite_of(tmp_path, CHOICES, kind="multiple-choice", metric=metric, fields=CHOICE_FIELDS)
        outcome = run(model, tokenizer, suite, batch_size=3)
        rights = []
        for sample, record, values in zip(outcome.samples, CHOICES, expected, strict=True):
            assert sample.more["log_likelihoods"] == pytest.approx(values, rel=1e-5)
            scores = values if metric == "acc" else [v / len(c) for v, c in zip(values, record["options"], strict=True)]
            right = {0: 0, "A": 0, "a promise": 0, 1: 1}[record["right"]]
            rights.append(scores.index(max(scores)) == right)
            assert sample.right == rights[-1]
            assert sample.output == record["options"][scores.index(max(scores))]
        assert outcome.value == sum(rights) / len(rights)


def test_as_the_harness_of_the_same_texts(tiny, tmp_path):
    """The harness moves the blank line before an answer into it: a constant of each question."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = loaded(tiny("llama"))
    suite = suite_of(tmp_path, CHOICES, kind="multiple-choice", fields=CHOICE_FIELDS)
    outcome = run(model, tokenizer, suite)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
    for sample, record in zip(outcome.samples, CHOICES, strict=True):
        pairs = [(f"{record['q']}\n\n", choice) for choice in record["options"]]
        requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
        theirs = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        ours = sample.more["log_likelihoods"]
        assert [one - ours[0] for one in ours] == pytest.approx([one - theirs[0] for one in theirs], abs=1e-4)


def test_with_a_chat_template(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content }}"
        "{% if m.role == 'assistant' %}<s>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    record = CHOICES[0]
    suite = suite_of(tmp_path, [record], kind="multiple-choice", fields=CHOICE_FIELDS, system="Be brief.")
    outcome = run(model, tokenizer, suite)
    begin = f"system: Be brief.\nuser: {record['q']}\nassistant: "
    expected = []
    for choice in record["options"]:
        # Generation reads the prompt alone: its last space is no part of the answer's first token.
        prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (begin, choice))
        logs = log_probabilities(model, prompt + answer)
        expected.append(sum(float(logs[len(prompt) + n - 1, token]) for n, token in enumerate(answer)))
    assert list(outcome.samples[0].more["log_likelihoods"]) == pytest.approx(expected, rel=1e-5)


def test_choices_from_columns_and_answers_of_every_form(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    rows = [
        {"ask": "Pick", "a": "one", "b": "two", "n": 2}, {"ask": "Pick", "a": "one", "b": "two", "n": 1},
    ]  # fmt: skip
    fields = {"prompt": "{ask}:", "choices": ["a", "{b}!"], "answer": "n"}
    suite = suite_of(tmp_path, rows, kind="multiple-choice", fields=fields, count_from=1)
    samples = run(model, tokenizer, suite).samples
    assert [sample.target for sample in samples] == ["two!", "one"]
    assert samples[0].more["choices"] == ["one", "two!"] and samples[0].prompt == "Pick:"
    with pytest.raises(UserError, match=r"record 0: answer is 2, expected a number from 0 to 1, a letter from A to B"):
        run(model, tokenizer, suite_of(tmp_path, rows, kind="multiple-choice", fields=fields))


def test_records_that_cannot_be_used_are_all_named(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    rows = [
        {"q": "", "options": ["a", "b"], "right": 0},
        {"q": "x", "options": ["a"], "right": 0},
        {"q": "x", "options": ["a", " "], "right": 0},
        {"q": "x", "options": ["a", "b"], "right": 7},
    ]
    with pytest.raises(UserError, match="4 of 4 records cannot be used") as caught:
        run(model, tokenizer, suite_of(tmp_path, rows, kind="multiple-choice", fields=CHOICE_FIELDS))
    for told in ("0: prompt is blank text", "1: choices is a list", "2: choices[1] is blank", "3: answer is 7"):
        assert f"record {told}" in str(caught.value)
    with pytest.raises(UserError, match="no column 'prompt'; columns: q, options, right"):
        run(model, tokenizer, suite_of(tmp_path, CHOICES[:1], kind="multiple-choice"))
