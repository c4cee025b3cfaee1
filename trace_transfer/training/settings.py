"""How a stream of tasks is fine-tuned: its settings, and `stream.yaml`, its tasks in order with their core files.

    tasks:
      - name: math
        data: gsm8k.jsonl
        fields: {prompt: question, completion: answer}
        core: cores/math.core.json      # beside this file; as identified on this model, or carried over to it by `map`

`stream.yaml` is a `tasks.yaml` with one more key, so that any `tasks.yaml` is a stream for a method without core sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Gt
from pydantic import InstanceOf

from trace_transfer.data.tasks_file import TaskSpec, load_list, locate
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.files import sha256_text
from trace_transfer.identification.settings import LONGEST, WHEN_TOO_LONG, Length, TooLong
from trace_transfer.settings import Count, Seed, Settings, Share, Texts, setting

METHODS = {
    "trace": "only the core set of each task (the method)",
    "full": "everything, task after task",
    "joint": "everything, all tasks mixed",
    "lora": "adapters on all layers, task after task",
    "dmt": "everything: all tasks but one mixed, then that one with a few examples of the others",
    "random": "a random set of the core set's size (control)",
    "random-within": "of each tensor as many random rows or parameters as its core set has (control)",
    "norms-random": "all norms, and random entries up to the core set's size (control)",
    "head-norms-random": "head and norms, and random entries up to the core set's size (control)",
    "shuffled": "the core set with its layers shuffled (control)",
    "first": "all of the first layers, as many as the core set's size (control)",
    "last": "all of the last layers, as many as the core set's size (control)",
}
CONTROLS = ("random", "random-within", "norms-random", "head-norms-random", "shuffled", "first", "last")
NEED_CORE = ("trace", *CONTROLS)
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
    LATER: ClassVar[frozenset[str]] = frozenset({"draw"})

    method: MethodName = setting(
        "trace",
        "What is trained. " + "; ".join(f"{name}: {what}" for name, what in METHODS.items()) + ".",
        group="Training",
        common=True,
    )
    train: InstanceOf[TrainSettings] = setting(paper_training, "The training of each task.")
    max_length: Length = setting(1024, LONGEST, metavar="TOKENS", group="Data", common=True)
    too_long: TooLong = setting("cut", WHEN_TOO_LONG, group="Data")
    order: Texts = setting(
        (), "Order of the tasks. Default: that of the file.", metavar="TASK,…", group="Data", common=True,
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
    control_unit: Literal["tensors", "elements"] = setting(
        "tensors", "random: draw as many tensors as the core set has, or as many parameters."
    )
    draw: Seed = setting(0, "random, shuffled: which of the draws of a seed; the order of the examples stays.")

    def contradictions(self) -> list[str]:
        contradicting = self.special is not None and self.method != "dmt"
        return [f"special: {self.special!r} is for method dmt only"] * contradicting

    @property
    def control_seed(self) -> int:
        """Draws random controls."""
        return seed_of_draw(self.train.seed, self.draw)

    @property
    def needs_core(self) -> bool:
        """Whether each task needs a core file."""
        return self.method in NEED_CORE


class StreamTask(TaskSpec):
    """One task of a stream.

    Attributes:
        core: its core file, relative to the stream's file; None where the method needs none.
    """

    core: str | None = None

    @classmethod
    def local_files(cls, item: Mapping[str, Any]) -> dict[str, str]:
        core = item.get("core")
        return {**super().local_files(item), **({"core": core} if isinstance(core, str) else {})}


def load_stream(path: Path | str) -> tuple[StreamTask, ...]:
    """Read `stream.yaml`.

    Raises:
        TaskError: not there, not YAML, no tasks, unknown keys, two tasks with one name, missing data or core files: all
            that is wrong with the file at once.
    """
    return load_list(path, StreamTask)


def core_file(task: StreamTask, base_directory: Path | str) -> Path | None:
    """Where a task's core file lies, if it names one."""
    return None if task.core is None else locate(task.core, base_directory)
