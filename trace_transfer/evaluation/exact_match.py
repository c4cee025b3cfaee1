"""`exact-match`: the model writes its answer, and it is the right one or not.

It goes on, always with the likeliest token, from the very prompt that training shows it, until the token that ended
answers in training, a text of `until`, or `max_new_tokens`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from trace_transfer.data.encoding import encode_prompts
from trace_transfer.data.rendering import THOUGHT_ENDS
from trace_transfer.evaluation.backends import Backend
from trace_transfer.evaluation.batching import Ending
from trace_transfer.evaluation.outcome import Outcome, Prepared, Sample, mean_and_stderr
from trace_transfer.evaluation.reading import (
    Reading,
    read_limited,
    require_prompts,
    require_room,
    shortened,
    special_ids,
)
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec
from trace_transfer.families.model_handle import require_vocabulary

MAX_NEW_TOKENS = 256
_NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)")


@dataclass(frozen=True)
class ExactMatchEvaluation(Prepared):
    """Prompts, and the answers that are expected."""

    numbers: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]
    targets: tuple[str, ...]
    ending: Ending

    def shown(self, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
        return (tokenizer.decode(self.prompts[0]), False), (self.targets[0], True)

    def run(self, backend: Backend, advance: Callable[[], None]) -> Outcome:
        written = backend.generate(self.prompts, self.ending, advance)
        samples, decode = [], backend.tokenizer.decode
        for number, prompt, text, target in zip(self.numbers, self.prompts, written, self.targets, strict=True):
            output = cut_at(text, self.ending.stop_texts)
            right = matches(output, target, self.spec)
            said = output.rpartition(THOUGHT_ENDS)[2]
            compared = {"extracted": extracted(said, self.spec.extract)} if self.spec.extract else {}
            samples.append(Sample(number, decode(prompt), output, target, float(right), right, compared))
        value, stderr = mean_and_stderr([sample.value for sample in samples])
        return Outcome(value, stderr, tuple(samples))


def prepare_exact_match(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> ExactMatchEvaluation:
    """Read the records and encode their prompts.

    Raises:
        TaskError: as `read_limited`; nothing before an answer, or no room for a prompt.
    """
    longest = reading.longest(settings)
    most = spec.max_new_tokens or settings.max_new_tokens or min(MAX_NEW_TOKENS, longest // 2)
    require_room(spec, longest, most)
    records, sha256 = read_limited(spec, reading, settings)
    numbers = tuple(record.number for record in records.records)
    found = encode_prompts(spec, records.records, reading.tokenizer)  # of answers that need not be such as are trained
    require_vocabulary("the model", found.ids, reading.config)
    require_prompts(spec, found.ids, numbers)
    prompts, num_cut = shortened(found.ids, longest - most, special_ids(reading.tokenizer))
    stop = [*reading.tokenizer.convert_ids_to_tokens(sorted(found.stop_ids)), *found.stop_texts]
    told = {
        "protocol": "greedy answer to the prompt of training", "template": found.template,
        "limit": settings.limit_of(spec.limit), "max_length": longest, "max_new_tokens": most, "num_cut": num_cut,
        "stop": stop, "notes": [*records.notes, *found.notes] or None,
    }  # fmt: skip
    answers = tuple(record.messages[-1].content for record in records.records)
    return ExactMatchEvaluation(
        spec, spec.first_metric, spec.higher_is_better, len(prompts), sha256, told, numbers, tuple(prompts), answers,
        Ending(most, found.stop_ids, (*spec.until, *found.stop_texts)),
    )  # fmt: skip


def matches(output: str, target: str, spec: EvaluationSpec) -> bool:
    """Whether what counts of both is the same; a target without a match of `extract` counts as a whole.

    Thoughts do not count: what stands behind the last `</think>` is the answer.
    """
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
    if not found:
        return None
    return found[-1][1] if found[-1].re.groups else found[-1][0]


def normalised(text: str | None, how: Sequence[str]) -> str:
    """A text without what it may differ in."""
    text = text or ""
    for name in how:
        text = _NORMALISERS[name](text)
    return text


def cut_at(text: str, until: Sequence[str]) -> str:
    """Up to the first of these texts."""
    for end in until:
        text = text.partition(end)[0]
    return text


def _without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


def _number(text: str) -> str:
    """The number that the text is, written in one way; any other text as it is."""
    bare = text.strip().strip("$€£%").removesuffix(".").strip()
    if not _NUMBER.fullmatch(bare):
        return text
    try:
        return f"{Decimal(bare.replace(',', '')).normalize():f}"
    except InvalidOperation:
        return text


_NORMALISERS: dict[str, Callable[[str], str]] = {
    "space": lambda text: " ".join(text.split()),
    "case": str.casefold,
    "punctuation": _without_punctuation,
    "number": _number,
}
