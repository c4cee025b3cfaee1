"""Records of an evaluation as the model will read them: by the same way as the examples of training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from trace_transfer.data.encoding import Prompts, encode_prompts, encode_task, record_of
from trace_transfer.data.examples import Example, TaskData
from trace_transfer.data.records import Records, read_records
from trace_transfer.data.tasks_file import TaskError
from trace_transfer.errors import ModelError, listing
from trace_transfer.evaluation.outcome import records_sha256
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec

UNCUT = 1 << 30


@dataclass(frozen=True)
class Reading:
    """What reads an evaluation's data.

    Attributes:
        directory: what local files are relative to.
        vocab_size: of the model; a larger token id belongs to another tokenizer.
        max_positions: tokens that the model was made for; None where its config does not say.
    """

    directory: Path
    tokenizer: Any
    vocab_size: int
    max_positions: int | None

    @classmethod
    def of(cls, directory: Path, tokenizer: Any, config: Any) -> Reading:
        text = config.get_text_config()
        return cls(directory, tokenizer, text.vocab_size, getattr(text, "max_position_embeddings", None))

    def longest(self, settings: EvaluateSettings) -> int:
        """Tokens that may be read and written together."""
        known = [one for one in (settings.max_length, self.max_positions) if one is not None]
        return min(known, default=UNCUT) - (settings.backend == "vllm")  # which always writes a token


@dataclass(frozen=True)
class ReadExamples:
    """Encoded records.

    Attributes:
        numbers: of each example's record in its data.
        sha256: of the records as conversations, before they were encoded.
    """

    data: TaskData
    numbers: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class ReadPrompts:
    """What last answers are generated from.

    Attributes:
        numbers: of each record in its data.
        answers: the text of each record's last answer.
        notes: on the data.
        sha256: as of `ReadExamples`.
    """

    prompts: Prompts
    numbers: tuple[int, ...]
    answers: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: str


def read_examples(
    spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings, *, max_length: int = UNCUT
) -> ReadExamples:
    """Records with a prompt and an answer, the first `limit` of them.

    Raises:
        TaskError: the data cannot be read, or records cannot be used or encoded; all of a kind at once.
        ModelError: the tokenizer belongs to another model.
    """
    records = _limited(spec, reading, settings)
    data = encode(spec, records, reading, max_length)
    return ReadExamples(data, tuple(map(number_of, data.examples)), _sha256(records))


def read_prompts(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> ReadPrompts:
    """What the last answers of records are generated from; those need not be answers that could be trained.

    Raises:
        TaskError: as `read_examples`.
        ModelError: the tokenizer belongs to another model.
    """
    records = _limited(spec, reading, settings)
    kept = records.records
    prompts = encode_prompts(spec, kept, reading.tokenizer)
    _require_rows(max(map(max, filter(None, prompts.ids)), default=0), reading)
    return ReadPrompts(
        prompts, tuple(record.number for record in kept), tuple(record.messages[-1].content for record in kept),
        (*records.notes, *prompts.notes), _sha256(records),
    )  # fmt: skip


def number_of(example: Example) -> int:
    """Of its record: 17 of `math:17`, and of `math:17/2`."""
    return int(record_of(example).rpartition(":")[2])


def _limited(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> Records:
    records = read_records(spec, reading.directory, seed=settings.seed)
    return replace(records, records=records.records[: settings.limit_of(spec.limit)])


def _sha256(records: Records) -> str:
    return records_sha256(
        [[message.parts for message in record.messages] + ([dict(record.context)] if record.context else [])]
        for record in records.records
    )  # fmt: skip


def encode(spec: EvaluationSpec, records: Records, reading: Reading, max_length: int = UNCUT) -> TaskData:
    """`encode_task`, and whether the model has a row for every token."""
    data = encode_task(spec, records, reading.tokenizer, max_length=max_length)
    _require_rows(max(max(example.input_ids) for example in data.examples), reading)
    return data


def _require_rows(largest: int, reading: Reading) -> None:
    if largest >= reading.vocab_size:
        raise ModelError(
            f"the tokenizer gives token id {largest}, but the model's vocabulary has {reading.vocab_size} tokens: the "
            "tokenizer belongs to another model"
        )


@dataclass(frozen=True)
class Question:
    """An example taken apart: what is read before the last answer's own text, and that text."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


def last_question(example: Example) -> Question:
    """Prompt and last answer, without what the template puts first and without the end of the turn."""
    assert example.content is not None  # nothing was cut
    start, end = example.content
    return Question(example.input_ids[:start], example.input_ids[start:end])


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that stand for no text: beginnings and ends."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def require_room(spec: EvaluationSpec, longest: int, max_new_tokens: int) -> None:
    """Refuse answers so long that no prompt fits before them."""
    if max_new_tokens >= longest:
        raise TaskError(
            f"{spec.label}: answers of up to {max_new_tokens} tokens leave no room for a prompt in the {longest} "
            "tokens that the model reads; lower max_new_tokens"
        )


def shortened(
    whole: Sequence[tuple[int, ...]], room: int, special: Collection[int]
) -> tuple[list[tuple[int, ...]], int]:
    """Prompts of at most `room` tokens, and how many were cut: their special beginning and their end are kept."""
    prompts, num_cut = [], 0
    for ids in whole:
        if len(ids) > room:
            num_cut += 1
            lead = tuple(takewhile(special.__contains__, ids))[:room]
            ids = (*lead, *ids[len(ids) - (room - len(lead)) :])
        prompts.append(ids)
    return prompts, num_cut


def require_prompts(spec: EvaluationSpec, prompts: Sequence[tuple[int, ...]], numbers: Sequence[int]) -> None:
    """Refuse examples without anything before the answer: there is nothing to go on from."""
    if empty := [f"{spec.name}:{number}" for number, one in zip(numbers, prompts, strict=True) if not one]:
        raise TaskError(f"{spec.label}: nothing stands before the answer:\n" + listing(empty))
