"""Made-up tasks and trainings on them, for tests in this process and in others."""

import hashlib
from pathlib import Path

import torch

from trace_transfer.data.examples import IGNORED, Example, TaskData
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.loop import TrainResult, train
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.models.sources import ModelSource

SETTINGS = {"learning_rate": 3e-3, "batch_size": 8, "micro_batch_size": 3, "checkpoint_minutes": 60.0}


def make_task(num_examples: int = 21, seed: int = 0, name: str = "made-up", vocabulary: int = 500) -> TaskData:
    """Random tokens: texts of 5 to 24, of which 1 to all but one are answer."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    examples = []
    for number in range(num_examples):
        length = draw(5, 25)
        ids = tuple(torch.randint(1, vocabulary, (length,), generator=generator).tolist())
        prompt = draw(1, length)
        examples.append(Example(f"{name}:{number}", ids, (IGNORED,) * prompt + ids[prompt:]))
    digest = hashlib.sha256(repr([(e.input_ids, e.labels) for e in examples]).encode()).hexdigest()
    return TaskData(name, tuple(examples), num_examples, 0, 0, "plain", digest)


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(**{**SETTINGS, **changes})


def run(
    model: Path, directory: Path, data: TaskData | None = None, **options: object
) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    """Train; returns the result and the trained values. Options of `train` by name, all others are settings."""
    values: dict[str, torch.Tensor] = {}
    passed = {
        key: options.pop(key)
        for key in ("mask", "describe", "held_out", "stop", "reporter", "label", "finish")
        if key in options
    }
    result = train(
        BaseModel(ModelSource.parse(model)), data or make_task(), settings(**options), directory=directory,
        **{"finish": values.update, **passed},
    )  # fmt: skip
    return result, values
