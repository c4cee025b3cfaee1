"""Evaluations of one's own records, read in the same way as the examples of training.

`loss`: how likely the model finds the answers, token by token, as training counts them.
`exact-match`: what the model writes after the prompt of training, always the likeliest token, is right or not.
`multiple-choice`: which of some given answers the model finds likeliest. `acc` takes the largest log-likelihood,
`acc_norm` the largest per character of the choice, as lm-evaluation-harness defines them: of the choice's text alone,
without the end of the turn.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import takewhile
from typing import Any, NamedTuple

from trace_transfer.data.encoding import UNCUT, encode_prompts, encode_task, pieces_of, record_of
from trace_transfer.data.examples import IGNORED, Example, TaskData
from trace_transfer.data.records import Message, Record, Records, convert_all, read_records, read_rows, records_sha256
from trace_transfer.data.rendering import THOUGHT_ENDS
from trace_transfer.data.tasks_file import TaskError, UnusableValueError, describe, parse_source
from trace_transfer.evaluation.backends import Backend, Ending
from trace_transfer.evaluation.outcome import Outcome, Pieces, Prepared, Reading, Run, Sample
from trace_transfer.evaluation.suite_file import CHOICE_FIELDS, EvaluationSpec
from trace_transfer.families.model_handle import require_vocabulary

_NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)")


def read_limited(spec: EvaluationSpec, reading: Reading) -> tuple[Records, str]:
    """The first `limit` records, and their hash as conversations."""
    records = read_records(spec, reading.directory, seed=reading.settings.seed)
    kept = replace(records, records=records.records[: reading.settings.limit_of(spec.limit)])
    return kept, records_sha256(
        [[message.parts for message in record.messages] + ([dict(record.context)] if record.context else [])]
        for record in kept.records
    )


def encode(spec: EvaluationSpec, records: Records, reading: Reading, max_length: int = UNCUT) -> TaskData:
    data = encode_task(spec, records, reading.tokenizer, max_length=max_length)
    require_vocabulary("the model", (example.input_ids for example in data.examples), reading.config)
    return data


def _prepared(
    spec: EvaluationSpec, reading: Reading, sha256: str, num_examples: int, run: Run, shown: Pieces, *,
    num_steps: int = 0, **told: Any,
) -> Prepared:  # fmt: skip
    told |= {"limit": reading.settings.limit_of(spec.limit), "max_length": reading.longest}
    steps, better = num_steps or num_examples, spec.first_metric != "loss"
    return Prepared(spec, spec.first_metric, better, num_examples, sha256, told, run, steps, shown)


def shortened(ids: tuple[int, ...], room: int, tokenizer: Any) -> tuple[int, ...]:
    """A prompt of as many tokens as there is room: its special beginning and its end are kept."""
    if len(ids) <= room:
        return ids
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    lead = tuple(takewhile((special | set(tokenizer.all_special_ids)).__contains__, ids))[:room]
    return (*lead, *ids[len(ids) - (room - len(lead)) :])


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and its standard error from the sample variance (divisor n - 1), as lm-evaluation-harness has it."""
    return ratio_and_stderr(values, [1] * len(values))


def ratio_and_stderr(sums: Sequence[float], counts: Sequence[int]) -> tuple[float, float | None]:
    """Mean over all tokens of examples with `sums` over `counts` tokens, and its standard error over examples.

    The ratio estimator's (Cochran 1977, 2.39, without the finite-population correction): examples are independent, the
    tokens of one are not."""
    total, size = sum(counts), len(counts)
    ratio = math.fsum(sums) / total
    if size < 2:
        return ratio, None
    squares = math.fsum((one - ratio * count) ** 2 for one, count in zip(sums, counts, strict=True))
    return ratio, math.sqrt(squares * size / (size - 1)) / total


# ---- loss


def prepare_loss(spec: EvaluationSpec, reading: Reading) -> Prepared:
    """Read and encode the records, exactly as training does; the score is the mean over all answer tokens."""
    if reading.settings.backend != "hf" and spec.first_metric == "token-accuracy":
        raise TaskError(f"{spec.label}: token-accuracy needs the likeliest token at every place; use --backend hf")
    records, sha256 = read_limited(spec, reading)
    data = encode(spec, records, reading, reading.longest)

    def run(backend: Backend, advance: Callable[[], None]) -> Outcome:
        scores = backend.score(data.examples, advance)
        sums = [one.loss if spec.first_metric == "loss" else float(one.num_hits or 0) for one in scores]
        samples, decode = [], backend.tokenizer.decode
        for example, total, one in zip(data.examples, sums, scores, strict=True):
            pairs = list(zip(example.input_ids, example.labels, strict=True))
            answer = decode([token for token, label in pairs if label != IGNORED])
            rest = decode([token for token, label in pairs if label == IGNORED])
            more = {"num_tokens": example.num_supervised, "loss": one.loss / example.num_supervised}
            number = int(record_of(example).rpartition(":")[2])
            samples.append(Sample(number, rest, None, answer, total / example.num_supervised, None, more))
        return Outcome(*ratio_and_stderr(sums, [one.num_supervised for one in data.examples]), tuple(samples))

    return _prepared(
        spec, reading, sha256, len(data.examples), run, data.shown, template=data.template, num_cut=data.num_cut,
        protocol="mean over the tokens of the answers, encoded as in training", notes=list(data.notes) or None,
    )  # fmt: skip


# ---- exact match


def prepare_exact_match(spec: EvaluationSpec, reading: Reading) -> Prepared:
    """Read the records and encode their prompts; the answers need not be such as are trained."""
    longest, tokenizer = reading.longest, reading.tokenizer
    most = spec.max_new_tokens or reading.settings.max_new_tokens or min(256, longest // 2)
    reading.require_room(spec, most)
    records, sha256 = read_limited(spec, reading)
    numbers = [record.number for record in records.records]
    targets = [record.messages[-1].content for record in records.records]
    found = encode_prompts(spec, records.records, tokenizer)
    require_vocabulary("the model", found.ids, reading.config)
    prompts = [shortened(ids, longest - most, tokenizer) for ids in found.ids]
    num_cut = sum(len(ids) > longest - most for ids in found.ids)
    ending = Ending(most, found.stop_ids, (*spec.until, *found.stop_texts))

    def run(backend: Backend, advance: Callable[[], None]) -> Outcome:
        written, samples = backend.generate(prompts, ending, advance), []
        for number, prompt, output, target in zip(numbers, prompts, written, targets, strict=True):
            for end in ending.stop_texts:
                output = output.partition(end)[0]
            right = matches(output, target, spec)
            said = output.rpartition(THOUGHT_ENDS)[2]
            compared = {"extracted": extracted(said, spec.extract)} if spec.extract else {}
            read = backend.tokenizer.decode(prompt)
            samples.append(Sample(number, read, output, target, float(right), right, compared))
        return Outcome(*mean_and_stderr([sample.value for sample in samples]), tuple(samples))

    shown = (tokenizer.decode(prompts[0]), False), (targets[0], True)
    return _prepared(
        spec, reading, sha256, len(prompts), run, shown, protocol="greedy answer to the prompt of training",
        template=found.template, max_new_tokens=most, num_cut=num_cut, notes=[*records.notes, *found.notes] or None,
        stop=[*tokenizer.convert_ids_to_tokens(sorted(found.stop_ids)), *found.stop_texts],
    )  # fmt: skip


def matches(output: str, target: str, spec: EvaluationSpec) -> bool:
    """Whether what counts of both is the same; a target without a match of `extract` counts as a whole.

    Thoughts do not count: what stands behind the last `</think>` is the answer."""
    target, output = (text.rpartition(THOUGHT_ENDS)[2] for text in (target, output))
    wanted, found = extracted(target, spec.extract), extracted(output, spec.extract)
    if found is None:
        return False
    return normalised(found, spec.normalise) == normalised(target if wanted is None else wanted, spec.normalise)


def extracted(text: str, expression: str | None) -> str | None:
    """The last match (its first group if the expression has one); the whole text without an expression."""
    if expression is None:
        return text
    found = list(re.finditer(expression, text))
    return (found[-1][1] if found[-1].re.groups else found[-1][0]) if found else None


def normalised(text: str, how: Sequence[str]) -> str:
    for name in how:
        text = _NORMALISERS[name](text)
    return text


def _number(text: str) -> str:
    """The number that the text is, written in one way; any other text as it is."""
    bare = text.strip().strip("$€£%").removesuffix(".").strip()
    return f"{Decimal(bare.replace(',', '')).normalize():f}" if _NUMBER.fullmatch(bare) else text


_NORMALISERS: dict[str, Callable[[str], str]] = {
    "space": lambda text: " ".join(text.split()),
    "case": str.casefold,
    "punctuation": lambda text: text.translate(str.maketrans("", "", string.punctuation)),
    "number": _number,
}


# ---- multiple choice


class ChoiceRecord(NamedTuple):
    """A question, its choices, and which of them is right (from 0)."""

    number: int
    prompt: str
    choices: tuple[str, ...]
    answer: int


def prepare_choices(spec: EvaluationSpec, reading: Reading) -> Prepared:
    """Read the records; each choice is encoded as an answer, and only the answer's tokens are supervised."""
    records, notes = read_choices(spec, reading)
    conversations = tuple(
        Record(record.number, (Message("user", record.prompt), Message("assistant", choice, True)))
        for record in records
        for choice in record.choices
    )
    data = encode(spec, Records(spec.name, len(records), conversations), reading)
    # Of each choice its own tokens, without what the template puts first, and without the end of the turn.
    places = [example.content or (0, 0) for example in data.examples]
    answers = [one.input_ids[start:end] for one, (start, end) in zip(data.examples, places, strict=True)]
    reading.require_room(spec, max(map(len, answers)))
    examples, num_cut = [], 0  # one for each choice of each record, in order
    for one, (start, _), answer in zip(data.examples, places, answers, strict=True):
        prompt = shortened(one.input_ids[:start], reading.longest - len(answer), reading.tokenizer)
        num_cut += len(prompt) < start
        examples.append(Example(one.id, (*prompt, *answer), (*[IGNORED] * len(prompt), *answer)))

    def run(backend: Backend, advance: Callable[[], None]) -> Outcome:
        scores, samples = iter(backend.score(examples, advance)), []
        for record in records:
            likelihoods = [-next(scores).loss for _ in record.choices]
            per_character = [one / len(text) for one, text in zip(likelihoods, record.choices, strict=True)]
            values = likelihoods if spec.first_metric == "acc" else per_character
            picked = values.index(max(values))
            said, target, right = record.choices[picked], record.choices[record.answer], picked == record.answer
            more = {"choices": list(record.choices), "log_likelihoods": likelihoods}
            samples.append(Sample(record.number, record.prompt, said, target, float(right), right, more))
        return Outcome(*mean_and_stderr([sample.value for sample in samples]), tuple(samples))

    return _prepared(
        spec, reading, records_sha256([[one.prompt, one.choices, one.answer] for one in records]), len(records), run,
        pieces_of(examples[records[0].answer], reading.tokenizer), num_steps=len(examples), template=data.template,
        protocol="log-likelihood of each choice after the prompt of training", num_cut=num_cut, notes=notes or None,
    )  # fmt: skip


def read_choices(spec: EvaluationSpec, reading: Reading) -> tuple[list[ChoiceRecord], list[str]]:
    """The records with notes on them, or one error for all that cannot be used."""
    rows, settings = read_rows(spec, reading.directory), reading.settings
    sources, num_listed = {}, 0
    for name in CHOICE_FIELDS:
        given = spec.fields.get(name, name)
        if isinstance(given, str):
            sources[name] = parse_source(given)
        else:
            num_listed = len(given)
            sources |= {f"{name}[{place}]": parse_source(text) for place, text in enumerate(given)}

    def convert(number: int, found: Mapping[str, Any]) -> ChoiceRecord:
        choices = [found[f"choices[{place}]"] for place in range(num_listed)] or found["choices"]
        if isinstance(choices, dict) and isinstance(choices.get("text"), list):  # ARC's form on the hub
            choices = choices["text"]
        if not isinstance(choices, list) or len(choices) < 2:
            raise UnusableValueError(f"choices is {describe(choices)}, expected a list of two or more texts")
        texts = tuple(_text(choice, f"choices[{place}]").strip() for place, choice in enumerate(choices))
        answer = _answer(found["answer"], texts, spec.count_from)
        return ChoiceRecord(number, _text(found["prompt"], "prompt"), texts, answer)

    return convert_all(spec, rows, sources, convert, settings.seed, settings.limit_of(spec.limit))


def _answer(value: Any, choices: tuple[str, ...], count_from: int) -> int:
    """A choice by its text, its letter or its number."""
    text, letters = str(value).strip(), string.ascii_uppercase[: len(choices)]
    if isinstance(value, str) and text in choices:
        return choices.index(text)
    if len(text) == 1 and text.upper() in letters:
        return letters.index(text.upper())
    place = int(text) - count_from if text.isdecimal() else -1
    if not 0 <= place < len(choices):
        known = f"{count_from} to {count_from + len(choices) - 1}"
        others = f"a letter from A to {letters[-1]}, or the text of a choice"
        raise UnusableValueError(f"answer is {value!r}, expected a number from {known}, {others}")
    return place


def _text(value: Any, name: str) -> str:
    text = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip():
        raise UnusableValueError(f"{name} is {describe(value)}, expected text")
    return text
