"""`loss`, `exact-match` and `multiple-choice` beside plain loops over texts and tokens, and beside the harness."""

import pytest
import torch

from tests.data.chat_templates import FAMILIES as TEMPLATES
from tests.evaluation_files import CHOICE_FIELDS, CHOICES, FIELDS, QUESTIONS, loaded, run, suite_of
from tests.reference.scores_one_by_one import answer_tokens, greedy, plain_text
from trace_transfer.errors import UserError
from trace_transfer.evaluation.backends import ModelInMemory
from trace_transfer.evaluation.evaluating import prepare_suite
from trace_transfer.evaluation.own_data import matches, ratio_and_stderr
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec

FAMILIES = ["llama", "gemma3_text", "gpt2", "gpt_neox"]
LEADING = ("llama", "gemma3_text", "gpt2")  # their tokenizers put a special token before each text


def losses_by_hand(model, tokenizer, leading):
    found = []
    for record in QUESTIONS:
        text, start = plain_text(record["question"], record["answer"], tokenizer.eos_token)
        found.append(answer_tokens(model, tokenizer, text, start, len(text), leading))
    return found


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_loss_as_a_loop_over_texts(tiny, tmp_path, family):
    model, tokenizer = loaded(tiny(family))
    leading = [0] if family in LEADING else []
    expected = losses_by_hand(model, tokenizer, leading)
    tokens = [loss for one in expected for loss, _ in one]
    for batch_size in (1, 3):
        suite = suite_of(tmp_path, QUESTIONS, kind="loss", fields=FIELDS)
        outcome = run(model, tokenizer, suite, batch_size=batch_size)
        assert outcome.value == pytest.approx(sum(tokens) / len(tokens), rel=1e-5)
        for sample, one in zip(outcome.samples, expected, strict=True):
            assert sample.value == pytest.approx(sum(loss for loss, _ in one) / len(one), rel=1e-5)
            assert sample.more["num_tokens"] == len(one)
    sums, counts = zip(*((sum(loss for loss, _ in one), len(one)) for one in expected), strict=True)
    assert outcome.stderr == pytest.approx(ratio_and_stderr(sums, counts)[1], rel=1e-4)


def test_share_of_tokens_that_are_the_likeliest(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    with torch.no_grad():  # one token is always the likeliest, so that some are right
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer("2")["input_ids"][-1]] = model.model.norm.weight.sign()
    expected = losses_by_hand(model, tokenizer, [0])
    hits = [hit for one in expected for _, hit in one]
    assert 0 < sum(hits) < len(hits)
    suite = suite_of(tmp_path, QUESTIONS, kind="loss", metric="token-accuracy", fields=FIELDS)
    outcome = run(model, tokenizer, suite, batch_size=2)
    assert outcome.value == sum(hits) / len(hits)
    assert [sample.value for sample in outcome.samples] == [sum(h for _, h in one) / len(one) for one in expected]


def test_long_examples_are_cut_as_in_training(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    suite = suite_of(tmp_path, QUESTIONS[:1], kind="loss", fields=FIELDS)
    whole = run(model, tokenizer, suite).samples[0]
    cut = run(model, tokenizer, suite, max_length=14).samples[0]
    assert cut.more["num_tokens"] < whole.more["num_tokens"] and whole.target.startswith(cut.target)
    with pytest.raises(UserError, match="no token of the answer is left in 1 of 1 examples"):
        run(model, tokenizer, suite, max_length=4)


# ---- exact match


@pytest.mark.parametrize("family", FAMILIES)
def test_as_one_token_after_the_other(tiny, tmp_path, family):
    """Batches of like lengths, padded on the left, with a cache, write what each prompt gives alone.

    A random model with tied embeddings would say its last token over and over.
    """
    model, tokenizer = loaded(tiny(family, **({"tie_word_embeddings": False} if family != "gpt2" else {})))
    model.generation_config.repetition_penalty = 5.0  # the model's own settings do not count
    leading = [0] if family in LEADING else []
    prompts = [f"{one['question']}\n\n" for one in QUESTIONS]
    expected = [greedy(model, tokenizer, prompt, leading, 8, tokenizer.eos_token_id) for prompt in prompts]
    records = [
        one | {"answer": said} if number % 2 and said.strip() and "\x00" not in said else one
        for number, (one, said) in enumerate(zip(QUESTIONS, expected, strict=True))
    ]
    answers = [record["answer"] for record in records]
    suite = suite_of(tmp_path, records, kind="exact-match", fields=FIELDS, max_new_tokens=8)
    for batch_size in (1, 3):
        outcome = run(model, tokenizer, suite, batch_size=batch_size)
        assert [sample.output for sample in outcome.samples] == expected
        said, wanted = ([" ".join(text.split()).casefold() for text in texts] for texts in (expected, answers))
        right = [one == other for one, other in zip(said, wanted, strict=True)]
        assert [sample.right for sample in outcome.samples] == right
        assert outcome.value == sum(right) / len(right) and sum(right) > 0


def test_until(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    item = {"kind": "exact-match", "fields": FIELDS, "max_new_tokens": 12}
    outputs = [sample.output for sample in run(model, tokenizer, suite_of(tmp_path, QUESTIONS, **item)).samples]
    end = outputs[0][3:5]
    cut = run(model, tokenizer, suite_of(tmp_path, QUESTIONS, **item, until=[end])).samples
    assert [sample.output for sample in cut] == [one.partition(end)[0] for one in outputs]


def test_long_prompts_lose_their_beginning(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    suite = suite_of(tmp_path, [QUESTIONS[1]], kind="exact-match", fields=FIELDS, max_new_tokens=4)
    (sample,) = run(model, tokenizer, suite, max_length=12).samples
    whole = f"{tokenizer.bos_token}{QUESTIONS[1]['question']}\n\n"
    assert sample.prompt.startswith(tokenizer.bos_token) and whole.endswith(sample.prompt.removeprefix("<s>"))
    assert len(tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]) <= 8
    with pytest.raises(UserError, match="answers of up to 4 tokens leave no room for a prompt in the 4 tokens"):
        run(model, tokenizer, suite, max_length=4)


def spec(**more) -> EvaluationSpec:
    return EvaluationSpec(name="one", kind="exact-match", data="a.jsonl", **more)


@pytest.mark.parametrize(
    ("output", "target", "more", "right"),
    [
        (" It is\n 4 ", "it is 4", {}, True),
        ("It is 4.", "It is 4", {"normalise": ("punctuation",)}, True),
        ("1,000.0", "$1000", {"normalise": ("number",)}, True),
        ("1000 or so", "1000", {"normalise": ("number",)}, False),
        ("3 and 5, so 8.", "2 + 6\n#### 8", {"extract": r"-?\d+"}, True),
        ("none", "#### 8", {"extract": r"-?\d+"}, False),
        ("the answer is B", "B", {"extract": r"answer is ([A-D])"}, True),
        ("", "", {"extract": "x"}, False),
        ("-0.50%", "-0.5", {"normalise": ("number",)}, True),
        ("1e2", "100", {"normalise": ("number",)}, False),
    ],
)
def test_what_is_the_same_answer(output, target, more, right):
    assert matches(output, target, spec(**more)) is right


@pytest.mark.parametrize("family", ["chatml-added", "chatml-letters", "phi3", "qwen3"])
def test_it_stops_where_answers_of_the_template_end(tiny, tmp_path, family):
    """At a token that is only added, at letters, at one that takes the white space behind it; thoughts do not count."""
    model, _ = loaded(tiny("llama", tie_word_embeddings=False))
    tokenizer = TEMPLATES[family].tokenizer()
    end = "<|end|>" if family == "phi3" else "<|im_end|>"
    thought = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
    script = tokenizer(f"{thought}Ho{end} and on", add_special_tokens=False)["input_ids"]
    suite = suite_of(
        tmp_path, [{"question": "Hi", "answer": "Ho"}], kind="exact-match", fields=FIELDS, max_new_tokens=len(script)
    )
    (prepared,) = prepare_suite(suite, EvaluateSettings.of(), tokenizer, model.config)
    reciting = Reciting(model, script)
    backend = ModelInMemory(reciting.model, tokenizer, EvaluateSettings())
    (sample,) = prepared.run(backend, lambda: None).samples
    assert sample.output == thought + "Ho" and sample.right
    assert reciting.num_said <= len(script) - len(tokenizer(" and on")["input_ids"]) + 2
    assert end in prepared.settings["stop"]


class Reciting:
    """A model whose likeliest token after a prompt is the next one of a script."""

    def __init__(self, model, script):
        self.model, self.script, self.num_said = model, script, 0
        model.lm_head.register_forward_hook(self._say)

    def _say(self, head, inputs, logits):
        logits = torch.zeros_like(logits)
        logits[:, -1, self.script[min(self.num_said, len(self.script) - 1)]] = 1
        self.num_said += 1
        return logits


# ---- multiple choice


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


def test_as_a_sum_token_by_token(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    expected = likelihoods(model, tokenizer, [0])
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


def test_choices_from_columns_and_answers_of_every_form(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    rows = [{"ask": "Pick", "a": "one", "b": "two", "n": number} for number in (2, 1)]
    fields = {"prompt": "{ask}:", "choices": ["a", "{b}!"], "answer": "n"}
    suite = suite_of(tmp_path, rows, kind="multiple-choice", fields=fields, count_from=1)
    samples = run(model, tokenizer, suite).samples
    assert [sample.target for sample in samples] == ["two!", "one"]
    assert samples[0].more["choices"] == ["one", "two!"] and samples[0].prompt == "Pick:"
    with pytest.raises(UserError, match=r"record 0: answer is 2, expected a number from 0 to 1, a letter from A to B"):
        run(model, tokenizer, suite_of(tmp_path, rows, kind="multiple-choice", fields=fields))


def test_records_that_cannot_be_used_are_all_named(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    wrong = [("", ["a", "b"], 0), ("x", ["a"], 0), ("x", ["a", " "], 0), ("x", ["a", "b"], 7)]
    rows = [{"q": question, "options": options, "right": right} for question, options, right in wrong]
    with pytest.raises(UserError, match="4 of 4 records cannot be used") as caught:
        run(model, tokenizer, suite_of(tmp_path, rows, kind="multiple-choice", fields=CHOICE_FIELDS))
    for told in ("0: prompt is blank text", "1: choices is a list", "2: choices[1] is blank", "3: answer is 7"):
        assert f"record {told}" in str(caught.value)
