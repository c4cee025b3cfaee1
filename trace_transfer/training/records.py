"""What `train` leaves beside the patches: which stages of a stream are finished, and what each did."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trace_transfer.records import TASK, ModelIdentity, Strict


class EvaluationRecord(Strict):
    """The loss on held-out records after a step, of each task and over all their supervised tokens."""

    step: int
    losses: dict[str, float]
    loss: float


class StageRecord(Strict):
    """One finished stage.

    `tasks` are those whose examples took part. `patch` is its file, beside this one; `mask_sha256` is that of what
    was trained, `data_sha256` of all token ids and labels. `losses` are of each step, mean cross-entropy in nats before
    the step. `evaluations` are on the held-out records, `kept_step` the step whose weights the patch has, if not the
    last.
    """

    label: str = Field(pattern=TASK)
    tasks: tuple[str, ...]
    patch: str
    patch_sha256: str
    adapter: str | None = None
    mask_sha256: str
    num_parameters: int
    num_elements: int
    data_sha256: str
    num_examples: int
    num_steps: int
    tokens: int
    supervised: int
    losses: tuple[float, ...]
    held_out_sha256: str | None = None
    evaluations: tuple[EvaluationRecord, ...] = ()
    kept_step: int | None = None


class StreamFile(Strict):
    """`stream.json`: the stages of a stream that are finished, in order; written again after each.

    `complete` once the tuned model is written and proved to differ from its base in the core sets alone.
    """

    format: Literal["trace-transfer/stream"] = "trace-transfer/stream"
    version: Literal[1] = 1
    model: ModelIdentity
    base_fingerprint: str
    config_sha256: str | None = None
    settings: dict[str, Any]
    num_stages: int
    complete: bool = False
    stages: tuple[StageRecord, ...]
    libraries: dict[str, str] = Field(default_factory=dict)
