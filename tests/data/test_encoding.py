"""Token ids and labels, against labels made by hand; cutting, leaving out, halves."""

import hashlib
import json

import pytest

from tests.data import chat_templates as templates
from tests.data.chat_templates import chat_tokenizer, metaspace_tokenizer
from tests.data.test_records import turns
from tests.data.test_rendering import CASES, ONE, TWO, TWO_ANSWERS
from tests.reference.supervision_by_hand import labels_by_hand
from tests.tiny_models import TEXTS, build_tokenizer
from trace_transfer.data.encoding import PARTED, encode_prompts, encode_task, halves, record_of
from trace_transfer.data.examples import IGNORED
from trace_transfer.data.records import Message, Record, Records
from trace_transfer.data.rendering import APART
from trace_transfer.data.tasks_file import TaskError, TaskSpec

EMOJI = turns(("u", "Draw 漢 and é: 🦊?"), ("a", " 🦊🦊 naïve 漢\n\n  def f(x):\n"))


def spec(**changes: object) -> TaskSpec:
    return TaskSpec(name="math", data="a.jsonl", **changes)


def records(*conversations: tuple[Message, ...], num_records: int = 40) -> Records:
    numbered = tuple(Record(10 + number, messages) for number, messages in enumerate(conversations))
    return Records("math", num_records, numbered)


def questions(count: int, words: int = 3) -> Records:
    """Conversations of which each is longer than the one before."""
    return records(*(turns(("u", f"Word {i}? " * i), ("a", f"answer {i} " * words)) for i in range(1, count + 1)))


def learned(example, tokenizer) -> str:
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


@pytest.mark.parametrize("template, messages, pieces", CASES)
def test_chat_labels(template, messages, pieces):
    tokenizer = chat_tokenizer(template)
    data = encode_task(spec(), records(messages), tokenizer)
    (example,) = data.examples
    assert data.template == "chat" and example.id == "math:10"
    assert example.labels == labels_by_hand(example.input_ids, pieces, tokenizer)
    # A token may begin with the space before the answer.
    assert learned(example, tokenizer).replace(" ", "") == "".join(t for t, yes in pieces if yes).replace(" ", "")


@pytest.mark.parametrize("messages", [TWO, EMOJI])
@pytest.mark.parametrize(
    "build", [chat_tokenizer, lambda template: build_tokenizer("prose"), lambda _: build_tokenizer("code")]
)
def test_plain_labels(build, messages):
    """One special token at the start at most, those that the tokenizer has there, and none behind `eos`."""
    tokenizer = build(None)
    data = encode_task(spec(), records(messages), tokenizer)
    (example,) = data.examples
    assert data.template == "plain"
    pieces = [("<s>", False)] if example.input_ids[0] == 0 else []
    for place, message in enumerate(messages):
        pieces += [("\n\n", False)] if place and messages[place - 1].role != "assistant" else []
        pieces.append((message.content + tokenizer.eos_token * message.is_answer, message.is_answer))
    assert bool(pieces[0][0] == "<s>") == (tokenizer.encode("a")[0] == 0)
    assert example.labels == labels_by_hand(example.input_ids, pieces, tokenizer)
    assert learned(example, tokenizer) == "".join(text for text, yes in pieces if yes)
    assert example.input_ids.count(tokenizer.eos_token_id) == sum(m.is_answer for m in messages) + (
        tokenizer.eos_token == "<s>" and pieces[0][0] == "<s>"
    )


def test_metaspace():
    """A token `▁Ho` begins before the answer and ends in it."""
    for template in (None, templates.LLAMA2):
        tokenizer = metaspace_tokenizer(template)
        for messages in (TWO_ANSWERS, turns(("u", TEXTS[0]), ("a", TEXTS[1]))):
            (example,) = encode_task(spec(), records(messages), tokenizer).examples
            answers = [message.content for message in messages if message.is_answer]
            texts = learned(example, tokenizer).replace(" ", "").split("</s>")
            assert texts == [*(answer.replace(" ", "") for answer in answers), ""]
            assert example.input_ids[0] == 0 and example.input_ids[-1] == tokenizer.eos_token_id


def test_templates_that_cannot_be_used():
    assert encode_task(spec(template="plain"), records(ONE), chat_tokenizer()).template == "plain"
    with pytest.raises(TaskError, match="but the model's tokenizer has no chat template"):
        encode_task(spec(template="chat"), records(ONE), chat_tokenizer(None))
    with pytest.raises(TaskError, match="chat template does not take 2 of 3 examples") as caught:
        encode_task(spec(), records(TWO, ONE, TWO), chat_tokenizer(templates.LLAMA2))
    refusal = "Only user and assistant turns!"
    assert str(caught.value).split("\n  - ")[1:] == [f"math:10: {refusal}", f"math:12: {refusal}"]
    with pytest.raises(TaskError, match=r"names no end-of-text token.* set eos_token"):
        encode_task(spec(), records(ONE), chat_tokenizer(None, eos=None))


def test_examples_that_are_too_long():
    tokenizer = chat_tokenizer()
    whole = encode_task(spec(), questions(6), tokenizer)
    lengths = [len(example.input_ids) for example in whole.examples]
    assert lengths == sorted(set(lengths)) and (whole.num_cut, whole.num_left_out) == (0, 0)
    length = lengths[3]
    cut = encode_task(spec(), questions(6), tokenizer, max_length=length)
    assert (cut.num_cut, cut.num_left_out, cut.num_records) == (2, 0, 40)
    for before, after in zip(whole.examples, cut.examples, strict=True):
        expected = (before.id, before.input_ids[:length], before.labels[:length])
        assert (after.id, after.input_ids, after.labels) == expected
    kept = encode_task(spec(), questions(6), tokenizer, max_length=length, too_long="leave-out")
    assert kept.examples == whole.examples[:4]
    assert (kept.num_cut, kept.num_left_out, kept.num_records) == (0, 2, 40)
    with pytest.raises(TaskError, match="all 6 examples are longer than 20 tokens; raise --max-length"):
        encode_task(spec(), questions(6), tokenizer, max_length=20, too_long="leave-out")
    start = next(place for place, label in enumerate(whole.examples[2].labels) if label != IGNORED)
    with pytest.raises(TaskError, match="no token of the answer is left in 4 of 6 examples, each cut at") as caught:
        encode_task(spec(), questions(6), tokenizer, max_length=start)
    assert "--too-long leave-out:\n  - math:12\n  - math:13" in str(caught.value)
    (shortest,) = encode_task(
        spec(), records(questions(3).records[2].messages), tokenizer, max_length=start + 1
    ).examples
    assert shortest.num_supervised == 1


def test_sha256_is_of_ids_and_labels():
    tokenizer = chat_tokenizer()
    data = encode_task(spec(), records(ONE, TWO), tokenizer)
    lines = (json.dumps([example.input_ids, example.labels]) + "\n" for example in data.examples)
    assert data.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    renamed = encode_task(TaskSpec(name="other", data="b.csv"), records(ONE, TWO), tokenizer)
    assert renamed.sha256 == data.sha256 and renamed.examples[0].id == "other:10"
    not_learned = tuple(Message(turn.role, turn.content, turn is TWO[-1]) for turn in TWO)
    assert encode_task(spec(), records(ONE, not_learned), tokenizer).sha256 != data.sha256


def test_several_examples_of_a_record_stay_together():
    """In one half of the data, and under the number of their record."""
    talk = turns(("u", "Two?"), ("a", "2"), ("u", "Three?"), ("a", "3"))
    data = encode_task(spec(), records(*[talk] * 5), chat_tokenizer(templates.QWEN3))
    assert [example.id for example in data.examples[:3]] == ["math:10/1", "math:10/2", "math:11/1"]
    assert data.notes == (f"{APART}: 5",)
    sides = [{record_of(example) for example in half.examples} for half in halves(data, seed=0)]
    assert not sides[0] & sides[1] and [len(side) for side in sides] == [2, 3]
    with pytest.raises(TaskError, match="task math: 1 example, at least 2 are needed"):
        halves(encode_task(spec(), records(talk), chat_tokenizer(templates.QWEN3)), seed=0)


def test_a_prompt_that_ends_with_the_space_of_the_answer():
    """Its tokens are those that generation reads; where the tokenizer puts a space before a text they stay together."""
    headed = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer = chat_tokenizer(headed, eos="</s>")
    conversation = turns(("u", "Hi"), ("a", "the fox"))
    data = encode_task(spec(), records(conversation), tokenizer)
    (example,), (prompt,) = data.examples, encode_prompts(spec(), records(conversation).records, tokenizer).ids
    assert example.input_ids[: len(prompt)] == prompt and data.notes == (f"{PARTED}: 1",)
    assert learned(example, tokenizer) == "the fox</s>"
    assert encode_task(spec(), records(conversation), metaspace_tokenizer(headed)).notes == ()
