"""`multiple-choice`: which of some given answers the model finds likeliest.

`acc` takes the largest log-likelihood, `acc_norm` the largest per character of the choice, as lm-evaluation-harness
defines them: of the choice's text alone, without the end of the turn. The prompt is the one of training.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from trace_transfer.data.examples import IGNORED, Example
from trace_transfer.data.reading import read_rows
from trace_transfer.data.records import Message, Record, Records, beside, chosen
from trace_transfer.data.tasks_file import (
    Place,
    Source,
    TaskError,
    UnusableValueError,
    describe,
    parse_source,
    suggestion,
)
from trace_transfer.errors import listing
from trace_transfer.evaluation.backends import Backend
from trace_transfer.evaluation.outcome import Outcome, Prepared, Sample, mean_and_stderr, records_sha256
from trace_transfer.evaluation.reading import (
    Reading,
    encode,
    number_of,
    require_prompts,
    shortened,
    special_ids,
)
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import CHOICE_FIELDS, EvaluationSpec


@dataclass(frozen=True)
class ChoiceRecord:
    """A question, its choices, and which of them is right (from 0)."""

    number: int
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceEvaluation(Prepared):
    """`examples` has one for each choice of each record, in order; only the choice's own tokens are supervised."""

    records: tuple[ChoiceRecord, ...]
    examples: tuple[Example, ...]

    @property
    def num_steps(self) -> int:
        return len(self.examples)

    def shown(self, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
        first = self.examples[self.records[0].answer]
        pieces = groupby(zip(first.input_ids, first.labels, strict=True), lambda pair: pair[1] != IGNORED)
        return tuple((tokenizer.decode([token for token, _ in piece]), is_choice) for is_choice, piece in pieces)

    def run(self, backend: Backend, advance: Callable[[], None]) -> Outcome:
        scores = iter(backend.score(self.examples, advance))
        samples = []
        for record in self.records:
            likelihoods = [-next(scores).loss for _ in record.choices]
            per_character = [one / len(text) for one, text in zip(likelihoods, record.choices, strict=True)]
            best = {"acc": _largest(likelihoods), "acc_norm": _largest(per_character)}
            picked = best[self.metric]
            samples.append(
                Sample(
                    record.number, record.prompt, record.choices[picked], record.choices[record.answer],
                    float(picked == record.answer), picked == record.answer,
                    {"choices": list(record.choices), "log_likelihoods": likelihoods},
                )
            )  # fmt: skip
        value, stderr = mean_and_stderr([sample.value for sample in samples])
        return Outcome(value, stderr, tuple(samples))


def _largest(values: Sequence[float]) -> int:
    """The first of the largest, as numpy's argmax."""
    return max(range(len(values)), key=lambda place: (values[place], -place))


def prepare_choices(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> ChoiceEvaluation:
    """Read the records and encode each choice as an answer.

    Raises:
        TaskError: unknown columns, records without a usable prompt, choices or answer, a template that does not take
            them; all of a kind at once.
    """
    records, notes = read_choices(spec, reading, settings)
    conversations = tuple(
        Record(record.number, (Message("user", record.prompt), Message("assistant", choice, True)))
        for record in records
        for choice in record.choices
    )
    data = encode(spec, Records(spec.name, CHOICE_FIELDS[0], len(records), conversations), reading)
    ends = [example.content or (0, 0) for example in data.examples]  # of what was not cut there is one
    asked = [example.input_ids[:start] for example, (start, _) in zip(data.examples, ends, strict=True)]
    require_prompts(spec, asked, list(map(number_of, data.examples)))
    special, longest = special_ids(reading.tokenizer), reading.longest(settings)
    examples, num_cut = [], 0
    for example, whole, (start, end) in zip(data.examples, asked, ends, strict=True):
        answer = example.input_ids[start:end]  # without what the template puts first, and without the end of the turn
        if len(answer) >= longest:
            raise TaskError(f"{spec.label}: {example.id}: a choice of {len(answer)} tokens, of {longest} at most")
        (prompt,), cut = shortened([whole], longest - len(answer), special)
        num_cut += cut
        examples.append(Example(example.id, (*prompt, *answer), (*[IGNORED] * len(prompt), *answer)))
    told = {
        "protocol": "log-likelihood of each choice after the prompt of training", "template": data.template,
        "limit": settings.limit_of(spec.limit), "max_length": longest, "num_cut": num_cut,
        "notes": notes or None,
    }  # fmt: skip
    sha256 = records_sha256([[one.prompt, one.choices, one.answer] for one in records])
    return ChoiceEvaluation(
        spec, spec.first_metric, spec.higher_is_better, len(records), sha256, told, records, tuple(examples)
    )


def read_choices(
    spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings
) -> tuple[tuple[ChoiceRecord, ...], list[str]]:
    """The records with notes on them, or one error for all that cannot be used."""
    rows = read_rows(spec, reading.directory)
    sources = {name: _sources(spec.fields.get(name, name)) for name in CHOICE_FIELDS}
    columns = dict.fromkeys(column for several in sources.values() for one in several for column in one.columns)
    if missing := [column for column in columns if column not in rows.column_names]:
        lines = [f"no column '{column}'; {suggestion(column, rows.column_names, 'columns')}" for column in missing]
        raise TaskError(
            f"{spec.label}: columns that are not there:\n{listing(lines)}\nSay with fields: where prompt, choices and "
            "answer are, such as fields: {prompt: question, choices: [a, b, c, d], answer: correct}"
        )
    numbers = chosen(range(len(rows)), spec.max_examples, f"{settings.seed}/sample")[: settings.limit_of(spec.limit)]
    is_listed = isinstance(spec.fields.get("choices"), list)
    records = []
    problems, notes = beside(spec, rows, numbers, list(columns))
    for number, row in zip(numbers, rows.of(numbers, list(columns)), strict=True):
        try:
            records.append(_record(number, row, sources, is_listed, spec.count_from))
        except UnusableValueError as problem:
            problems.append((number, str(problem)))
    if problems:
        bad, lines = len(dict(problems)), [f"record {number}: {problem}" for number, problem in sorted(problems)]
        raise TaskError(f"{spec.label}: {bad} of {len(numbers)} records cannot be used:\n" + listing(lines))
    return tuple(records), notes


def _sources(given: str | list[str]) -> tuple[Source, ...]:
    texts = given if isinstance(given, list) else [given]
    return tuple(
        parse_source(text) if "{" in text or "}" in text else Source((Place(text),), is_format=False) for text in texts
    )


def _record(
    number: int, row: Mapping[str, Any], sources: Mapping[str, tuple[Source, ...]], is_listed: bool, count_from: int
) -> ChoiceRecord:
    prompt = _text(sources["prompt"][0].value(row), "prompt")
    found = [one.value(row) for one in sources["choices"]]
    choices = found if is_listed else found[0]
    if isinstance(choices, dict) and isinstance(choices.get("text"), list):  # ARC's form on the hub
        choices = choices["text"]
    if not isinstance(choices, list) or len(choices) < 2:
        raise UnusableValueError(f"choices is {describe(choices)}, expected a list of two or more texts")
    texts = tuple(_text(choice, f"choices[{place}]") for place, choice in enumerate(choices))
    return ChoiceRecord(number, prompt, texts, _answer(sources["answer"][0].value(row), texts, count_from))


def _answer(value: Any, choices: tuple[str, ...], count_from: int) -> int:
    """A choice by its text, its letter or its number."""
    place: int | None = None
    if isinstance(value, str):
        text = value.strip()
        if text in choices:
            place = choices.index(text)
        elif len(text) == 1 and text.upper() in string.ascii_uppercase:
            place = string.ascii_uppercase.index(text.upper())
        elif text.isdecimal():
            place = int(text) - count_from
    elif isinstance(value, int) and not isinstance(value, bool):
        place = value - count_from
    if place is None or not 0 <= place < len(choices):
        known = f"{count_from} to {count_from + len(choices) - 1}"
        raise UnusableValueError(
            f"answer is {value!r}, expected a number from {known}, a letter from A to "
            f"{string.ascii_uppercase[len(choices) - 1]}, or the text of a choice"
        )
    return place


def _text(value: Any, name: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise UnusableValueError(f"{name} is {describe(value)}, expected text")
    return value.strip() if name != "prompt" else value
