"""What `evaluate` leaves: scores of a model, and scores along a stream."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trace_transfer.records import TASK, ModelIdentity, Name, Strict


class Member(Strict):
    """A task, or a group, of a group of lm-evaluation-harness, in the metric of the whole."""

    name: Name
    value: float
    stderr: float | None = None
    num_examples: int = Field(ge=1)


class Score(Strict):
    """One evaluation's score of one model.

    `value` is a share in [0, 1] for accuracies, nats per token for `loss`; `stderr` its standard error over examples.
    `settings` decide it; `data_sha256` is that of the scored records. `num_errors` counts programs that were killed.
    `members` are those of a group, its smaller groups first."""

    name: str = Field(pattern=TASK)
    kind: str
    metric: str
    value: float
    higher_is_better: bool
    stderr: float | None = None
    num_examples: int = Field(ge=1)
    num_errors: int = Field(default=0, ge=0)
    seconds: float
    data_sha256: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    members: tuple[Member, ...] | None = None


class EvaluationFile(Strict):
    """`evaluation.json`: the scores of one model; `fingerprint` changes with its weights."""

    format: Literal["trace-transfer/evaluation"] = "trace-transfer/evaluation"
    version: Literal[1] = 1
    model: ModelIdentity
    fingerprint: str
    suite: Name
    scores: tuple[Score, ...]
    settings: dict[str, Any] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)


class ScoredStage(Strict):
    """Scores after one stage of a stream; `learned` are the tasks whose examples it trained, none for the base."""

    label: Name
    learned: tuple[str, ...]
    scores: tuple[Score, ...]


class ScoreMatrix(Strict):
    """`scores.json`: scores before training and after each stage of a stream (R of Lopez-Paz and Ranzato, 2017).

    `of_task`: task → name of the evaluation that measures it. The first stage is the base."""

    format: Literal["trace-transfer/scores"] = "trace-transfer/scores"
    version: Literal[1] = 1
    model: ModelIdentity
    base_fingerprint: str
    of_task: dict[str, str]
    stages: tuple[ScoredStage, ...] = Field(min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)
