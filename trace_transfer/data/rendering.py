"""Conversations → texts, and where in them the answers stand: by the model's chat template, or a plain one.

The plain template puts the contents of all turns one after the other, no roles said, with a blank line between them and
the end-of-text token behind each answer:

    {system}\\n\\n{prompt}\\n\\n{answer}{eos}            further turns follow directly after {eos}

Training sees what generation gives: an answer starts where its generation prompt ends, and stops with its turn.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_transfer.data.records import Message
from trace_transfer.data.tasks_file import TaskError
from trace_transfer.printable import printable

if TYPE_CHECKING:
    from trace_transfer.data.examples import TaskData

THOUGHT, THOUGHT_ENDS = "<think>", "</think>"
# Keys of a message whose loss would change what is learned, so that a template must write them.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
DECISIVE = ("tool_calls", "function_call", "name", "refusal")
MARK = "mark8d1f6b0c52e7"  # stands for the text of a turn, to see where a template writes it
# Some templates write today's date into the system message: tomorrow the same data would be other data. This is the
# date that Llama 3's template falls back to, 26 July 2024, in the parts that templates ask for.
_DATE = {"%d": "26", "%b": "Jul", "%B": "July", "%Y": "2024", "%m": "07", "%y": "24", "%A": "Friday", "%a": "Fri"}
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{part}', '{text}')" for part, text in _DATE.items())
    + " }}{% endmacro +%}"
)
APART = "answers that are examples of their own, because the template writes them differently in a longer conversation"
ADDED_END = "answers that end with the tokenizer's end-of-text token, because the template writes no end of a turn"
COMPOSED = "answers that follow the prompt of generation, because the template writes them differently elsewhere"
TRIMMED = "answers whose white space the template changes"
LONGEST = 240  # characters of a piece that are shown, half from either end


class RenderingError(TaskError):
    """The template cannot write this conversation, or not as it will be generated."""


class Answer(NamedTuple):
    """Where an answer stands, in characters of its text, ends exclusive."""

    start: int  # where the prompt of its generation ends
    content: int  # where its own text begins: behind what the template puts first, such as an empty thought
    end: int  # where the end of the turn begins
    stop: int  # where that ends


@dataclass(frozen=True)
class Rendered:
    """A text, and the answers in it in ascending order."""

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Prompt:
    """What an answer is generated from, and what the template puts around its own text."""

    text: str  # up to where the model goes on
    before: str  # the template's own before the answer, such as the end of an empty thought
    end: str  # of the turn, up to the first token that can end one, without white space behind it; may be empty
    behind: str  # `end`, and what else stands behind the last turn, such as an end of text that is never generated


@dataclass(frozen=True)
class Written:
    """A conversation as texts: the whole, with answers that stand in it as they will be generated, and the others."""

    texts: tuple[Rendered, ...]
    notes: tuple[str, ...] = ()


# ---- the plain template


def render_plain(messages: Sequence[Message], eos: str, context: Mapping[str, Any] | None = None) -> Written:
    """Write a conversation by the plain template; a RenderingError if only a chat template can write it."""
    if context:
        raise RenderingError(f"it has {', '.join(context)}, which the plain template cannot write")
    text, answers = "", []
    for place, message in enumerate(messages):
        if (lost := sorted(set(message.more) & {*DECISIVE, *THOUGHTS})) or message.role == "tool":
            what = ", ".join(lost) or "a turn of a tool"
            raise RenderingError(f"turn {place} has {what}, which the plain template cannot write")
        if place and messages[place - 1].role != "assistant":
            text += "\n\n"
        start = len(text)
        text += message.content + (eos if message.role == "assistant" else "")
        if message.is_answer:
            answers.append(Answer(start, start, len(text) - len(eos), len(text)))
    notes = [_unwritten(key) for key in dict.fromkeys(key for message in messages for key in message.more)]
    return Written((Rendered(text, tuple(answers)),), tuple(notes))


def plain_prompt(messages: Sequence[Message], eos: str) -> Prompt:
    """What an answer after these turns is generated from, by the plain template."""
    (whole,) = render_plain([*messages, Message("assistant", "", True)], eos).texts
    return Prompt(whole.text[: whole.answers[-1].start], "", eos, eos)


# ---- chat templates


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, with what it is given beside the messages."""

    tokenizer: Any
    context: Mapping[str, Any]

    def write(self, messages: Sequence[Message], *, with_prompt: bool = False) -> str:
        """The text of a conversation; a RenderingError if the template refuses it."""
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

    def marked(self, messages: Sequence[Message], place: int) -> tuple[str, str, str]:
        """What is written before the text of a turn, a mark in its place (empty if it is not written), and behind."""
        marked = [*messages[:place], replace(messages[place], content=MARK), *messages[place + 1 :]]
        return self.write(marked).partition(MARK)

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """What an answer after these turns is generated from: what stands before one if the template has no prompt."""
        before, found, behind = self.marked([*messages, Message("assistant", "")], len(messages))
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

    def finished(self, text: str, start: int, content: int, notes: tuple[str, ...]) -> Written:
        """A text that ends with an answer as a text does, where the template writes no end of a turn."""
        eos = self.tokenizer.eos_token
        if eos is None:
            raise RenderingError("the template writes no end of a turn, and the tokenizer names no end-of-text token")
        answer = Answer(start, content, len(text), len(text + eos))
        return Written((Rendered(text + eos, (answer,)),), (*notes, ADDED_END))


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
    return _FIXED_DATE + template if "strftime_now" in template else template


def render_chat(
    messages: Sequence[Message], tokenizer: Any, context: Mapping[str, Any] | None = None, mismatch: str = "refuse"
) -> Written:
    """Write a conversation by the tokenizer's chat template, which is given `context` beside the messages.

    An answer of an earlier turn stands in the whole text if that goes on as if the conversation ended there. Where it
    does not (earlier thoughts are left out, the system message moves to the last turn), it gets a text of its own.

    A RenderingError if the template refuses the conversation, leaves something of it out, or (with the mismatch
    `refuse`, see `TaskSpec`) writes an answer otherwise than it will be generated."""
    template = ChatTemplate(tokenizer, context or {})
    whole = template.write(messages)
    notes = _require_keys(template, messages, whole)
    inside, apart = [], []
    for place, message in enumerate(messages):
        if not message.is_answer:
            continue
        try:
            written = _own(template, messages[: place + 1])
        except RenderingError as problem:
            if mismatch == "refuse":
                raise RenderingError(f"turn {place}: {problem}") from None
            if mismatch == "keep":
                inside.append(_by_mark(template, messages, place, whole))
                continue
            written = _composed(template, messages[: place + 1])
        notes += written.notes
        (own,) = written.texts
        so_far = whole[: inside[-1].stop] if inside else ""  # the last turn may be written anew behind it
        if place == len(messages) - 1 and own.text.startswith(so_far):
            whole = whole if whole.startswith(own.text[: own.answers[0].stop]) else own.text
        if whole.startswith(own.text[: own.answers[0].stop]):
            inside += own.answers
        elif mismatch == "keep":
            inside.append(_by_mark(template, messages, place, whole))
        else:
            apart.append(own)
            notes.append(APART)
    return Written((*apart, Rendered(whole, tuple(inside))) if inside else tuple(apart), tuple(notes))


def _own(template: ChatTemplate, messages: Sequence[Message]) -> Written:
    """The last turn as the template writes it at the end of a conversation."""
    *context, message = messages
    prompt, text = template.prompt(context), template.write(messages)
    if not text.startswith(prompt.text):
        place = len(commonprefix([text, prompt.text]))  # noqa: RUF071, it is no path
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
    start, written, wanted = len(prompt.text), text[len(prompt.text) :], message.content.strip()
    opened = THOUGHT if prompt.text.rstrip().endswith(THOUGHT) else ""
    if _squeezed(wanted) not in _squeezed(opened + written):
        raise RenderingError(
            f"the template writes {_tail(written)} of the answer {_tail(wanted)} (mismatch: compose trains it as "
            "it stands in the data)"
        )
    notes = () if message.content in written else (TRIMMED,)
    stop = len(text.rstrip())
    content = start + len(prompt.before) * written.startswith(prompt.before)
    if not prompt.end:
        return template.finished(text[: max(stop, start)], start, content, notes)
    answer = Answer(start, content, stop, stop)
    if text[:stop].endswith(prompt.behind):  # calls of tools may end otherwise
        end = max(stop - len(prompt.behind), content)
        answer = Answer(start, content, end, end + len(prompt.end))
    return Written((Rendered(text, (answer,)),), notes)


def _composed(template: ChatTemplate, messages: Sequence[Message]) -> Written:
    """The prompt of generation, the answer as it stands in the data, and the end of its turn."""
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
    text, content = prompt.text + space + answer, start + len(space)
    _require_turns(template, messages, text)
    if not prompt.end:
        return template.finished(text, start, content, ())
    composed = Rendered(text + prompt.end, (Answer(start, content, len(text), len(text + prompt.end)),))
    return Written((composed,), (COMPOSED,))


def _by_mark(template: ChatTemplate, messages: Sequence[Message], place: int, whole: str) -> Answer:
    """Where an answer stands in what the template writes, whatever would be generated."""
    before, found, behind = template.marked(messages, place)
    if not found or MARK in behind or not (whole.startswith(before) and whole.endswith(behind)):
        raise RenderingError(f"the answer of turn {place} is not found in what the template writes")
    start, end = len(before), len(whole) - len(behind)
    ending = template.marked(messages[: place + 1], place)[2]
    same = commonprefix([ending, behind])  # noqa: RUF071
    return Answer(start, start, end, end + len(same.rstrip()))


def _require_turns(template: ChatTemplate, messages: Sequence[Message], text: str) -> None:
    """Refuse a text without one of the turns that an answer follows; the assistant's may lose their thoughts."""
    squeezed = _squeezed(text)
    for place, message in enumerate(messages):
        is_there = message.role == "assistant" or _squeezed(message.content) in squeezed
        if not is_there and not template.marked(messages, place)[1]:
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
            notes.append(_unwritten(key))
    if "tools" in template.context:
        others = {name: value for name, value in template.context.items() if name != "tools"}
        if ChatTemplate(template.tokenizer, others).write(messages) == whole:
            raise RenderingError("the template does not write tools (ignore: [tools] leaves them out)")
    return notes


def _is_written(template: ChatTemplate, messages: Sequence[Message], place: int, key: str, whole: str) -> bool:
    """Whether a key of a message changes what the template writes, at the end of a conversation at least."""
    without = _without(messages[place], key)
    try:
        if template.write([*messages[:place], without, *messages[place + 1 :]]) != whole:
            return True
        return template.write([*messages[:place], without]) != template.write(messages[: place + 1])
    except RenderingError:  # the template asks for it
        return True


def chat_prompt(messages: Sequence[Message], tokenizer: Any, context: Mapping[str, Any]) -> tuple[Prompt, list[str]]:
    """What an answer after these turns is generated from, by the tokenizer's chat template, and notes; raises as
    `render_chat`."""
    template = ChatTemplate(tokenizer, context)
    prompt = template.prompt(messages)
    _require_turns(template, messages, prompt.text)
    if not context and not any(message.more for message in messages):
        return prompt, []
    finished = [*messages, Message("assistant", "So.")]
    return prompt, _require_keys(template, finished, template.write(finished))


def _without(message: Message, key: str) -> Message:
    return replace(message, more={name: value for name, value in message.more.items() if name != key})


def _unwritten(key: str) -> str:
    return f"conversations with the key '{key}' in messages, which the template does not write"


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _tail(text: str) -> str:
    return f"'…{text[-40:]}'" if len(text) > 40 else f"'{text}'"


# ---- for a plan: texts as the model reads them, with what is learned between brackets


def example_lines(tasks: Iterable[TaskData]) -> list[str]:
    """Of each task its first example, and what was left out of its data or is otherwise than it looks."""
    lines = []
    for task in tasks:
        if task.shown:
            lines += ["", *pieces_lines(f"{task.examples[0].id} as the model reads it", task.shown, "what is learned")]
            lines += [f"! {task.task}: {note}" for note in task.notes]
    return lines


def pieces_lines(heading: str, pieces: Iterable[tuple[str, bool]], marked: str) -> list[str]:
    """A text in pieces below a heading; `marked` says what those between brackets are."""
    text = "".join(f"⟦{visible(one)}⟧" if is_marked else visible(one) for one, is_marked in pieces)
    lines = [f"  {line}" for line in text.replace("⏎", "⏎\n").split("\n") if line]
    return [f"{heading}; ⟦{marked}⟧, ⏎ a line break:", *lines]


def visible(text: str) -> str:
    """A text on one line without what a terminal would obey, its middle left out where it is long."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} […] {text[-LONGEST // 2 :]}"
    return printable(text).replace("\n", "⏎")
