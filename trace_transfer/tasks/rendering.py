"""Conversations → one text each, and where in it the answers stand: by the model's chat template, or a plain one.

The plain template puts the contents of all turns one after the other, no roles said, with a blank line between them and
the end-of-text token behind each answer:

    {system}\\n\\n{prompt}\\n\\n{answer}{eos}            further turns follow directly after {eos}

An answer's span goes from what the model must say first to the end of its turn, the end-of-turn text included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trace_transfer.tasks.records import Message
from trace_transfer.tasks.spec import TaskError

Span = tuple[int, int]
# Some templates write today's date into the system message: tomorrow the same data would be other data. This is the
# date that Llama 3's template falls back to, 26 July 2024, in the parts that templates ask for.
_DATE = {"%d": "26", "%b": "Jul", "%B": "July", "%Y": "2024", "%m": "07", "%y": "24", "%A": "Friday", "%a": "Fri"}
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{part}', '{text}')" for part, text in _DATE.items())
    + " }}{% endmacro +%}"
)


class RenderingError(TaskError):
    """The template cannot write this conversation, or an answer cannot be found in what it wrote."""


@dataclass(frozen=True)
class Rendered:
    """A conversation's text; `answers` are (start, end) of characters, ascending, the end exclusive."""

    text: str
    answers: tuple[Span, ...]


def render_plain(messages: Sequence[Message], eos: str) -> Rendered:
    """Write a conversation by the plain template."""
    text, answers = "", []
    for place, message in enumerate(messages):
        if place and messages[place - 1].role != "assistant":
            text += "\n\n"
        start = len(text)
        text += message.content + (eos if message.role == "assistant" else "")
        if message.is_answer:
            answers.append((start, len(text)))
    return Rendered(text, tuple(answers))


def render_chat(messages: Sequence[Message], tokenizer: Any) -> Rendered:
    """Write a conversation by the tokenizer's chat template.

    An answer starts where the template's prompt for it ends: with what the model must say by itself. Its end is that of
    the text written up to its turn, without the white space behind the end-of-turn text. Both must be beginnings of the
    whole text. Where they are not, because the template writes earlier turns in another way than the last one (leaves
    thinking out, say), and where it has no prompt for an answer, the answer is found by putting a mark in its place.

    Raises:
        RenderingError: the template refuses the conversation, or an answer is found in neither way.
    """
    whole = _apply(messages, tokenizer)
    answers = []
    for place, message in enumerate(messages):
        if message.is_answer:
            span = _by_beginnings(messages, place, whole, tokenizer) or _by_mark(messages, place, whole, tokenizer)
            if span is None:
                raise RenderingError(f"the answer of turn {place} is not found in what the template writes")
            answers.append(span)
    return Rendered(whole, tuple(answers))


def _apply(messages: Sequence[Message], tokenizer: Any, *, with_prompt: bool = False) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _FIXED_DATE + template
        text: str = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=with_prompt
        )
        return text
    except Exception as error:  # a template is a program: it raises what it likes
        raise RenderingError(" ".join(str(error).split()) or type(error).__name__) from error


def _by_beginnings(messages: Sequence[Message], place: int, whole: str, tokenizer: Any) -> Span | None:
    last = place == len(messages) - 1
    try:
        bare = _apply(messages[:place], tokenizer)
        prompt = _apply(messages[:place], tokenizer, with_prompt=True)
        until = whole if last else _apply(messages[: place + 1], tokenizer)
    except RenderingError:  # a template may refuse a conversation that stops there
        return None
    end = len(until.rstrip())
    if prompt == bare or not (whole.startswith(until) and until.startswith(prompt)) or len(prompt) >= end:
        return None
    return len(prompt), end


def _by_mark(messages: Sequence[Message], place: int, whole: str, tokenizer: Any) -> Span | None:
    mark = "answer" + hashlib.sha256(whole.encode()).hexdigest()
    marked = [*messages[:place], replace(messages[place], content=mark), *messages[place + 1 :]]
    before, found, behind = _apply(marked, tokenizer).partition(mark)
    if not found or mark in behind or not (whole.startswith(before) and whole.endswith(behind)):
        return None
    start, stop = len(before), len(whole) - len(behind)
    if start >= stop:
        return None
    try:
        ending = _apply(marked[: place + 1], tokenizer).partition(mark)[2]
    except RenderingError:
        ending = ""
    return start, stop + len(_common_beginning(ending, behind).rstrip())


def _common_beginning(one: str, other: str) -> str:
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differing, min(len(one), len(other)))]
