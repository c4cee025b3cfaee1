"""`exact-match` beside one forward pass per token, and what counts as the same answer."""

import pytest
import torch

from tests.data.chat_templates import FAMILIES
from tests.evaluation_files import FIELDS, QUESTIONS, loaded, run, suite_of
from tests.reference.scores_one_by_one import greedy
from trace_transfer.errors import UserError
from trace_transfer.evaluation.backends import ModelInMemory
from trace_transfer.evaluation.evaluating import prepare_suite
from trace_transfer.evaluation.exact_match import extracted, matches, normalised
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2", "gpt_neox"]
)
def test_as_one_token_after_the_other(tiny, tmp_path, family):
    """Batches of like lengths, padded on the left, with a cache, write what each prompt gives alone.

    A random model with tied embeddings would say its last token over and over.
    """
    model, tokenizer = loaded(tiny(family, **({"tie_word_embeddings": False} if family != "gpt2" else {})))
    leading = [0] if family in ("llama", "gemma2", "gemma3_text", "gpt2") else []
    prompts = [f"{one['question']}\n\n" for one in QUESTIONS]
    expected = [greedy(model, tokenizer, prompt, leading, 8, tokenizer.eos_token_id) for prompt in prompts]
    records = [
        one | {"answer": said} if number % 2 and said.strip() and "\x00" not in said else one
        for number, (one, said) in enumerate(zip(QUESTIONS, expected, strict=True))
    ]
    suite = suite_of(tmp_path, records, kind="exact-match", fields=FIELDS, max_new_tokens=8)
    for batch_size in (1, 3):
        outcome = run(model, tokenizer, suite, batch_size=batch_size)
        assert [sample.output for sample in outcome.samples] == expected
        right = [
            " ".join(e.split()).casefold() == " ".join(r["answer"].split()).casefold()
            for e, r in zip(expected, records, strict=True)
        ]
        assert [sample.right for sample in outcome.samples] == right
        assert outcome.value == sum(right) / len(right) and sum(right) > 0


def test_the_models_own_generation_settings_do_not_count(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    suite = suite_of(tmp_path, QUESTIONS, kind="exact-match", fields=FIELDS, max_new_tokens=12)
    before = [sample.output for sample in run(model, tokenizer, suite).samples]
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    model.generation_config.temperature = 9.0
    assert [sample.output for sample in run(model, tokenizer, suite).samples] == before
    assert model.generation_config.repetition_penalty == 5.0


def test_it_ends_where_answers_ended_in_training(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    suite = suite_of(tmp_path, QUESTIONS, kind="exact-match", fields=FIELDS, max_new_tokens=12)
    outputs = [sample.output for sample in run(model, tokenizer, suite).samples]
    with torch.no_grad():
        model.lm_head.weight.zero_()  # the end-of-text token, 0, is the first of the likeliest
    assert [sample.output for sample in run(model, tokenizer, suite).samples] == [""] * len(QUESTIONS)
    assert all(outputs)


def test_until(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    whole = suite_of(tmp_path, QUESTIONS, kind="exact-match", fields=FIELDS, max_new_tokens=12)
    outputs = [sample.output for sample in run(model, tokenizer, whole).samples]
    end = outputs[0][3:5]
    suite = suite_of(tmp_path, QUESTIONS, kind="exact-match", fields=FIELDS, max_new_tokens=12, until=[end])
    assert [sample.output for sample in run(model, tokenizer, suite).samples] == [
        one.partition(end)[0] for one in outputs
    ]


def test_long_prompts_lose_their_beginning(tiny, tmp_path):
    model, tokenizer = loaded(tiny("llama"))
    suite = suite_of(tmp_path, [QUESTIONS[1]], kind="exact-match", fields=FIELDS, max_new_tokens=4)
    (sample,) = run(model, tokenizer, suite, max_length=12).samples
    whole = f"{tokenizer.bos_token}{QUESTIONS[1]['question']}\n\n"
    assert sample.prompt.startswith(tokenizer.bos_token) and whole.endswith(sample.prompt.removeprefix("<s>"))
    assert (
        len(tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]) <= 8 < len(tokenizer(whole)["input_ids"])
    )
    with pytest.raises(UserError, match="answers of up to 4 tokens leave no room for a prompt in the 4 tokens"):
        run(model, tokenizer, suite, max_length=4)


def spec(**more) -> EvaluationSpec:
    return EvaluationSpec(name="one", kind="exact-match", data="a.jsonl", **more)


@pytest.mark.parametrize(
    ("output", "target", "more", "right"),
    [
        (" It is\n 4 ", "it is 4", {}, True),
        ("It is 4.", "It is 4", {}, False),
        ("It is 4.", "It is 4", {"normalise": ("punctuation",)}, True),
        ("It is 4", "it is 4", {"normalise": ()}, False),
        ("1,000.0", "$1000", {"normalise": ("number",)}, True),
        ("1000 or so", "1000", {"normalise": ("number",)}, False),
        ("3 and 5, so 8.", "2 + 6\n#### 8", {"extract": r"-?\d+"}, True),
        ("8, so 3", "#### 8", {"extract": r"-?\d+"}, False),
        ("none", "#### 8", {"extract": r"-?\d+"}, False),
        ("the answer is B", "B", {"extract": r"answer is ([A-D])"}, True),
        ("", "", {"extract": "x"}, False),
    ],
)
def test_what_is_the_same_answer(output, target, more, right):
    assert matches(output, target, spec(**more)) is right


def test_pieces():
    assert extracted("a1b22", r"\d+") == "22" and extracted("ab", r"\d") is None and extracted("ab", None) == "ab"
    assert extracted("x=1 x=2", r"x=(\d)") == "2"
    assert normalised("−1", ("number",)) == "−1" and normalised("-0.50%", ("number",)) == "-0.5"
    assert normalised("1e5", ("number",)) == "1e5" and normalised("100", ("number",)) == "100"


@pytest.mark.parametrize("family", ["chatml-added", "chatml-letters", "phi3", "qwen3"])
def test_it_stops_where_answers_of_the_template_end(tiny, tmp_path, family):
    """At a token that is only added, at letters, at one that takes the white space behind it; thoughts do not count."""
    model, _ = loaded(tiny("llama", tie_word_embeddings=False))
    tokenizer = FAMILIES[family].tokenizer()
    end = "<|end|>" if family == "phi3" else "<|im_end|>"
    thought = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
    script = tokenizer(f"{thought}Ho{end} and on", add_special_tokens=False)["input_ids"]
    suite = suite_of(
        tmp_path, [{"question": "Hi", "answer": "Ho"}], kind="exact-match", fields=FIELDS, max_new_tokens=len(script)
    )
    (prepared,) = prepare_suite(suite, EvaluateSettings.of(), tokenizer, model.config)
    reciting = Reciting(model, len(prepared.prompts[0]), script)
    backend = ModelInMemory(reciting.model, tokenizer, EvaluateSettings())
    (sample,) = prepared.run(backend, lambda: None).samples
    assert sample.output == thought + "Ho" and sample.right
    assert reciting.num_said <= len(script) - len(tokenizer(" and on")["input_ids"]) + 2
    assert end in prepared.settings["stop"]


class Reciting:
    """A model whose likeliest token after a prompt is the next one of a script."""

    def __init__(self, model, length, script):
        self.model, self.length, self.script, self.num_said = model, length, script, 0
        model.lm_head.register_forward_hook(self._say)

    def _say(self, head, inputs, logits):
        logits = torch.zeros_like(logits)
        logits[:, -1, self.script[min(self.num_said, len(self.script) - 1)]] = 1
        self.num_said += 1
        return logits
