"""`loss`: how likely the model finds the answers of supervised examples, token by token, as training counts them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trace_transfer.data.examples import IGNORED, TaskData
from trace_transfer.data.tasks_file import TaskError
from trace_transfer.evaluation.backends import Backend
from trace_transfer.evaluation.outcome import Outcome, Prepared, Sample, ratio_and_stderr
from trace_transfer.evaluation.reading import Reading, encode, number_of, read_limited
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec


@dataclass(frozen=True)
class LossEvaluation(Prepared):
    """Supervised examples of one evaluation."""

    data: TaskData
    numbers: tuple[int, ...]

    def shown(self, tokenizer: Any) -> tuple[tuple[str, bool], ...]:
        return self.data.shown

    def run(self, backend: Backend, advance: Callable[[], None]) -> Outcome:
        """Mean over all answer tokens; the standard error is over examples, whose tokens hang together."""
        scores = backend.score(self.data.examples, advance)
        counts = [one.num_tokens for one in scores]
        sums = [one.loss if self.metric == "loss" else float(one.num_hits or 0) for one in scores]
        value, stderr = ratio_and_stderr(sums, counts)
        samples, decode = [], backend.tokenizer.decode
        for number, example, total, one in zip(self.numbers, self.data.examples, sums, scores, strict=True):
            answer = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORED]
            rest = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label == IGNORED]
            more = {"num_tokens": one.num_tokens, "loss": one.loss / one.num_tokens}
            samples.append(Sample(number, decode(rest), None, decode(answer), total / one.num_tokens, None, more))
        return Outcome(value, stderr, tuple(samples))


def prepare_loss(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> LossEvaluation:
    """Read and encode the records, exactly as training does; raises as `read_limited` and `encode`."""
    if settings.backend != "hf" and spec.first_metric == "token-accuracy":
        raise TaskError(
            f"{spec.label}: token-accuracy needs the likeliest token at every place, which --backend "
            f"{settings.backend} does not give; use --backend hf"
        )
    longest = reading.longest(settings)
    records, sha256 = read_limited(spec, reading, settings)
    data = encode(spec, records, reading, longest)
    told = {
        "protocol": "mean over the tokens of the answers, encoded as in training", "template": data.template,
        "limit": settings.limit_of(spec.limit), "max_length": longest, "num_cut": data.num_cut,
        "notes": list(data.notes) or None,
    }  # fmt: skip
    numbers = tuple(map(number_of, data.examples))
    return LossEvaluation(
        spec, spec.first_metric, spec.higher_is_better, len(data.examples), sha256, told, data, numbers
    )
