"""Made-up tasks and masks, and trainings on them, for tests in this process and in others."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from trace_transfer.core_sets.masks import Chosen, Mask, Slice
from trace_transfer.data.examples import IGNORED, Example, TaskData
from trace_transfer.engine.batches import HeldOut, Plan
from trace_transfer.engine.loading import BaseModel, StartingPoint
from trace_transfer.engine.loop import TrainResult, train
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.engine.slices import shapes_of
from trace_transfer.models.sources import Inventory, ModelSource
from trace_transfer.progress import Silent
from trace_transfer.stopping import StopSignal

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


def make_mask(inventory: Inventory) -> Mask:
    """Rows of the embedding and of a matrix, columns of another, single parameters of a third, a part of a vector, and
    two whole tensors; sizes that two ranks do not divide."""
    embedding, *inner = inventory.shapes
    matrices = [name for name in inner if len(inventory.shapes[name]) == 2]
    vectors = [name for name in inner if len(inventory.shapes[name]) == 1]
    return Mask(
        {
            embedding: Slice(0, ((3, 17), (101, 102), (300, 400))),
            matrices[12]: Chosen(np.array([0, 1, 50, 51, 200, 777])),
            matrices[0]: Slice(0, ((1, 2), (5, 9))),
            matrices[4]: Slice(1, ((0, 3), (30, 31))),
            vectors[0]: Slice(0, ((2, 5),)),
            vectors[4]: None,
            matrices[8]: None,
        }
    )


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(**{**SETTINGS, **changes})


def base_of(model: Path) -> BaseModel:
    return BaseModel(ModelSource.parse(model))


def steps_of(data: TaskData, chosen: TrainSettings) -> list[list[Example]]:
    """The examples of each step, for a slow twin."""
    return [list(batch.examples) for batch in Plan(data, chosen).batches()]


def run(
    start: Path | StartingPoint, directory: Path, data: TaskData | None = None, **options: object
) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    """Train; returns the result and the trained values. Options of `train` by name, all others are settings."""
    values: dict[str, torch.Tensor] = {}
    data = data or make_task()
    start = base_of(start) if isinstance(start, Path) else start
    passed = {
        "finish": values.update, "describe": lambda name: (name, ()), "stop": StopSignal(), "reporter": Silent(),
        "label": data.task, "held_out": HeldOut(()),
    }  # fmt: skip
    passed |= {key: options.pop(key) for key in passed.keys() & options.keys()}
    mask = options.pop("mask", None) or Mask.everything(shapes_of(start.skeleton(torch.float32)))
    return train(start, data, settings(**options), mask, directory=directory, **passed), values
