"""What templates write, and where in it the answers are: each case with its text in pieces, marked by hand."""

import re

import pytest

from tests.data import chat_templates as templates
from tests.data.chat_templates import chat_tokenizer
from tests.data.test_records import turns
from trace_transfer.data.records import Message
from trace_transfer.data.rendering import ADDED_END, APART, COMPOSED, RenderingError, render_chat, render_plain

ONE = turns(("u", "Hi"), ("a", "Ho"))
TWO = turns(("s", "Brief."), ("u", "Two?"), ("a", "2"), ("u", "Three?"), ("a", "3"))
TWO_ANSWERS = TWO[1:]
SHOT = turns(("u", "1?"), ("c", "one"), ("u", "2?"), ("a", "two"))  # the first answer is an example, not learned
FIRST = turns(("a", "Yes?"), ("u", "Hi"), ("a", "Ho"))
USER, BOT, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"


def pieces_of(marked: str) -> list[tuple[str, bool]]:
    """A text in pieces, and whether each is learned: ⟦what is⟧ stands between brackets."""
    return [(text, place % 2 == 1) for place, text in enumerate(re.split("[⟦⟧]", marked)) if text]


# Template, messages, text in pieces: (text, whether it is learned).
CASES = [
    (template, messages, pieces_of(marked))
    for template, messages, marked in (
        (
            templates.CHATML, TWO,
            f"<|im_start|>system\nBrief.{END}\n{USER}Two?{END}\n{BOT}⟦2{END}⟧\n{USER}Three?{END}\n{BOT}⟦3{END}⟧\n",
        ),
        (templates.CHATML, SHOT, f"{USER}1?{END}\n{BOT}one{END}\n{USER}2?{END}\n{BOT}⟦two{END}⟧\n"),
        (templates.CHATML, FIRST, f"{BOT}⟦Yes?{END}⟧\n{USER}Hi{END}\n{BOT}⟦Ho{END}⟧\n"),
        (templates.LLAMA2, TWO_ANSWERS, "<s>[INST] Two? [/INST]⟦ 2 </s>⟧<s>[INST] Three? [/INST]⟦ 3 </s>⟧"),
        (templates.QWEN3, ONE, f"{USER}Hi{END}\n{BOT}⟦<think>\n\n</think>\n\nHo{END}⟧\n"),
        (templates.HEADED, TWO_ANSWERS, "USER: Two?\nASSISTANT:⟦ 2</s>⟧\nUSER: Three?\nASSISTANT:⟦ 3</s>⟧\n"),
        (templates.DATED, ONE, f"\nToday is 26 Jul 2024.\n{USER}Hi{END}\n{BOT}⟦Ho{END}⟧\n"),
    )
]  # fmt: skip


def learned(rendered) -> list[str]:
    return [rendered.text[answer.start : answer.stop] for answer in rendered.answers]


def test_an_answer_that_is_not_written_as_it_will_be_generated():
    """The prompt opens a thought that no written turn has, or has the end of a finished conversation."""
    opened, last_ends = chat_tokenizer(templates.OPENED), chat_tokenizer(templates.LAST_ENDS, eos="</s>")
    thought = turns(("u", "Two?"), ("a", "<think>\nhm\n</think>2"))
    assert [learned(one) for one in render_chat(thought, opened).texts] == [["hm\n</think>2</s>"]]
    with pytest.raises(
        RenderingError, match=r"turn 1: generation goes on from '.*Assistant:<think>\n', and the template"
    ):
        render_chat(TWO_ANSWERS, opened)
    written = render_chat(ONE, last_ends, mismatch="compose")
    assert [one.text for one in written.texts] == ["USER: Hi</s> Ho</s>"] and written.notes == (COMPOSED,)
    with pytest.raises(RenderingError, match=r"opens a thought \(<think>\) which the answer does not close"):
        render_chat(TWO_ANSWERS, opened, mismatch="compose")
    (kept,) = render_chat(TWO_ANSWERS, opened, mismatch="keep").texts
    assert kept.text == "<s>User:Two?Assistant:2</s>User:Three?Assistant:3</s>" and learned(kept) == ["2</s>", "3</s>"]
    with pytest.raises(RenderingError, match=r"generation goes on from 'USER: Two\?</s>'"):
        render_chat(TWO_ANSWERS, last_ends)


def test_a_template_without_an_end_of_a_turn():
    """Earlier answers end with the end-of-text token, too, in texts of their own."""
    endless = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    written = render_chat(TWO_ANSWERS, chat_tokenizer(endless, eos="</s>"))
    assert [one.text for one in written.texts] == [
        "user: Two?\nassistant: 2</s>", "user: Two?\nassistant: 2\nuser: Three?\nassistant: 3</s>",
    ]  # fmt: skip
    assert [learned(one) for one in written.texts] == [[" 2</s>"], [" 3</s>"]]
    assert written.notes == (ADDED_END, APART, ADDED_END)
    with pytest.raises(RenderingError, match="no end of a turn, and the tokenizer names no end-of-text token"):
        render_chat(ONE, chat_tokenizer(endless, eos=None))


def test_what_a_template_leaves_out():
    without_system = "{% for m in messages if m.role != 'system' %}" + templates.CHATML.partition("%}")[2]
    with pytest.raises(RenderingError, match="the template leaves out turn 0, the system's"):
        render_chat(TWO, chat_tokenizer(without_system))
    with pytest.raises(RenderingError, match="chat_template_kwargs: tokenize: not for the template"):
        render_chat(ONE, chat_tokenizer(), {"tokenize": True})


def test_plain():
    (rendered,) = render_plain(ONE, "</s>").texts
    assert rendered.text == "Hi\n\nHo</s>" and rendered.answers == ((4, 4, 6, 10),)
    (rendered,) = render_plain(SHOT, "</s>").texts
    assert rendered.text == "1?\n\none</s>2?\n\ntwo</s>" and learned(rendered) == ["two</s>"]
    with pytest.raises(RenderingError, match="turn 1 has tool_calls, which the plain template cannot write"):
        render_plain((ONE[0], Message("assistant", "", True, {"tool_calls": [{}]})), "</s>")
    with pytest.raises(RenderingError, match="it has tools, which the plain template cannot write"):
        render_plain(ONE, "</s>", {"tools": [{}]})
