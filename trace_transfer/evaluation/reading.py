"""Records of an evaluation as the model will read them: by the same way as the examples of training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from trace_transfer.data.encoding import encode_task, record_of
from trace_transfer.data.examples import Example, TaskData
from trace_transfer.data.records import Records, read_records
from trace_transfer.data.tasks_file import TaskError
from trace_transfer.errors import listing
from trace_transfer.evaluation.outcome import records_sha256
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec
from trace_transfer.families.model_handle import require_vocabulary

UNCUT = 1 << 30


@dataclass(frozen=True)
class Reading:
    """What reads an evaluation's data.

    Attributes:
        directory: what local files are relative to.
        config: of the model.
    """

    directory: Path
    tokenizer: Any
    config: Any

    def longest(self, settings: EvaluateSettings) -> int:
        """Tokens that may be read and written together."""
        made_for = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        known = [one for one in (settings.max_length, made_for) if one is not None]
        return min(known, default=UNCUT) - (settings.backend == "vllm")  # which always writes a token


def read_limited(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> tuple[Records, str]:
    """The first `limit` records, and their hash as conversations.

    Raises:
        TaskError: the data cannot be read, or records cannot be used; all of a kind at once.
    """
    records = read_records(spec, reading.directory, seed=settings.seed)
    kept = replace(records, records=records.records[: settings.limit_of(spec.limit)])
    return kept, records_sha256(
        [[message.parts for message in record.messages] + ([dict(record.context)] if record.context else [])]
        for record in kept.records
    )


def number_of(example: Example) -> int:
    """Of its record: 17 of `math:17`, and of `math:17/2`."""
    return int(record_of(example).rpartition(":")[2])


def encode(spec: EvaluationSpec, records: Records, reading: Reading, max_length: int = UNCUT) -> TaskData:
    """`encode_task`, and whether the model has a row for every token."""
    data = encode_task(spec, records, reading.tokenizer, max_length=max_length)
    require_vocabulary("the model", (example.input_ids for example in data.examples), reading.config)
    return data


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
