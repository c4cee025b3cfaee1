"""`loss` and `token-accuracy` beside a plain loop over texts and tokens."""

import math

import pytest
import torch

from tests.evaluation_files import FIELDS, QUESTIONS, loaded, run, suite_of
from tests.reference.scores_one_by_one import answer_tokens, plain_text
from trace_transfer.errors import UserError

FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2", "gpt_neox"]


def by_hand(model, tokenizer, leading):
    found = []
    for record in QUESTIONS:
        text, start = plain_text(record["question"], record["answer"], tokenizer.eos_token)
        found.append(answer_tokens(model, tokenizer, text, start, len(text), leading))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_as_a_loop_over_texts(tiny, tmp_path, family):
    model, tokenizer = loaded(tiny(family))
    leading = [0] if family in ("llama", "gemma2", "gemma3_text", "gpt2") else []
    expected = by_hand(model, tokenizer, leading)
    tokens = [loss for one in expected for loss, _ in one]
    for batch_size in (1, 3):
        outcome = run(
            model, tokenizer, suite_of(tmp_path, QUESTIONS, kind="loss", fields=FIELDS), batch_size=batch_size
        )
        assert outcome.value == pytest.approx(sum(tokens) / len(tokens), rel=1e-5)
        for sample, one in zip(outcome.samples, expected, strict=True):
            assert sample.value == pytest.approx(sum(loss for loss, _ in one) / len(one), rel=1e-5)
            assert sample.more["num_tokens"] == len(one)


def test_share_of_tokens_that_are_the_likeliest(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    with torch.no_grad():  # one token is always the likeliest, so that some are right
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer("2")["input_ids"][-1]] = model.model.norm.weight.sign()
    expected = by_hand(model, tokenizer, [0])
    hits = [hit for one in expected for _, hit in one]
    assert 0 < sum(hits) < len(hits)
    suite = suite_of(tmp_path, QUESTIONS, kind="loss", metric="token-accuracy", fields=FIELDS)
    outcome = run(model, tokenizer, suite, batch_size=2)
    assert outcome.value == sum(hits) / len(hits)
    assert [sample.value for sample in outcome.samples] == [sum(h for _, h in one) / len(one) for one in expected]


def test_standard_error_is_over_examples(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    outcome = run(model, tokenizer, suite_of(tmp_path, QUESTIONS, kind="loss", fields=FIELDS))
    sums = [sum(loss for loss, _ in one) for one in by_hand(model, tokenizer, [0])]
    counts = [sample.more["num_tokens"] for sample in outcome.samples]
    size, mean = len(sums), sum(sums) / sum(counts)
    spread = sum((total - mean * count) ** 2 for total, count in zip(sums, counts, strict=True)) / (size - 1)
    assert outcome.stderr == pytest.approx(math.sqrt(spread / size) / (sum(counts) / size), rel=1e-4)
    assert run(model, tokenizer, suite_of(tmp_path, QUESTIONS[:1], kind="loss", fields=FIELDS)).stderr is None


def test_long_examples_are_cut_as_in_training(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    suite = suite_of(tmp_path, QUESTIONS[:1], kind="loss", fields=FIELDS)
    whole = run(model, tokenizer, suite).samples[0]
    cut = run(model, tokenizer, suite, max_length=14).samples[0]
    assert cut.more["num_tokens"] < whole.more["num_tokens"] and whole.target.startswith(cut.target)
    with pytest.raises(UserError, match="no token of the answer is left in 1 of 1 examples"):
        run(model, tokenizer, suite, max_length=4)
