"""An evaluation with its data read, and what it gives: a value with its standard error, and what the model said."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.data.encoding import UNCUT
from trace_transfer.data.tasks_file import TaskError
from trace_transfer.errors import TraceTransferError
from trace_transfer.evaluation.records import Member
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec

if TYPE_CHECKING:
    from trace_transfer.evaluation.backends import Backend


class EvaluationError(TraceTransferError):
    """An evaluation could not be finished."""


@dataclass(frozen=True)
class Reading:
    """How an evaluation's data are read."""

    directory: Path  # what local files are relative to
    tokenizer: Any
    config: Any
    settings: EvaluateSettings

    @property
    def longest(self) -> int:
        """Tokens that may be read and written together."""
        made_for = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        known = [one for one in (self.settings.max_length, made_for) if one is not None]
        return min(known, default=UNCUT) - (self.settings.backend == "vllm")  # which always writes a token

    def require_room(self, spec: EvaluationSpec, max_new_tokens: int) -> None:
        """Refuse answers so long that no prompt fits before them."""
        if max_new_tokens >= self.longest:
            raise TaskError(
                f"{spec.label}: answers of up to {max_new_tokens} tokens leave no room for a prompt in the "
                f"{self.longest} tokens that the model reads; allow fewer (max_new_tokens), or shorten choices"
            )


@dataclass(frozen=True)
class Sample:
    """One example as it went."""

    number: int  # of the record in its data, from 0
    prompt: str
    output: str | None  # what the model wrote, or the chosen choice
    target: str
    value: float  # of the metric, on this example alone
    right: bool | None
    more: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """As a line of JSON."""
        names = ("number", "prompt", "output", "target", "right", "value")
        return json.dumps({**{n: getattr(self, n) for n in names}, **self.more}, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class Outcome:
    """The result over all examples; `stderr` is the standard error of `value` over them, None for a single one."""

    value: float
    stderr: float | None
    samples: tuple[Sample, ...]
    num_errors: int = 0
    members: tuple[Member, ...] | None = None  # of a group


Run = Callable[["Backend", Callable[[], None]], Outcome]
Pieces = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Prepared:
    """An evaluation whose data are read and checked: all that it lacks is a model."""

    spec: EvaluationSpec
    metric: str
    higher_is_better: bool
    num_examples: int
    data_sha256: str
    settings: Mapping[str, Any]  # those that decide the result
    run: Run  # calls its second argument `num_steps` times
    num_steps: int
    shown: Pieces = ()  # the first example as text: (text, whether it is the answer)
