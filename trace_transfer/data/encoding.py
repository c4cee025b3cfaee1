"""Conversations → token ids with the answers supervised: what training and Fisher information read.

A token is supervised if any of an answer's characters are in it, the end of the turn included: predicting it then
completes some of the answer. `encode_prompts` reads the prompts of generation in the same way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from trace_transfer.data.examples import IGNORED, Example, TaskData
from trace_transfer.data.records import Message, Record, Records, chosen, read_records
from trace_transfer.data.rendering import (
    Answer,
    ChatTemplate,
    Rendered,
    RenderingError,
    plain_prompt,
    render_chat,
    render_plain,
    require_prompt,
)
from trace_transfer.data.tasks_file import TaskError, TaskSpec, load_tasks
from trace_transfer.errors import UserError, listing
from trace_transfer.families.model_handle import OpenModel, load_tokenizer, require_vocabulary

TOO_LONG = ("cut", "leave-out")
SPECIAL = "conversations in which a text holds a special token, and is read as that token"
PARTED = "examples read in two parts, as a token would reach from the prompt into the answer"


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


def read_tasks(base: OpenModel, tasks: str | Path, max_length: int, too_long: str, seed: int) -> tuple[TaskData, ...]:
    """All tasks of a `tasks.yaml`, encoded for a model; raises as `encode_tasks`."""
    return encode_tasks(base, load_tasks(tasks), Path(tasks).parent, max_length, too_long, seed)


def encode_tasks(
    base: OpenModel, specs: Sequence[TaskSpec], directory: Path, max_length: int, too_long: str, seed: int
) -> tuple[TaskData, ...]:
    """Tasks encoded for a model; their data lie relative to a directory.

    Raises:
        TaskError: the file, its data or an example cannot be used.
        ModelError: the tokenizer belongs to another model.
        UserError: examples longer than the model can read.
    """
    tokenizer = load_tokenizer(base.source)
    data = tuple(
        prepare_task(spec, directory, tokenizer, max_length=max_length, too_long=too_long, seed=seed) for spec in specs
    )
    config = base.config.get_text_config()
    texts = (example.input_ids for task in data for example in task.examples)
    require_vocabulary(base.source.name, texts, config)
    positions = getattr(config, "max_position_embeddings", None)
    longest = {task.task: max(len(example.input_ids) for example in task.examples) for task in data}
    if positions and (beyond := [f"{task}: {length} tokens" for task, length in longest.items() if length > positions]):
        raise UserError(
            f"examples that are longer than the {positions} tokens which {base.name} was made for; give --max-length "
            f"{positions}:\n" + listing(beyond)
        )
    return data


def encode_task(
    spec: TaskSpec, records: Records, tokenizer: Any, *, max_length: int = 1024, too_long: str = "cut"
) -> TaskData:
    """Encode a task's records.

    Args:
        tokenizer: a fast one (it knows character offsets).
        max_length: tokens, special ones included.
        too_long: `cut` longer examples on the right, or `leave-out`; both are counted.

    Raises:
        TaskError: no such template, a template that does not take the records or writes them otherwise than they will
            be generated, or no supervised token left in some examples (all named) or no example left at all.
    """
    if too_long not in TOO_LONG:
        raise TaskError(f"too_long: {too_long!r} is none of {', '.join(TOO_LONG)}")
    if max_length < 2:
        raise TaskError(f"max_length: {max_length} is not 2 or more: a token is predicted from those before it")
    template = template_of(spec, tokenizer)
    rendered, counts = _render(spec, records.records, tokenizer, template)
    encoded, num_parted = _encode(spec, [text for _, text in rendered], tokenizer, template)
    counts[PARTED] += num_parted
    examples, num_cut, num_left_out = [], 0, 0
    for (name, _), whole in zip(rendered, encoded, strict=True):
        longer = len(whole.input_ids) > max_length
        if longer and too_long == "leave-out":
            num_left_out += 1
            continue
        num_cut += longer
        kept = replace(whole, id=name)
        if longer:
            kept = Example(name, whole.input_ids[:max_length], whole.labels[:max_length])
        examples.append(kept)
    if not examples:
        raise TaskError(
            f"{spec.label}: all {num_left_out} examples are longer than {max_length} tokens; raise --max-length"
        )
    _require_answers(spec, examples, max_length)
    notes = (*records.notes, *(f"{what}: {count:,}" for what, count in counts.items() if count))
    return TaskData(
        spec.name, tuple(examples), records.num_records, num_cut, num_left_out, template, _sha256(examples), notes,
        _pieces(examples[0], tokenizer),
    )  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """What answers are generated from, and where they stop.

    Attributes:
        ids: of each record the tokens before its last answer.
        stop_ids: tokens that end an answer: the end of a turn, whether or not it is special, and the end of text.
        stop_texts: ends of a turn that are no token of their own.
        notes: as of `TaskData`.
    """

    ids: tuple[tuple[int, ...], ...]
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]
    template: str
    notes: tuple[str, ...]


def encode_prompts(spec: TaskSpec, records: Sequence[Record], tokenizer: Any) -> Prompts:
    """The prompts from which the last answers of records are generated, as training shows them.

    Raises:
        TaskError: no such template, or one that does not take the records.
    """
    template, prompts, problems, notes = template_of(spec, tokenizer), [], [], Counter[str]()
    for record in records:
        messages = _with_system(spec, record.messages)[:-1]
        try:
            if template == "chat":
                chat = ChatTemplate(tokenizer, _context(spec, record))
                prompts.append(chat.prompt(messages))
                notes.update(require_prompt(chat, messages, prompts[-1]))
            else:
                prompts.append(plain_prompt(messages, tokenizer.eos_token))
        except RenderingError as problem:
            problems.append(f"{spec.name}:{record.number}: {problem}")
    _require_taken(spec, problems, len(records), template)
    lead = leading_special_ids(tokenizer) if template == "plain" else ()
    ids = tokenizer([one.text for one in prompts], add_special_tokens=False, verbose=False)["input_ids"]
    stop_ids, stop_texts = stops(tokenizer, {one.end for one in prompts})
    told = tuple(f"{what}: {count:,}" for what, count in notes.items())
    return Prompts(tuple((*lead, *one) for one in ids), stop_ids, stop_texts, template, told)


def stops(tokenizer: Any, ends: Iterable[str]) -> tuple[frozenset[int], tuple[str, ...]]:
    """Where an answer stops that was trained to end with one of these texts: tokens, and texts that are none."""
    added = set(tokenizer.added_tokens_decoder)  # also those that are not special
    found = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    texts = []
    for end in sorted(set(ends) - {""}):
        ids = tokenizer(end, add_special_tokens=False)["input_ids"]
        written = [token for token in ids if tokenizer.decode([token]).strip()]
        if written and written[0] in added:
            found.add(written[0])
        else:
            texts.append(end)
    return frozenset(found), tuple(texts)


def halves(data: TaskData, seed: int) -> tuple[TaskData, TaskData]:
    """Two random halves without a common example, each in the order of the data; the second has the odd one.

    Counts (records, cut, left out) stay those of the whole.

    Raises:
        TaskError: fewer than two examples.
    """
    if len(set(map(record_of, data.examples))) < 2:
        raise TaskError(f"task {data.task}: 1 example, at least 2 are needed for two halves")
    names = dict.fromkeys(map(record_of, data.examples))  # the examples of a record stay together
    first = set(chosen(names, len(names) // 2, f"{seed}/half"))
    parts = (tuple(one for one in data.examples if (record_of(one) in first) == wanted) for wanted in (True, False))
    one, other = (replace(data, examples=part, sha256=_sha256(part)) for part in parts)
    return one, other


def record_of(example: Example) -> str:
    """`math:17` of `math:17/2`."""
    return example.id.partition("/")[0]


def template_of(spec: TaskSpec, tokenizer: Any) -> str:
    """`chat` or `plain`, whichever the task asks for and the tokenizer has.

    Raises:
        TaskError: it has not what the task asks for.
    """
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


def _render(
    spec: TaskSpec, records: Sequence[Record], tokenizer: Any, template: str
) -> tuple[list[tuple[str, Rendered]], Counter[str]]:
    """The id and the text of each example, and how often each note applies."""
    rendered, problems, notes = [], [], Counter[str]()
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special = re.compile("|".join(map(re.escape, sorted(texts)))) if texts else None
    for record in records:
        messages, context = _with_system(spec, record.messages), _context(spec, record)
        name = f"{spec.name}:{record.number}"
        try:
            if template == "chat":
                written = render_chat(messages, tokenizer, context, spec.mismatch)
            else:
                written = render_plain(messages, tokenizer.eos_token, context)
        except RenderingError as problem:
            problems.append(f"{name}: {problem}")
            continue
        notes.update(written.notes)
        notes.update({SPECIAL} if special and any(special.search(message.content) for message in messages) else ())
        alone = len(written.texts) == 1
        rendered += [(name if alone else f"{name}/{part}", text) for part, text in enumerate(written.texts, start=1)]
    _require_taken(spec, problems, len(records), template)
    return rendered, notes


def _require_taken(spec: TaskSpec, problems: Sequence[str], num_records: int, template: str) -> None:
    if problems:
        whose = "the model's chat template" if template == "chat" else "the plain template"
        hint = "; change their turns, or use template: plain" if template == "chat" else ""
        raise TaskError(
            f"{spec.label}: {whose} does not take {len(problems)} of {num_records} examples{hint}:\n"
            + listing(problems)
        )


def _with_system(spec: TaskSpec, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    has_own = any(message.role in ("system", "developer") for message in messages)
    return messages if spec.system is None or has_own else (Message("system", spec.system), *messages)


def _context(spec: TaskSpec, record: Record) -> dict[str, Any]:
    return {**spec.chat_template_kwargs, **record.context}


@dataclass(frozen=True)
class _Tokens:
    """Ids of a text, and the characters from which and to which each token reaches."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


def _encode(spec: TaskSpec, rendered: Sequence[Rendered], tokenizer: Any, template: str) -> tuple[list[Example], int]:
    """Each text as an example without a name, and how many were read in two parts.

    A chat template has written all special tokens, so that none are added to it.
    """
    prefix = leading_special_ids(tokenizer) if template == "plain" else ()
    results, num_parted = [], 0
    for one, tokens in zip(rendered, _read(tokenizer, [one.text for one in rendered]), strict=True):
        parted = _parted(tokenizer, one, tokens)
        num_parted += parted is not tokens
        if template == "plain":
            _require_eos(spec, parted, one.answers, tokenizer)
        labels = tuple(
            token if any(_reads(one.text, span, answer.start, answer.stop) for answer in one.answers) else IGNORED
            for token, span in zip(parted.ids, parted.spans, strict=True)
        )
        content = _content(parted, one, len(prefix))
        results.append(Example("", (*prefix, *parted.ids), (*(IGNORED for _ in prefix), *labels), content))
    return results, num_parted


def _read(tokenizer: Any, texts: Sequence[str]) -> list[_Tokens]:
    encodings = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no advice about the model's maximal length: cutting comes after this
    )
    pairs = zip(encodings["input_ids"], encodings["offset_mapping"], strict=True)
    return [_Tokens(tuple(ids), tuple((begin, end) for begin, end in offsets)) for ids, offsets in pairs]


def _parted(tokenizer: Any, rendered: Rendered, tokens: _Tokens) -> _Tokens:
    """The text read in parts where a token reaches from a prompt into its answer: generation sees the prompt alone.

    As it was where the tokenizer would put a space before each part.
    """
    cuts = [
        answer.start for answer in rendered.answers if any(begin < answer.start < end for begin, end in tokens.spans)
    ]
    if not cuts:
        return tokens
    places = [0, *cuts, len(rendered.text)]
    parts = [rendered.text[begin:end] for begin, end in pairwise(places)]
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for begin, part, text in zip(places, _read(tokenizer, parts), parts, strict=False):
        if begin and _adds_space(tokenizer, part.ids, text):
            return tokens
        ids += part.ids
        spans += [(begin + start, begin + end) for start, end in part.spans]
    return _Tokens(tuple(ids), tuple(spans))


def _adds_space(tokenizer: Any, ids: Sequence[int], text: str) -> bool:
    """Whether a tokenizer puts a space (▁ of SentencePiece) before a text that does not begin with it."""
    read = "".join(tokenizer.convert_ids_to_tokens(list(ids)))
    return len(read) - len(read.lstrip("▁")) > len(text) - len(text.lstrip(" "))


def _reads(text: str, span: tuple[int, int], start: int, stop: int) -> bool:
    """Whether a token writes any of text[start:stop].

    One that begins before it must write a letter of it: Phi-3's header of a turn takes the white space behind it, and
    so does its end of a turn, which is the answer's all the same.
    """
    begin, end = span
    return begin < stop and end > start and (begin >= start or bool(text[start : min(end, stop)].strip()))


def _content(tokens: _Tokens, rendered: Rendered, num_before: int) -> tuple[int, int]:
    """Of the last answer the tokens that write its own text; one that writes some of it and some of the end counts."""
    answer = rendered.answers[-1]
    inside = [
        place
        for place, (begin, end) in enumerate(tokens.spans)
        if _reads(rendered.text, (begin, end), answer.content, answer.stop)
        and not (end > answer.end and not rendered.text[begin : answer.end].strip())
    ]
    if not inside:
        return num_before + len(tokens.ids), num_before + len(tokens.ids)
    return num_before + inside[0], num_before + inside[-1] + 1


def leading_special_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before every text. What it puts behind one is left to the template."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def _require_eos(spec: TaskSpec, tokens: _Tokens, answers: Iterable[Answer], tokenizer: Any) -> None:
    """Each answer must end with the one end-of-text token, not with its letters."""
    covering = [
        next(
            (token for token, (begin, end) in zip(tokens.ids, tokens.spans, strict=True) if begin < one.stop <= end),
            None,
        )
        for one in answers
    ]
    if any(token != tokenizer.eos_token_id for token in covering):
        raise TaskError(
            f"{spec.label}: the tokenizer does not read its end-of-text token {tokenizer.eos_token!r} as one token; "
            "its files do not fit together"
        )


def _pieces(example: Example, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
    """An example as text, parted where what is learned begins and ends."""
    runs = groupby(zip(example.input_ids, example.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    return tuple((tokenizer.decode([token for token, _ in run]), learned) for learned, run in runs)


def _require_answers(spec: TaskSpec, examples: Sequence[Example], max_length: int) -> None:
    if without := [example.id for example in examples if example.num_supervised == 0]:
        raise TaskError(
            f"{spec.label}: no token of the answer is left in {len(without)} of {len(examples)} examples, each cut "
            f"at {max_length} tokens; raise --max-length or use --too-long leave-out:\n" + listing(without)
        )


def _sha256(examples: Iterable[Example]) -> str:
    """Of ids and labels alone: the same data under another name is the same data."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.input_ids, example.labels]).encode() + b"\n")
    return digest.hexdigest()
