"""Conversations → texts, and where in them the answers stand: by the model's chat template, or a plain one.

The plain template puts the contents of all turns one after the other, no roles said, with a blank line between them and
the end-of-text token behind each answer:

    {system}\\n\\n{prompt}\\n\\n{answer}{eos}            further turns follow directly after {eos}

Training sees what generation gives: an answer starts where its generation prompt ends, has what the template makes the
model say first, and stops with the end of its turn.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from trace_transfer.data.records import Message
from trace_transfer.data.tasks_file import TaskError

Mismatch = Literal["refuse", "compose", "keep"]
THOUGHT, THOUGHT_ENDS = "<think>", "</think>"
# Keys of a message whose loss would change what is learned, so that a template must write them.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
DECISIVE = ("tool_calls", "function_call", "name", "refusal")
# Some templates write today's date into the system message: tomorrow the same data would be other data. This is the
# date that Llama 3's template falls back to, 26 July 2024, in the parts that templates ask for.
_DATE = {"%d": "26", "%b": "Jul", "%B": "July", "%Y": "2024", "%m": "07", "%y": "24", "%A": "Friday", "%a": "Fri"}
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{part}', '{text}')" for part, text in _DATE.items())
    + " }}{% endmacro +%}"
)


class RenderingError(TaskError):
    """The template cannot write this conversation, or not as it will be generated."""


class Answer(NamedTuple):
    """Where an answer stands, in characters of its text, ends exclusive.

    Attributes:
        start: where the prompt of its generation ends.
        content: where its own text begins: behind what the template puts first, such as an empty thought.
        end: where the end of the turn begins.
        stop: where that ends.
    """

    start: int
    content: int
    end: int
    stop: int


@dataclass(frozen=True)
class Rendered:
    """A text, and the answers in it in ascending order."""

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Prompt:
    """What an answer is generated from, what the template puts before its own text, and the end of its turn.

    Attributes:
        text: up to where the model goes on.
        before: the template's own, less than all of what is generated, such as the end of an empty thought.
        end: of the turn, up to the first token that can end one, without the white space behind it; empty where the
            template writes none.
        behind: `end`, and what else stands behind the last turn, such as an end of text that is never generated.
    """

    text: str
    before: str
    end: str
    behind: str


@dataclass(frozen=True)
class Written:
    """A conversation as texts: the whole, with all answers that stand in it as they will be generated, and the others.

    Attributes:
        notes: what is to be told of it.
    """

    texts: tuple[Rendered, ...]
    notes: tuple[str, ...]


def render_plain(messages: Sequence[Message], eos: str, context: Mapping[str, Any] | None = None) -> Written:
    """Write a conversation by the plain template.

    Raises:
        RenderingError: it has something that only a chat template can write.
    """
    if context:
        raise RenderingError(f"it has {', '.join(context)}, which the plain template cannot write")
    notes = [unwritten(key) for key in dict.fromkeys(key for message in messages for key in message.more)]
    text, answers = "", []
    for place, message in enumerate(messages):
        if (lost := sorted(set(message.more) & {*DECISIVE, *THOUGHTS})) or message.role == "tool":
            what = ", ".join(lost) or "a turn of a tool"
            raise RenderingError(f"turn {place} has {what}, which the plain template cannot write")
        if place and messages[place - 1].role != "assistant":
            text += "\n\n"
        start = len(text)
        text += message.content
        if message.role == "assistant":
            text += eos
        if message.is_answer:
            answers.append(Answer(start, start, len(text) - len(eos), len(text)))
    return Written((Rendered(text, tuple(answers)),), tuple(notes))


def plain_prompt(messages: Sequence[Message], eos: str) -> Prompt:
    """What an answer after these turns is generated from, by the plain template."""
    (whole,) = render_plain([*messages, Message("assistant", "", True)], eos).texts
    return Prompt(whole.text[: whole.answers[-1].start], "", eos, eos)


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, with what it is given beside the messages."""

    tokenizer: Any
    context: Mapping[str, Any]

    def write(self, messages: Sequence[Message], *, with_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            RenderingError: the template refuses it.
        """
        turns = [{"role": message.role, "content": message.content, **message.more} for message in messages]
        call = self.tokenizer.apply_chat_template
        if taken := sorted(set(self.context) & set(inspect.signature(call).parameters) - {"tools", "documents"}):
            raise RenderingError(f"chat_template_kwargs: {', '.join(taken)}: not for the template")
        try:
            template = with_fixed_date(self.tokenizer.get_chat_template(tools=self.context.get("tools")))
            text: str = call(
                turns, chat_template=template, tokenize=False, add_generation_prompt=with_prompt, **self.context
            )
            return text
        except Exception as error:  # a template is a program: it raises what it likes
            raise RenderingError(" ".join(str(error).split()) or type(error).__name__) from error

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """What an answer after these turns is generated from.

        Where the template has no prompt for an answer, it is what stands before one, with a header if it has one.

        Raises:
            RenderingError: the template refuses the conversation, or does not write an answer.
        """
        mark = "answer" + hashlib.sha256(repr(messages).encode()).hexdigest()
        before, found, behind = self.write([*messages, Message("assistant", mark)]).partition(mark)
        if not found:
            raise RenderingError("the template does not write an answer as it stands")
        ends = _turn_end(self.tokenizer, behind.rstrip()), behind.rstrip()
        try:
            bare, prompt = self.write(messages), self.write(messages, with_prompt=True)
        except RenderingError:  # a template may refuse a conversation that stops there
            bare, prompt = "", ""
        if prompt == bare and before.startswith(prompt) and before[len(prompt) :].strip():
            prompt = before.rstrip(" ")
        space = before[len(before.rstrip()) :] if prompt == prompt.rstrip() else ""
        return Prompt(prompt, before[len(prompt) :] if before.startswith(prompt) else space, *ends)


@lru_cache(maxsize=64)
def _turn_end(tokenizer: Any, behind: str) -> str:
    """Up to the first token of its own, special or only added: generation stops there."""
    read = tokenizer(behind, add_special_tokens=False, return_offsets_mapping=True)
    added = set(tokenizer.added_tokens_decoder) if behind else set()
    for token, (begin, end) in zip(read["input_ids"], read["offset_mapping"], strict=True):
        if token in added and behind[begin:end].strip():
            return behind[:end].rstrip()
    return behind


def with_fixed_date(template: str) -> str:
    """A template in which it is always the same day."""
    return _FIXED_DATE + template if "strftime_now" in template else template


@dataclass(frozen=True)
class _Own:
    """An answer in a text that ends with it."""

    text: str
    answer: Answer
    notes: tuple[str, ...] = ()


APART = "answers made examples of their own, as the template writes them otherwise once the conversation goes on"
ADDED_END = "answers ended with the tokenizer's end-of-text token, as the template writes no end of a turn"
COMPOSED = "answers composed behind the prompt of generation, as the template writes them otherwise"
TRIMMED = "answers of which the template changes the white space"


def render_chat(
    messages: Sequence[Message], tokenizer: Any, context: Mapping[str, Any] | None = None,
    mismatch: Mismatch = "refuse",
) -> Written:  # fmt: skip
    """Write a conversation by the tokenizer's chat template.

    An answer of an earlier turn stands in the whole text if that goes on as if the conversation ended there. Where it
    does not (earlier thoughts are left out, the system message moves to the last turn), it gets a text of its own.

    Args:
        context: what the template is given beside the messages.
        mismatch: what becomes of an answer that is not written as it will be generated; see `TaskSpec`.

    Raises:
        RenderingError: the template refuses the conversation, leaves something of it out, or (with `refuse`) writes an
            answer otherwise than it will be generated.
    """
    template = ChatTemplate(tokenizer, context or {})
    whole = template.write(messages)
    notes = _require_keys(template, messages, whole)
    inside, apart = [], []
    for place, message in enumerate(messages):
        if not message.is_answer:
            continue
        try:
            own = _own(template, messages[: place + 1])
        except RenderingError as problem:
            if mismatch == "refuse":
                raise RenderingError(f"turn {place}: {problem}") from None
            if mismatch == "keep":
                inside.append(_by_mark(template, messages, place, whole))
                continue
            own = _composed(template, messages[: place + 1])
        notes += own.notes
        so_far = whole[: inside[-1].stop] if inside else ""  # the last turn may be written anew behind it
        if whole.startswith(own.text[: own.answer.stop]):
            inside.append(own.answer)
        elif place == len(messages) - 1 and own.text.startswith(so_far):
            inside.append(own.answer)
            whole = own.text
        elif mismatch == "keep":
            inside.append(_by_mark(template, messages, place, whole))
        else:
            apart.append(Rendered(own.text, (own.answer,)))
            notes.append(APART)
    texts = [*apart, Rendered(whole, tuple(inside))] if inside else apart
    return Written(tuple(texts), tuple(notes))


def _own(template: ChatTemplate, messages: Sequence[Message]) -> _Own:
    """The last turn as the template writes it at the end of a conversation.

    Raises:
        RenderingError: the prompt of generation is not what stands before it, or not all of the answer is written.
    """
    *context, message = messages
    prompt, text = template.prompt(context), template.write(messages)
    if not text.startswith(prompt.text):
        place = next((at for at, (a, b) in enumerate(zip(text, prompt.text, strict=False)) if a != b), len(text))
        raise RenderingError(
            f"generation goes on from {_tail(prompt.text)}, and the template writes {_tail(text[: place + 40])} "
            "(mismatch: compose trains the answer behind the prompt of generation)"
        )
    _require_turns(template, messages, text)
    for key in (key for key in message.more if key in THOUGHTS):
        if not _is_written(template, messages, len(context), key, text):
            raise RenderingError(
                f"the template does not write {key} (ignore: [{key}] leaves it out; mismatch: compose writes it "
                f"between {THOUGHT} and {THOUGHT_ENDS})"
            )
    start, content = len(prompt.text), len(prompt.text) + len(prompt.before)
    written, wanted = text[start:], message.content.strip()
    if wanted not in written:
        opened = prompt.text.rstrip()[-len(THOUGHT) :] if prompt.text.rstrip().endswith(THOUGHT) else ""
        if _squeezed(wanted) not in _squeezed(opened + written):
            raise RenderingError(
                f"the template writes {_tail(written)} of the answer {_tail(wanted)} (mismatch: compose trains it as "
                "it stands in the data)"
            )
    notes = (TRIMMED,) if message.content not in written else ()
    stop = len(text.rstrip())
    content = content if text[start:].startswith(prompt.before) else start
    if not prompt.end:
        own = _with_eos(template, text[: max(stop, start)], start, content)
        return replace(own, notes=(*notes, *own.notes))
    if text[:stop].endswith(prompt.behind):  # calls of tools may end otherwise
        end = max(stop - len(prompt.behind), content)
        return _Own(text, Answer(start, content, end, end + len(prompt.end)), notes)
    return _Own(text, Answer(start, content, stop, stop), notes)


def _composed(template: ChatTemplate, messages: Sequence[Message]) -> _Own:
    """The prompt of generation, the answer as it stands in the data, and the end of its turn.

    Raises:
        RenderingError: the prompt opens a thought that the answer does not close, or the answer has more than text.
    """
    *context, message = messages
    prompt, answer = template.prompt(context), message.content.strip()
    thoughts = [str(message.more[key]) for key in THOUGHTS if key in message.more]
    if others := sorted(set(message.more) & set(DECISIVE)):
        raise RenderingError(f"turn {len(context)}: {', '.join(others)} cannot be composed, but by the template alone")
    if thoughts and THOUGHT_ENDS not in answer:
        answer = f"{THOUGHT}\n{thoughts[0].strip()}\n{THOUGHT_ENDS}\n\n{answer}"
    if prompt.text.rstrip().endswith(THOUGHT):
        if THOUGHT_ENDS not in answer:
            raise RenderingError(
                f"turn {len(context)}: the prompt of generation opens a thought ({THOUGHT}) which the answer does not "
                f"close ({THOUGHT_ENDS}); mismatch: keep trains what the template writes"
            )
        answer = answer.removeprefix(THOUGHT).lstrip("\n")
    start = len(prompt.text)
    space = prompt.before if prompt.before.isspace() else ""
    content = start + len(space)
    text = prompt.text + space + answer
    _require_turns(template, messages, text)
    if not prompt.end:
        return _with_eos(template, text, start, content)
    return _Own(text + prompt.end, Answer(start, content, len(text), len(text + prompt.end)), (COMPOSED,))


def _with_eos(template: ChatTemplate, text: str, start: int, content: int) -> _Own:
    """Where the template writes no end of a turn, an answer ends as a text does."""
    eos = template.tokenizer.eos_token
    if eos is None:
        raise RenderingError("the template writes no end of a turn, and the tokenizer names no end-of-text token")
    return _Own(text + eos, Answer(start, content, len(text), len(text + eos)), (ADDED_END,))


def _by_mark(template: ChatTemplate, messages: Sequence[Message], place: int, whole: str) -> Answer:
    """Where an answer stands in what the template writes, whatever would be generated."""
    mark = "answer" + hashlib.sha256(whole.encode()).hexdigest()
    marked = [*messages[:place], replace(messages[place], content=mark), *messages[place + 1 :]]
    before, found, behind = template.write(marked).partition(mark)
    if not found or mark in behind or not (whole.startswith(before) and whole.endswith(behind)):
        raise RenderingError(f"the answer of turn {place} is not found in what the template writes")
    start, end = len(before), len(whole) - len(behind)
    ending = template.write(marked[: place + 1]).partition(mark)[2]
    stop = end + len(_common_beginning(ending, behind).rstrip())
    return Answer(start, start, end, stop)


def _require_turns(template: ChatTemplate, messages: Sequence[Message], text: str) -> None:
    """Refuse a text without one of the turns that an answer follows; the assistant's may lose their thoughts."""
    squeezed = _squeezed(text)
    for place, message in enumerate(messages):
        if message.role != "assistant" and _squeezed(message.content) not in squeezed:
            mark = "turn" + hashlib.sha256(text.encode()).hexdigest()
            marked = [*messages[:place], replace(message, content=mark), *messages[place + 1 :]]
            if mark not in template.write(marked):
                raise RenderingError(f"the template leaves out turn {place}, the {message.role}'s")


def _require_keys(template: ChatTemplate, messages: Sequence[Message], whole: str) -> list[str]:
    """Refuse a template that leaves out a decisive key of a message, or tools; returns notes on the other keys."""
    notes = []
    for place, message in enumerate(messages):
        for key in (key for key in message.more if key in DECISIVE):
            if not _is_written(template, messages, place, key, whole):
                raise RenderingError(f"turn {place}: the template does not write {key} (ignore: [{key}] leaves it out)")
    told = [{key for key in m.more if key not in (*DECISIVE, *(THOUGHTS if m.is_answer else ()))} for m in messages]
    for key in sorted(set().union(*told)):
        without = [_without(one, key) if key in keys else one for one, keys in zip(messages, told, strict=True)]
        if template.write(without) == whole:
            notes.append(unwritten(key))
    for key in template.context:
        others = {name: value for name, value in template.context.items() if name != key}
        if key == "tools" and ChatTemplate(template.tokenizer, others).write(messages) == whole:
            raise RenderingError("the template does not write tools (ignore: [tools] leaves them out)")
    return notes


def _is_written(template: ChatTemplate, messages: Sequence[Message], place: int, key: str, whole: str) -> bool:
    """Whether a key of a message changes what the template writes, at the end of a conversation at least."""
    without = _without(messages[place], key)
    try:
        if template.write([*messages[:place], without, *messages[place + 1 :]]) != whole:
            return True
        until = [*messages[:place], without]
        return template.write(until) != template.write(messages[: place + 1])
    except RenderingError:  # the template asks for it
        return True


def require_prompt(template: ChatTemplate, messages: Sequence[Message], prompt: Prompt) -> list[str]:
    """Refuse a prompt that leaves out a turn, a decisive key of one, or tools; returns notes on the other keys."""
    _require_turns(template, messages, prompt.text)
    if not template.context and not any(message.more for message in messages):
        return []
    finished = [*messages, Message("assistant", "So.")]
    return _require_keys(template, finished, template.write(finished))


def _without(message: Message, key: str) -> Message:
    return replace(message, more={name: value for name, value in message.more.items() if name != key})


def unwritten(key: str) -> str:
    """A note on a key that changes nothing."""
    return f"conversations of which the template does not write the messages' key '{key}'"


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _tail(text: str) -> str:
    return f"'…{text[-40:]}'" if len(text) > 40 else f"'{text}'"


def _common_beginning(one: str, other: str) -> str:
    differing = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differing, min(len(one), len(other)))]
