"""Speed on one device: reading a model, CKA, Fisher information, training. `python -m tests.gpu.measuring`.

Weights are random, of the shape of Qwen2.5-1.5B, and written to a temporary directory. `--device cpu --small` sees that
it works. Shares of the peak are of what a large matrix product (or a copy from pinned memory) reaches on this machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.benchmarks import streaming
from tests.benchmarks.table import show
from tests.core_files import core_of
from tests.tiny_models import build_tokenizer
from trace_transfer.data.examples import Example
from trace_transfer.data.probe import Reading
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.identification.fisher import fisher_information
from trace_transfer.models.checkpoints import SafetensorsCheckpoint
from trace_transfer.models.sources import numel
from trace_transfer.training.settings import StreamSettings
from trace_transfer.training.streaming import plan_stream, run_stream
from trace_transfer.transfer.mapping import measure_speed
from trace_transfer.transfer.probing import LayerRows, read_layers, unit_rows
from trace_transfer.transfer.similarity import GramStack, debiased_cka, pack_layer, packed_length

# What is trained: a name, the method, whether the core set is of rows, the ZeRO stage.
TRAININGS = [
    ("masked", "trace", False, 0), ("masked", "trace", False, 1), ("masked", "trace", False, 2),
    ("masked", "trace", False, 3), ("rows", "trace", True, 0), ("full", "full", False, 0), ("LoRA", "lora", False, 0),
]  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Of the model (fields of its config) and of what it reads."""

    model: dict[str, int]
    num_texts: int
    num_tokens: int
    num_examples: int
    num_words: int


FULL = Size(streaming.FULL, 256, 128, 96, 300)
SMALL = Size(streaming.SMALL | {"num_hidden_layers": 3}, 20, 16, 20, 12)


@contextmanager
def peak_of(device: str) -> Iterator[list[int]]:
    """Bytes that a block needed above what was there before: of the GPU's memory, of this process's elsewhere."""
    found: list[int] = []
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        yield found
        torch.cuda.synchronize()
        found.append(torch.cuda.max_memory_allocated() - start)
    else:
        with streaming.watched() as memory:
            yield found
        found.append(memory.own)


def limits(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Operations per second, and bytes per second from the host's memory to the device's."""
    block = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=device.startswith("cuda"))
    there = torch.empty_like(block, device=device)
    there.copy_(block)
    start = time.perf_counter()
    there.copy_(block)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    side = 8192 if device.startswith("cuda") else 512
    return {"flops": measure_speed(device, dtype, side), "copying": len(block) / (time.perf_counter() - start)}


def reading_of(size: Size) -> tuple[Reading, torch.Tensor, list[int]]:
    """Random texts with eight rows each, the text of each row, and the sizes of minibatches."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, size.model["vocab_size"], (size.num_texts, size.num_tokens), generator=generator)
    places = torch.linspace(1, size.num_tokens - 1, 8).long().repeat_interleave(size.num_texts)
    reading = Reading(tuple(map(tuple, ids.tolist())), torch.stack([places, places + 1], dim=1))
    return reading, torch.arange(size.num_texts).repeat(8), [size.num_texts] * 8


def gram_stack(directory: Path, size: Size, device: str, dtype: torch.dtype) -> tuple[GramStack, float, int]:
    """Gram matrices of a model's layers as `map` makes them, seconds, and bytes read."""
    from transformers import AutoConfig

    reading, texts_R, sizes = reading_of(size)
    packed_LP = torch.zeros(size.model["num_hidden_layers"], sum(map(packed_length, sizes)))

    def consume(rows: LayerRows) -> None:
        pack_layer(unit_rows(rows.stream), sizes, packed_LP[rows.layer])

    checkpoint, start = SafetensorsCheckpoint(directory), time.perf_counter()
    read_layers(
        AutoConfig.from_pretrained(directory), checkpoint, "model.layers", reading, texts_R, consume, name="random",
        batch_size=64, device=device, dtype=dtype,
    )  # fmt: skip
    minibatches = tuple(torch.arange(size.num_texts) for _ in sizes)
    return GramStack(packed_LP, minibatches), time.perf_counter() - start, checkpoint.bytes_read


def cka_error(directory: Path, size: Size, device: str) -> float:
    """The largest difference of a similarity when the model is run in bfloat16."""
    exact, half = (gram_stack(directory, size, device, dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    return float((debiased_cka(exact, exact) - debiased_cka(half, half)).abs().max())


def fisher(directory: Path, size: Size, device: str) -> dict[str, float]:
    """Seconds and bytes of Fisher information, beside those of an ordinary backward pass over the same texts."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(device).eval()
    ids = reading_of(size)[0].ids[:16]
    examples = [Example(f"text:{number}", one, one) for number, one in enumerate(ids)]
    ids_bt, found = torch.tensor(ids, device=device), {}

    def ordinary() -> None:
        model(input_ids=ids_bt, labels=ids_bt, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    def ours() -> None:
        fisher_information(model, examples, layer_path="model.layers")

    for name, work in (("ordinary", ordinary), ("fisher", ours)):
        work()  # what is built once
        with peak_of(device) as peak:
            start = time.perf_counter()
            work()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            found[name] = time.perf_counter() - start
        found[f"{name} bytes"] = peak[0]
    return found


def write_training(directory: Path, model: Path, size: Size, rows: bool) -> Path:
    """A stream of one task whose core set is every fifth layer, or some rows of all layers; returns `stream.yaml`."""
    directory.mkdir(parents=True)
    words = ["a", "sum", "of", "two", "numbers", "is", "seven", "and", "then"]
    records = [
        {"prompt": f"What is {number}?", "completion": " ".join(words[(number * k) % 9] for k in range(size.num_words))}
        for number in range(size.num_examples)
    ]
    (directory / "math.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    shapes = open_model(model, load_families()).anatomy.inventory.shapes
    products = [name for name in shapes if name.endswith("proj.weight")]
    kept = {name: ((0, shapes[name][0] // 5),) if rows else None for name in (products if rows else products[::5])}
    core_of(model, directory / "math.core.json", kept)
    (directory / "stream.yaml").write_text("tasks: [{name: math, data: math.jsonl, core: math.core.json}]\n")
    return directory / "stream.yaml"


class Clock:
    """A reporter that notes when each step ended."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Any]:
        training = description.startswith("training")
        yield lambda *_: self.moments.append(time.perf_counter()) if training else None

    def note(self, message: str) -> None: ...


def training(model: Path, place: Path, size: Size, way: tuple[str, str, bool, int], device: str) -> dict[str, float]:
    """Train through the whole of `train`, its proof included: speed, memory, and what its plan says of that."""
    from trace_transfer.stopping import StopSignal

    _, method, rows, zero = way
    stream = write_training(place / "data", model, size, rows)
    settings = StreamSettings.of(
        method=method, zero=zero, epochs=1, batch_size=4, micro_batch_size=4, checkpoint_minutes=1e9, max_length=512
    )
    plan, clock = plan_stream(model, stream, settings=settings, rules=(), out=place / "out"), Clock()
    planned = plan.estimate(0)
    with peak_of(device) as peak:
        done = run_stream(plan, clock, StopSignal())
    assert done is not None and done.verification.ok
    gaps = [after - before for before, after in zip(clock.moments[1:], clock.moments[2:], strict=False)]
    tokens = sum(len(one.input_ids) for one in plan.stages[0].data.examples) / planned.num_steps
    total = planned.parameters + planned.gradients + planned.optimizer + planned.activations + planned.buffers
    shapes, mask = plan.base.anatomy.inventory.shapes, plan.mask(0)
    through = sum(numel(shape) for name, shape in shapes.items() if "embed" not in name)
    speed = tokens / median(gaps or [1.0])
    work = speed * (4 * through + 2 * mask.numel(shapes))  # there and back, and gradients; without attention
    return {"tokens": speed, "flops": work, "bytes": peak[0], "planned": total}


def in_child(way: int, arguments: argparse.Namespace, directory: Path) -> dict[str, float]:
    """One training in a process of its own: DeepSpeed keeps memory to the end."""
    command = [sys.executable, "-m", "tests.gpu.measuring", "--device", arguments.device, "--training", str(way)]
    command += ["--model", str(directory), *(["--small"] if arguments.small else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu")
    parser.add_argument("--small", action="store_true", help="a fraction of the size, to see that it works")
    parser.add_argument("--training", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size, device = SMALL if arguments.small else FULL, arguments.device
    if arguments.training is not None:
        with tempfile.TemporaryDirectory() as place:
            way = TRAININGS[arguments.training]
            print(json.dumps(training(arguments.model, Path(place), size, way, device)))
        return
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    machine = limits(device, dtype)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    print(f"{name}: {machine['flops'] / 1e12:.2f} TFLOP/s, {machine['copying'] / 1e9:.1f} GB/s from the host")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        streaming.write_checkpoint(directory, size.model)
        build_tokenizer("prose").save_pretrained(directory)
        _, first, _ = gram_stack(directory, size, device, dtype)
        _, seconds, read = gram_stack(directory, size, device, dtype)
        print(
            f"map, one model: {read / 1e9:.2f} GB in {seconds:.1f} s ({first:.1f} s the first time), "
            f"{read / seconds / 1e9:.2f} GB/s, {read / seconds / machine['copying']:.0%} of copying alone"
        )
        print(f"CKA in bfloat16: differs by {cka_error(directory, size, device):.1e} at most")
        of = fisher(directory, size, device)
        print(
            f"Fisher information of 16 texts: {of['fisher']:.2f} s, {of['fisher'] / of['ordinary']:.2f} of a backward "
            f"pass; {of['fisher bytes'] / 1e9:.2f} GB above the model, {of['fisher bytes'] / of['ordinary bytes']:.2f}"
        )
        rows = []
        for number, (label, _, _, zero) in enumerate(TRAININGS):
            one = in_child(number, arguments, directory)
            rows.append((
                label, str(zero), f"{one['tokens']:,.0f}", f"{one['flops'] / machine['flops']:.1%}",
                f"{one['bytes'] / 1e9:.2f} GB", f"{one['planned'] / 1e9:.2f} GB",
            ))  # fmt: skip
    show("training", rows, ("", "ZeRO", "tokens/s", "of peak", "peak memory", "planned"))


if __name__ == "__main__":
    main()
