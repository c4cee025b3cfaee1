"""What templates write, and where in it the answers are: each case with its text in pieces, marked by hand."""

import pytest

from tests.tasks import chat_tokenizers as templates
from tests.tasks.chat_tokenizers import chat_tokenizer
from tests.tasks.test_records import turns
from trace_transfer.tasks.rendering import RenderingError, render_chat, render_plain

ONE = turns(("u", "Hi"), ("a", "Ho"))
TWO = turns(("s", "Brief."), ("u", "Two?"), ("a", "2"), ("u", "Three?"), ("a", "3"))
TWO_ANSWERS = TWO[1:]
SHOT = turns(("u", "1?"), ("c", "one"), ("u", "2?"), ("a", "two"))  # the first answer is an example, not learned
FIRST = turns(("a", "Yes?"), ("u", "Hi"), ("a", "Ho"))
THOUGHT = turns(("u", "Two?"), ("a", "<think>\nhm\n</think>\n\n2"), ("u", "Three?"), ("a", "<think>ha</think>3"))

# Template, messages, text in pieces: (text, whether it is learned).
HELP = "<|im_start|>system\nHelp.<|im_end|>\n"
CHATML_CASES = [
    (
        ONE,
        [
            (HELP + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
            ("Ho<|im_end|>", True),
            ("\n", False),
        ],
    ),
    (
        TWO,
        [
            ("<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n", False),
            ("2<|im_end|>", True),
            ("\n<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\n", False),
            ("3<|im_end|>", True),
            ("\n", False),
        ],
    ),
    (
        SHOT,
        [
            (HELP + "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n", False),
            ("<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n", False),
            ("two<|im_end|>", True),
            ("\n", False),
        ],
    ),
    (
        FIRST,
        [
            (HELP + "<|im_start|>assistant\n", False),
            ("Yes?<|im_end|>", True),
            ("\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
            ("Ho<|im_end|>", True),
            ("\n", False),
        ],
    ),
]
OTHER_CASES = [
    (templates.LLAMA2, turns(("u", " Hi "), ("a", " Ho\n")), [("<s>[INST] Hi [/INST] ", False), ("Ho </s>", True)]),
    (
        templates.LLAMA2,
        TWO_ANSWERS,
        [
            ("<s>[INST] Two? [/INST] ", False),
            ("2 </s>", True),
            ("<s>[INST] Three? [/INST] ", False),
            ("3 </s>", True),
        ],
    ),
    (
        templates.THINKING,
        ONE,
        [
            ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
            ("<think>\n\n</think>\n\nHo<|im_end|>", True),
            ("\n", False),
        ],
    ),
    (
        templates.THINKING,
        THOUGHT,
        [
            ("<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n", False),
            ("2<|im_end|>", True),
            ("\n<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\n", False),
            ("<think>\nha\n</think>\n\n3<|im_end|>", True),
            ("\n", False),
        ],
    ),
    (
        templates.OPENED,
        TWO_ANSWERS,
        [
            ("<s>User:Two?Assistant:", False),
            ("2</s>", True),
            ("User:Three?Assistant:", False),
            ("3</s>", True),
        ],
    ),
    (
        templates.LAST_ENDS,
        TWO_ANSWERS,
        [
            ("USER: Two?\nASSISTANT: ", False),
            ("2", True),
            ("\nUSER: Three?\nASSISTANT: ", False),
            ("3</s>", True),
        ],
    ),
    (
        templates.DATED,
        ONE,
        [
            (f"\nToday is 26 Jul 2024.\n{HELP}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
            ("Ho<|im_end|>", True),
            ("\n", False),
        ],
    ),
]
CASES = [(templates.CHATML, *case) for case in CHATML_CASES] + OTHER_CASES


@pytest.mark.parametrize("template, messages, pieces", CASES)
def test_chat(template, messages, pieces):
    rendered = render_chat(messages, chat_tokenizer(template))
    assert rendered.text == "".join(text for text, _ in pieces)
    assert [rendered.text[start:stop] for start, stop in rendered.answers] == [
        text for text, learned in pieces if learned
    ]
    starts = [sum(len(text) for text, _ in pieces[:place]) for place, (_, learned) in enumerate(pieces) if learned]
    assert [start for start, _ in rendered.answers] == starts


def test_answers_that_stand_in_the_prompt_too():
    messages = turns(("u", "Say Ho Ho"), ("a", "Ho"), ("u", "Ho"), ("a", "Ho"))
    for template in (templates.CHATML, templates.LLAMA2, templates.OPENED):
        rendered = render_chat(messages, chat_tokenizer(template))
        assert [rendered.text[start:stop][:2] for start, stop in rendered.answers] == ["Ho", "Ho"]
        first, second = (start for start, _ in rendered.answers)
        assert (rendered.text[:first].count("Ho"), rendered.text[:second].count("Ho")) == (2, 4)


@pytest.mark.parametrize(
    "template, messages, expected",
    [
        (templates.LLAMA2, TWO, "Only user and assistant turns!"),
        (templates.SHOUTING, ONE, None),
        (templates.SHOUTING, TWO, None),
        ("{{ messages[0].content + 1 }}", ONE, "can only concatenate str"),
        ("{% if %}", ONE, "Expected an expression"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            ONE,
            "turn 1 is not found",
        ),
    ],
)
def test_templates_that_do_not_take_it(template, messages, expected):
    tokenizer = chat_tokenizer(template)
    if expected is None:  # what is written differs from what was given, but is found by what comes before it
        rendered = render_chat(messages, tokenizer)
        answers = [message.content.upper() + "<|im_end|>" for message in messages if message.is_answer]
        assert [rendered.text[start:stop] for start, stop in rendered.answers] == answers
        return
    with pytest.raises(RenderingError, match=expected):
        render_chat(messages, tokenizer)


def test_plain():
    assert render_plain(ONE, "</s>").text == "Hi\n\nHo</s>"
    assert render_plain(ONE, "</s>").answers == ((4, 10),)
    rendered = render_plain(TWO, "</s>")
    assert rendered.text == "Brief.\n\nTwo?\n\n2</s>Three?\n\n3</s>"
    assert [rendered.text[start:stop] for start, stop in rendered.answers] == ["2</s>", "3</s>"]
    rendered = render_plain(SHOT, "</s>")
    assert rendered.text == "1?\n\none</s>2?\n\ntwo</s>"
    assert [rendered.text[start:stop] for start, stop in rendered.answers] == ["two</s>"]
