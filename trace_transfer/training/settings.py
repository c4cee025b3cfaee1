"""How a stream of tasks is fine-tuned: its settings, and `stream.yaml`, its tasks in order with their core files.

    tasks:
      - name: math
        data: gsm8k.jsonl
        fields: {prompt: question, completion: answer}
        core: cores/math.core.json      # beside this file; as identified on this model, or carried over to it by `map`
        eval_data: gsm8k.held_out.jsonl # evaluated on while it trains; or `eval_split: validation` of a hub data set

`stream.yaml` is a `tasks.yaml` with more keys, so that any `tasks.yaml` is a stream for a method without core sets.
What `train` leaves beside the patches, `stream.json`, is here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from annotated_types import Gt, Lt
from pydantic import Field, InstanceOf, model_validator

from trace_transfer.data.tasks_file import TaskSpec, load_tasks
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.files import sha256_text
from trace_transfer.identification.settings import LONGEST, WHEN_TOO_LONG, Length, TooLong
from trace_transfer.records import TASK, ModelIdentity, Strict
from trace_transfer.settings import Count, Seed, Settings, Share, Texts, setting

METHODS = {
    "trace": "only the core set of each task (the method)",
    "full": "everything, task after task",
    "joint": "everything, all tasks mixed",
    "lora": "adapters on all layers, task after task",
    "dmt": "everything: all tasks but one mixed, then that one with a few examples of the others",
    "random": "a random set of the core set's size (control)",
    "random-within": "of each tensor as many random rows or parameters as its core set has (control)",
    "role-profile": "of each component as many random tensors or rows as the core set has, in any layers (control)",
    "one-set": "one set for all tasks, by the mean of their scores (control)",
    "norms-random": "all norms, and random entries up to the core set's size (control)",
    "head-norms-random": "head and norms, and random entries up to the core set's size (control)",
    "shuffled": "the core set with its layers shuffled (control)",
    "first": "all of the first layers, as many as the core set's size (control)",
    "last": "all of the last layers, as many as the core set's size (control)",
}
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


def paper_training(**given: Any) -> TrainSettings:
    """Training as in the paper's A.4; the learning rate is that of the authors' code."""
    return TrainSettings(**{"epochs": 3, "batch_size": 256, "zero": 3, **given})


def seed_of_draw(seed: int, draw: int) -> int:
    """The seed itself for its first draw, another one for each further draw."""
    return int(sha256_text(f"{seed}/{draw}")[:7], 16) if draw else seed


class StreamSettings(Settings):
    """Everything about a stream of tasks but the model, the tasks and the output directory."""

    GROUP: ClassVar[str] = "Baselines and controls"
    LATER: ClassVar[frozenset[str]] = frozenset({"draw", "eval_share", "eval_every", "patience", "keep_best"})

    method: MethodName = setting(
        "trace", "What is trained. " + "; ".join(f"{name}: {what}" for name, what in METHODS.items()) + ".",
        group="Training", common=True,
    )  # fmt: skip
    train: InstanceOf[TrainSettings] = setting(paper_training, "The training of each task.")
    max_length: Length = setting(1024, LONGEST, metavar="TOKENS", group="Data", common=True)
    too_long: TooLong = setting("cut", WHEN_TOO_LONG, group="Data")
    order: Texts = setting(
        (), "Order of the tasks. Default: that of the file.", metavar="TASK,…", group="Data", common=True,
    )  # fmt: skip
    eval_share: Annotated[float, Gt(0), Lt(1)] | None = setting(
        None, "Hold out this share of the records of each task, and evaluate on them during training. Tasks with "
        "eval_data or eval_split in stream.yaml keep theirs.", group="Evaluation", metavar="SHARE",
    )  # fmt: skip
    eval_every: Count | None = setting(
        None, "Steps between evaluations on held-out records. Default: an epoch.", group="Evaluation"
    )
    patience: Count | None = setting(
        None, "Stop training on a task after this many evaluations without a lower loss (early_stopping_patience of "
        "transformers).", group="Evaluation",
    )  # fmt: skip
    keep_best: bool = setting(
        False, "Keep the weights of the evaluation with the lowest loss, not the last (load_best_model_at_end of "
        "transformers).", group="Evaluation",
    )  # fmt: skip
    save_dtype: Literal["stored", "float32"] = setting(
        "stored", "Save trained tensors in the number format of the base or in float32.", group="Output"
    )
    lora_rank: Count = setting(8, "lora: rank of the adapters (A.4).")
    lora_alpha: Annotated[float, Gt(0)] = setting(16.0, "lora: alpha of the adapters (A.4).")
    adapter: Literal["carry", "merge"] = setting(
        "carry", "lora: keep one adapter through all tasks, or merge it into the model after each."
    )
    special: str | None = setting(None, "dmt: the task trained last. Default: the last of the stream.", metavar="TASK")
    replay_share: Share = setting(
        1 / 256, "dmt: share of the other tasks' examples replayed with it (Dong et al., 2024: 1/256)."
    )
    control_unit: Literal["tensors", "elements"] | None = setting(
        None, "random: draw as many tensors as the core set has, or as many parameters. Default: what its ratio counts."
    )
    draw: Seed = setting(0, "random, shuffled: which of the draws of a seed; the order of the examples stays.")

    def contradictions(self) -> list[str]:
        contradicting = self.special is not None and self.method != "dmt"
        return [f"special: {self.special!r} is for method dmt only"] * contradicting

    @property
    def control_seed(self) -> int:
        return seed_of_draw(self.train.seed, self.draw)


class StreamTask(TaskSpec):
    """One task of a stream: `core` is its core file, relative to the stream's file, `eval_data` or `eval_split` (of the
    hub's data set) are held-out records of the same fields, on which it is evaluated while it trains."""

    core: str | None = None
    eval_data: str | None = None
    eval_split: str | None = None

    @property
    def held_out(self) -> StreamTask | None:
        if self.eval_data is None and self.eval_split is None:
            return None
        other: dict[str, Any] = {"data": self.eval_data or self.data, "max_examples": None}
        if self.eval_data not in (None, self.data):
            other |= {"subset": None, "revision": None, "split": None}
        return self.model_copy(update=other | ({"split": self.eval_split} if self.eval_split else {}))

    @model_validator(mode="after")
    def _split_of_the_hub(self) -> Self:
        if self.eval_split and self.held_out and self.held_out.builder:
            raise ValueError(f"eval_split: only for hub data sets; {self.held_out.data} is a local file")
        return self

    @classmethod
    def local_files(cls, item: Mapping[str, Any]) -> dict[str, str]:
        found, core, other = dict(super().local_files(item)), item.get("core"), item.get("eval_data")
        if isinstance(other, str):
            found |= dict.fromkeys(["eval_data"] * len(super().local_files({"data": other})), other)
        return {**found, **({"core": core} if isinstance(core, str) else {})}


def load_stream(path: Path | str) -> tuple[StreamTask, ...]:
    return load_tasks(path, StreamTask)


class EvaluationRecord(Strict):
    """The loss on held-out records after a step, of each task and over all their supervised tokens."""

    step: int
    losses: dict[str, float]
    loss: float


class StageRecord(Strict):
    """One finished stage.

    `tasks` are those whose examples took part; `mask_sha256` is that of what was trained, `data_sha256` of all token
    ids and labels. `losses` are of each step, mean cross-entropy in nats before the step; `kept_step` is the step whose
    weights the patch has, if not the last."""

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
    """`stream.json`: the finished stages of a stream, in order; `complete` once the tuned model is proved."""

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
