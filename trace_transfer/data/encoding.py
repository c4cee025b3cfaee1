"""Conversations → token ids with the answers supervised: what training and Fisher information read.

A token is supervised if any of an answer's characters are in it, the end of the turn included: predicting it then
completes some of the answer. `encode_prompts` reads the prompts of generation in the same way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from trace_transfer.data.examples import IGNORED, Example, TaskData
from trace_transfer.data.records import Message, Record, Records, chosen, read_records, records_sha256
from trace_transfer.data.rendering import Rendered, RenderingError, chat_prompt, plain_prompt, render_chat, render_plain
from trace_transfer.data.tasks_file import TaskError, TaskSpec, load_tasks
from trace_transfer.errors import listing
from trace_transfer.families.model_handle import OpenModel, load_tokenizer, require_fitting

UNCUT = 1 << 30
SPECIAL = "conversations in which a text holds a special token, and is read as that token"
PARTED = "examples read in two parts, as a token would reach from the prompt into the answer"
Span = tuple[int, int]  # characters of a text, or tokens of an example; the end is exclusive


def read_tasks(base: OpenModel, tasks: str | Path, max_length: int, too_long: str, seed: int) -> tuple[TaskData, ...]:
    """All tasks of a `tasks.yaml`, encoded for a model."""
    return encode_tasks(base, load_tasks(tasks), Path(tasks).parent, max_length, too_long, seed)


def encode_tasks(
    base: OpenModel, specs: Sequence[TaskSpec], directory: Path, max_length: int, too_long: str, seed: int
) -> tuple[TaskData, ...]:
    """Tasks encoded for a model; their data lie relative to a directory."""
    tokenizer = load_tokenizer(base.source)
    data = tuple(
        encode_task(spec, read_records(spec, directory, seed=seed), tokenizer, max_length=max_length, too_long=too_long)
        for spec in specs
    )
    texts = [example.input_ids for task in data for example in task.examples]
    require_fitting(base.source.name, texts, base.config)
    return data


def encode_task(
    spec: TaskSpec, records: Records, tokenizer: Any, *, max_length: int = UNCUT, too_long: str = "cut"
) -> TaskData:
    """Encode a task's records. Those of more than `max_length` tokens, special ones included, are `cut` on the right or
    left out (`leave-out`); both are counted. A TaskError if the template does not take some records, or cuts all of an
    answer (all named)."""
    template = template_of(spec, tokenizer)
    rendered, counts = _render(spec, records.records, tokenizer, template)
    encoded, counts[PARTED] = _encode(rendered, tokenizer, leading_special_ids(tokenizer, template))
    num_longer = sum(len(one.input_ids) > max_length for one in encoded)
    kept = (one for one in encoded if too_long == "cut" or len(one.input_ids) <= max_length)
    examples = [
        Example(one.id, one.input_ids[:max_length], one.labels[:max_length]) if len(one.input_ids) > max_length else one
        for one in kept
    ]
    if not examples:
        longest = f"all {len(encoded)} examples are longer than {max_length} tokens"
        raise TaskError(f"{spec.label}: {longest}; raise --max-length")
    if without := [example.id for example in examples if example.num_supervised == 0]:
        raise TaskError(
            f"{spec.label}: no token of the answer is left in {len(without)} of {len(examples)} examples, each cut "
            f"at {max_length} tokens; raise --max-length or use --too-long leave-out:\n" + listing(without)
        )
    num_left_out = len(encoded) - len(examples)
    notes = (*records.notes, *(f"{what}: {count:,}" for what, count in counts.items() if count))
    return TaskData(
        spec.name, tuple(examples), records.num_records, num_longer - num_left_out, num_left_out, template,
        _ids_sha256(examples), notes, pieces_of(examples[0], tokenizer),
    )  # fmt: skip


@dataclass(frozen=True)
class Prompts:
    """What answers are generated from, and where they stop."""

    ids: tuple[tuple[int, ...], ...]  # of each record the tokens before its last answer
    stop_ids: frozenset[int]  # tokens that end an answer: the end of a turn, special or not, and the end of text
    stop_texts: tuple[str, ...]  # ends of a turn that are no token of their own
    template: str
    notes: tuple[str, ...]


def encode_prompts(spec: TaskSpec, records: Sequence[Record], tokenizer: Any) -> Prompts:
    """The prompts from which the last answers of records are generated, as training shows them."""
    template, prompts, problems, notes = template_of(spec, tokenizer), [], [], Counter[str]()
    for record in records:
        messages = _with_system(spec, record.messages)[:-1]
        try:
            if template == "chat":
                prompt, told = chat_prompt(messages, tokenizer, {**spec.chat_template_kwargs, **record.context})
                notes.update(told)
            else:
                prompt = plain_prompt(messages, tokenizer.eos_token)
            prompts.append(prompt)
        except RenderingError as problem:
            problems.append(f"{spec.name}:{record.number}: {problem}")
    _require_taken(spec, problems, len(records), template)
    lead = leading_special_ids(tokenizer, template)
    ids = tokenizer([one.text for one in prompts], add_special_tokens=False, verbose=False)["input_ids"]
    stop_ids, stop_texts = stops(tokenizer, {one.end for one in prompts})
    counted = tuple(f"{what}: {count:,}" for what, count in notes.items())
    return Prompts(tuple((*lead, *one) for one in ids), stop_ids, stop_texts, template, counted)


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
    """Two random halves without a common record, in the order of the data; counts stay those of the whole."""
    names = dict.fromkeys(map(record_of, data.examples))
    if len(names) < 2:
        raise TaskError(f"task {data.task}: 1 example, at least 2 are needed for two halves")
    first = set(chosen(names, len(names) // 2, f"{seed}/half"))

    def half(wanted: bool) -> TaskData:
        examples = tuple(one for one in data.examples if (record_of(one) in first) == wanted)
        return replace(data, examples=examples, sha256=_ids_sha256(examples))

    return half(True), half(False)


def _ids_sha256(examples: Iterable[Example]) -> str:
    """Of ids and labels alone: the same data under another name is the same data."""
    return records_sha256([example.input_ids, example.labels] for example in examples)


def record_of(example: Example) -> str:
    """`math:17` of `math:17/2`."""
    return example.id.partition("/")[0]


def template_of(spec: TaskSpec, tokenizer: Any) -> str:
    """`chat` or `plain`, whichever the task asks for and the tokenizer has."""
    has_chat = bool(tokenizer.chat_template)
    if spec.template == "chat" and not has_chat:
        raise TaskError(f"{spec.label}: template: chat, but the model's tokenizer has no chat template; use auto")
    if spec.template != "plain" and has_chat:
        return "chat"
    eos = tokenizer.eos_token
    if eos is None or tokenizer(eos, add_special_tokens=False)["input_ids"] != [tokenizer.eos_token_id]:
        raise TaskError(
            f"{spec.label}: the model's tokenizer names no end-of-text token that it reads as one token; the plain "
            "template ends each answer with it; set eos_token in its tokenizer_config.json"
        )
    return "plain"


def _render(
    spec: TaskSpec, records: Sequence[Record], tokenizer: Any, template: str
) -> tuple[list[tuple[str, Rendered]], Counter[str]]:
    rendered, problems, notes = [], [], Counter[str]()
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special = re.compile("|".join(map(re.escape, sorted(texts)))) if texts else None
    for record in records:
        messages, context = _with_system(spec, record.messages), {**spec.chat_template_kwargs, **record.context}
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
        count = f"{len(problems)} of {num_records} examples"
        raise TaskError(f"{spec.label}: {whose} does not take {count}{hint}:\n" + listing(problems))


def _with_system(spec: TaskSpec, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    has_own = any(message.role in ("system", "developer") for message in messages)
    return messages if spec.system is None or has_own else (Message("system", spec.system), *messages)


# ---- texts → tokens: each an id with the characters from which and to which it reaches


def _encode(
    rendered: Sequence[tuple[str, Rendered]], tokenizer: Any, prefix: tuple[int, ...]
) -> tuple[list[Example], int]:
    """Each text as an example, and how many were read in two parts."""
    results, num_parted = [], 0
    for (name, one), whole in zip(rendered, _read(tokenizer, [text.text for _, text in rendered]), strict=True):
        tokens = _parted(tokenizer, one, whole)
        num_parted += tokens is not whole
        labels = tuple(
            token if any(_reads(one.text, span, answer.start, answer.stop) for answer in one.answers) else IGNORED
            for token, span in tokens
        )
        last = one.answers[-1]
        # Of the last answer the tokens of its own text; one that writes some of it and some of the end counts.
        inside = [
            place
            for place, (_, (begin, end)) in enumerate(tokens, start=len(prefix))
            if _reads(one.text, (begin, end), last.content, last.stop)
            and not (end > last.end and not one.text[begin : last.end].strip())
        ]
        length = len(prefix) + len(tokens)
        content = (inside[0], inside[-1] + 1) if inside else (length, length)
        ids = (*prefix, *(token for token, _ in tokens))
        results.append(Example(name, ids, (*(IGNORED for _ in prefix), *labels), content))
    return results, num_parted


def _read(tokenizer: Any, texts: Sequence[str]) -> list[list[tuple[int, Span]]]:
    """No special tokens are added: a chat template has written all of its own. No advice about lengths either."""
    read = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [list(zip(*pair, strict=True)) for pair in zip(read["input_ids"], read["offset_mapping"], strict=True)]


def _parted(tokenizer: Any, rendered: Rendered, tokens: list[tuple[int, Span]]) -> list[tuple[int, Span]]:
    """The text read in parts where a token reaches from a prompt into its answer, as generation sees the prompt alone;
    as it was where the tokenizer would put a space (▁ of SentencePiece) before each part."""
    starts = [answer.start for answer in rendered.answers]
    cuts = [start for start in starts if any(begin < start < end for _, (begin, end) in tokens)]
    if not cuts:
        return tokens
    places = [0, *cuts, len(rendered.text)]
    parts = [rendered.text[begin:end] for begin, end in pairwise(places)]
    found: list[tuple[int, Span]] = []
    for begin, part, text in zip(places, _read(tokenizer, parts), parts, strict=False):
        written = "".join(tokenizer.convert_ids_to_tokens([token for token, _ in part]))
        if begin and len(written) - len(written.lstrip("▁")) > len(text) - len(text.lstrip(" ")):
            return tokens
        found += [(token, (begin + start, begin + end)) for token, (start, end) in part]
    return found


def _reads(text: str, span: Span, start: int, stop: int) -> bool:
    """Whether a token writes any of text[start:stop]; one that begins before it must write a letter of it, as Phi-3's
    header of a turn takes the white space behind it."""
    begin, end = span
    return begin < stop and end > start and (begin >= start or bool(text[start : min(end, stop)].strip()))


def leading_special_ids(tokenizer: Any, template: str) -> tuple[int, ...]:
    """What the tokenizer puts before every text of the plain template; a chat template writes its own."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1) if template == "plain" else ():
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def pieces_of(example: Example, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
    """An example as text, parted where what is learned begins and ends."""
    runs = groupby(zip(example.input_ids, example.labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    return tuple((tokenizer.decode([token for token, _ in run]), learned) for learned, run in runs)
