"""Conversations → token ids with the answers supervised: what training and Fisher information read.

A token is supervised if it ends inside an answer's span of characters: predicting it then completes some of the
answer, also where it begins with the white space before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trace_transfer.errors import listing
from trace_transfer.examples import IGNORED, Example, TaskData
from trace_transfer.tasks.records import Message, Record, Records, chosen, read_records
from trace_transfer.tasks.rendering import Rendered, RenderingError, Span, render_chat, render_plain
from trace_transfer.tasks.spec import TaskError, TaskSpec

TOO_LONG = ("cut", "leave-out")


def prepare_task(
    spec: TaskSpec,
    base_directory: Path | str,
    tokenizer: Any,
    *,
    max_length: int = 1024,
    too_long: str = "cut",
    seed: int = 0,
) -> TaskData:
    """Read a task's data and encode it: `read_records` and `encode_task` in one."""
    records = read_records(spec, base_directory, seed=seed)
    return encode_task(spec, records, tokenizer, max_length=max_length, too_long=too_long)


def encode_task(
    spec: TaskSpec, records: Records, tokenizer: Any, *, max_length: int = 1024, too_long: str = "cut"
) -> TaskData:
    """Encode a task's records.

    Args:
        tokenizer: a fast one (it knows character offsets).
        max_length: tokens, special ones included.
        too_long: `cut` longer examples on the right, or `leave-out`; both are counted.

    Raises:
        TaskError: no such template, a template that does not take the records, or no supervised token left in some
            examples (all named) or no example left at all.
    """
    if too_long not in TOO_LONG:
        raise TaskError(f"too_long: {too_long!r} is none of {', '.join(TOO_LONG)}")
    if max_length < 2:
        raise TaskError(f"max_length: {max_length} is not 2 or more: a token is predicted from those before it")
    template = _template(spec, tokenizer)
    rendered = _render(spec, records.records, tokenizer, template)
    encoded = _encode(spec, rendered, tokenizer, template)
    examples, num_cut, num_left_out = [], 0, 0
    for record, (ids, labels) in zip(records.records, encoded, strict=True):
        longer = len(ids) > max_length
        if longer and too_long == "leave-out":
            num_left_out += 1
            continue
        num_cut += longer
        examples.append(Example(f"{spec.name}:{record.number}", ids[:max_length], labels[:max_length]))
    if not examples:
        raise TaskError(
            f"{spec.label}: all {num_left_out} examples are longer than {max_length} tokens; raise --max-length"
        )
    _require_answers(spec, examples, max_length)
    return TaskData(spec.name, tuple(examples), records.num_records, num_cut, num_left_out, template, _sha256(examples))


def halves(data: TaskData, seed: int) -> tuple[TaskData, TaskData]:
    """Two random halves without a common example, each in the order of the data; the second has the odd one.

    Counts (records, cut, left out) stay those of the whole.

    Raises:
        TaskError: fewer than two examples.
    """
    if len(data.examples) < 2:
        raise TaskError(f"task {data.task}: {len(data.examples)} example, at least 2 are needed for two halves")
    first = set(chosen((example.id for example in data.examples), len(data.examples) // 2, f"{seed}/half"))
    parts = (tuple(example for example in data.examples if (example.id in first) == wanted) for wanted in (True, False))
    one, other = (replace(data, examples=part, sha256=_sha256(part)) for part in parts)
    return one, other


def _template(spec: TaskSpec, tokenizer: Any) -> str:
    """`chat` or `plain`, whichever the task asks for and the tokenizer has."""
    has_chat = bool(tokenizer.chat_template)
    if spec.template == "chat" and not has_chat:
        raise TaskError(
            f"{spec.label}: template: chat, but the model's tokenizer has no chat template; use auto or plain"
        )
    if spec.template != "plain" and has_chat:
        return "chat"
    if tokenizer.eos_token is None:
        raise TaskError(
            f"{spec.label}: the model's tokenizer names no end-of-text token, with which the plain template ends each "
            "answer; set eos_token in its tokenizer_config.json"
        )
    return "plain"


def _render(spec: TaskSpec, records: Sequence[Record], tokenizer: Any, template: str) -> list[Rendered]:
    rendered, problems = [], []
    for record in records:
        messages = record.messages
        if spec.system is not None and all(message.role != "system" for message in messages):
            messages = (Message("system", spec.system), *messages)
        try:
            chat = template == "chat"
            rendered.append(render_chat(messages, tokenizer) if chat else render_plain(messages, tokenizer.eos_token))
        except RenderingError as problem:
            problems.append(f"{spec.name}:{record.number}: {problem}")
    if problems:
        raise TaskError(
            f"{spec.label}: the model's chat template does not take {len(problems)} of {len(records)} examples; change "
            "their turns, or use template: plain:\n" + listing(problems)
        )
    return rendered


@dataclass(frozen=True)
class _Tokens:
    """Ids of a text and the character at which each token ends."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]


def _encode(
    spec: TaskSpec, rendered: Sequence[Rendered], tokenizer: Any, template: str
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(ids, labels) of each text. A chat template has written all special tokens, so that none are added to it."""
    encodings = tokenizer(
        [one.text for one in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no advice about the model's maximal length: cutting comes after this
    )
    prefix = _leading_special_ids(tokenizer) if template == "plain" else ()
    results = []
    for one, ids, offsets in zip(rendered, encodings["input_ids"], encodings["offset_mapping"], strict=True):
        tokens = _Tokens(tuple(ids), tuple(end for _, end in offsets))
        if template == "plain":
            _require_eos(spec, tokens, one.answers, tokenizer)
        labels = tuple(
            token if any(start < end <= stop for start, stop in one.answers) else IGNORED
            for token, end in zip(tokens.ids, tokens.ends, strict=True)
        )
        results.append(((*prefix, *tokens.ids), (*(IGNORED for _ in prefix), *labels)))
    return results


def _leading_special_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before every text. What it puts behind one is left to the template."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def _require_eos(spec: TaskSpec, tokens: _Tokens, answers: Iterable[Span], tokenizer: Any) -> None:
    """Each answer must end with the one end-of-text token, not with its letters."""
    at = dict(zip(tokens.ends, tokens.ids, strict=True))
    if any(at.get(stop) != tokenizer.eos_token_id for _, stop in answers):
        raise TaskError(
            f"{spec.label}: the tokenizer does not read its end-of-text token {tokenizer.eos_token!r} as one token; "
            "its files do not fit together"
        )


def _require_answers(spec: TaskSpec, examples: Sequence[Example], max_length: int) -> None:
    if without := [example.id for example in examples if example.num_supervised == 0]:
        raise TaskError(
            f"{spec.label}: no token of the answer is left in {len(without)} of {len(examples)} examples, of which at "
            f"most {max_length} tokens are read; raise --max-length or use --too-long leave-out:\n" + listing(without)
        )


def _sha256(examples: Iterable[Example]) -> str:
    """Of ids and labels alone: the same data under another name is the same data."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.input_ids, example.labels]).encode() + b"\n")
    return digest.hexdigest()
