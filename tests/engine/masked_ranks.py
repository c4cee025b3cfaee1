"""Started twice by a launcher: masked trainings in every way, one after the other, and what became of each tensor.

    torchrun --nproc_per_node 2 -m tests.engine.masked_ranks OUT FAMILY=MODEL …

Writes `OUT/results-RANK.json` and, from the first rank, `OUT/NAME.safetensors`: what each training trained.
"""

import gc
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import deepspeed
import torch
from safetensors.torch import load_file, save_file

from tests.engine.made_up import make_task, settings
from tests.engine.masks import Patched, make_mask
from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine import engine, loop
from trace_transfer.engine.engine import gathered
from trace_transfer.engine.loading import BaseModel, StartingPoint
from trace_transfer.engine.loop import Run, TrainResult
from trace_transfer.engine.slices import outside, taken
from trace_transfer.errors import ModelError, TrainingError
from trace_transfer.models.sources import ModelSource
from trace_transfer.stopping import StopRequested, StopSignal

PRECISIONS = {"llama": ("float32", "bfloat16"), "qwen2": ("float32",)}  # untied; tied and with biases
MATRIX = [(family, zero, one) for family, several in PRECISIONS.items() for zero in range(4) for one in several]
OFFLOADS = {  # name → settings; each is stopped after its first step and gone on from
    f"offload-{offload}-zero{zero}-{precision}": {"zero": zero, "precision": precision, "offload": offload}
    for offload, zero, precision in (
        ("optimizer", 2, "float32"), ("optimizer", 3, "bfloat16"), ("parameters", 3, "bfloat16"),
    )
}  # fmt: skip
OPTIONS = {
    "learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.05, "warmup": 0.0, "batch_size": 4,
    "micro_batch_size": 2,
}  # fmt: skip
RANK = int(os.environ.get("RANK", "0"))
CLOSE = engine.Engine.close


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    as_integers = {2: torch.int16, 4: torch.int32}[first.element_size()]
    return first.dtype == second.dtype and torch.equal(first.view(as_integers), second.view(as_integers))


def frozen_that_moved(built: engine.Engine, expected: dict[str, torch.Tensor], mask: Mask) -> list[str]:
    """Tensors that are not trained as a whole, and differ outside of their part from what the training began with."""
    moved, seen = [], set()
    for name, parameter in built.deepspeed.module.named_parameters():
        name = name.replace("parametrizations.", "").removesuffix(".original")
        if name.endswith(".values") or mask.parts.get(name, "frozen") is None:
            continue
        seen.add(name)
        with gathered(parameter):
            part = mask.parts.get(name)
            if not same_bits(outside(parameter.detach(), part), outside(expected[name], part)):
                moved.append(name)
    whole = {name for name, part in mask.parts.items() if part is None}
    assert seen == expected.keys() - whole, seen ^ (expected.keys() - whole)
    return moved


def core_that_stayed(values: dict[str, torch.Tensor], start: dict[str, torch.Tensor], mask: Mask) -> list[str]:
    """Parts of which not every row (or column, in a slice of columns) moved."""
    stayed = []
    for name, value in values.items():
        part = mask.parts[name]
        moved = (value != taken(start[name], part)).movedim(part.dim if part else 0, 0)
        if not moved.reshape(len(moved), -1).any(1).all():
            stayed.append(name)
    return stayed


def train_two(model: Path, out: Path, zero: int, precision: str) -> list[dict[str, object]]:
    """Two tasks one after another, each with a mask and an engine of its own."""
    base = BaseModel(ModelSource.parse(model))
    start, found = Patched(base, Mask({}), {}), []
    for number in range(2):
        mask, name = make_mask(base.inventory, 2 * number), f"{model.name}-{zero}-{precision}-{number}"
        exact = {n: p.detach() for n, p in start.load(torch.float32).named_parameters()}
        expected = {n: value.to(getattr(torch, precision)) for n, value in exact.items()}
        moved: list[str] = []

        def look_and_close(built, moved=moved, expected=expected, mask=mask):
            moved.extend(frozen_that_moved(built, expected, mask))
            CLOSE(built)

        engine.Engine.close = look_and_close
        result, values = train(start, out, name, mask, seed=number, zero=zero, precision=precision)
        engine.Engine.close = CLOSE
        stayed = core_that_stayed(values, exact, mask)
        found.append({"losses": result.losses, "moved": moved, "stayed": stayed, "core": sorted(mask.parts)})
        start = Patched(base, mask, values)
    return found


def train(
    start: StartingPoint, out: Path, name: str, mask: Mask, stop: StopSignal | None = None, seed: int = 0, **options
) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    """Train; what the first rank got is read by all of them."""
    result = loop.train(
        start, make_task(7, seed=seed), settings(**OPTIONS, **options), mask=mask, directory=out / name,
        finish=lambda values: save_file(dict(values), out / f"{name}.safetensors"), stop=stop,
    )  # fmt: skip
    return result, load_file(out / f"{name}.safetensors")


def stopped_and_gone_on(model: Path, out: Path, name: str, **options: object) -> dict[str, object]:
    """A training, and the same one told on the last rank to stop after its first step, and run again."""
    base = BaseModel(ModelSource.parse(model))
    mask, seen = make_mask(base.inventory, 0), {}

    def look_and_close(built):
        seen["offloaded"] = [built.deepspeed.zero_use_cpu_optimizer(), built.deepspeed.zero_cpu_offload()]
        seen["offloaded"].append(built.deepspeed.zero_offload_param() is not None)
        seen["basic"] = type(built.deepspeed.basic_optimizer).__name__
        CLOSE(built)

    engine.Engine.close = look_and_close
    _, whole = train(base, out, f"{name}-whole", mask, **options)
    engine.Engine.close = CLOSE
    stop, one_step = StopSignal(), Run.one_step

    def ask_and_step(self, number, batch):
        stop.requested = RANK == 1 and number == 0
        return one_step(self, number, batch)

    Run.one_step = ask_and_step
    said = "nothing"
    try:
        train(base, out, name, mask, stop, **options)
    except StopRequested as stopped:
        said = str(stopped)
    Run.one_step = one_step
    left = sorted(path.name for path in (out / name / "checkpoint").iterdir())
    _, again = train(base, out, name, mask, **options)
    different = [key for key in whole if not same_bits(whole[key], again[key])]
    return {**seen, "said": said, "left": left, "different": different}


def failing_finish(model: Path, out: Path) -> str:
    """The first rank cannot keep what was trained."""

    def fail(values):
        next(values)
        raise OSError("no room for the patch")

    try:
        loop.train(
            BaseModel(ModelSource.parse(model)), make_task(3), settings(**OPTIONS), directory=out / "failing",
            finish=fail,
        )  # fmt: skip
    except (OSError, TrainingError) as error:
        return str(error)
    return "nothing"


def failing_read(model: Path, out: Path) -> str:
    """The first rank cannot read the third tensor."""
    read = BaseModel.values

    def fail(self, names, dtype):
        for number, pair in enumerate(read(self, names, dtype)):
            if number == 2:
                raise ModelError("the disk went away")
            yield pair

    BaseModel.values = fail
    try:
        loop.train(
            BaseModel(ModelSource.parse(model)), make_task(3), settings(**OPTIONS, zero=3),
            directory=out / "unread", finish=dict,
        )  # fmt: skip
    except ModelError as error:
        return str(error)
    finally:
        BaseModel.values = read
    return "nothing"


def elements_alive() -> int:
    """Of all float tensors in this process that have memory, but those before the last `gc.freeze`."""
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.is_floating_point() and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes() // thing.element_size()
    return sum(storages.values())


def peak_of_loading(model: Path, out: Path, zero: int) -> dict[str, int]:
    """Most elements that this rank held while the model was loaded, looked at before each one was partitioned."""
    convert, load, peak = deepspeed.zero.Init._zero_init_param, BaseModel.load, [0]

    def look_and_convert(self, parameter):
        peak[0] = max(peak[0], elements_alive())
        convert(self, parameter)

    def load_and_look(self, dtype):
        loaded = load(self, dtype)
        peak[0] = max(peak[0], elements_alive())
        return loaded

    gc.collect()
    gc.freeze()
    deepspeed.zero.Init._zero_init_param, BaseModel.load = look_and_convert, load_and_look
    base = BaseModel(ModelSource.parse(model))
    loop.train(
        base, make_task(3), settings(**OPTIONS, zero=zero), directory=out / f"peak-{zero}", finish=lambda v: dict(v),
        mask=make_mask(base.inventory, 0),
    )  # fmt: skip
    deepspeed.zero.Init._zero_init_param, BaseModel.load = convert, load
    return {"peak": peak[0], "model": base.inventory.num_elements}


def main(out: Path, models: dict[str, Path]) -> None:
    results: dict[str, object] = {}
    engine.PERSISTENT = 0  # or nothing of a tiny model would be partitioned
    for family, zero, precision in MATRIX:
        results[f"{family}-{zero}-{precision}"] = train_two(models[family], out, zero, precision)
        gc.freeze()  # DeepSpeed collects garbage many times while it is built
    for zero in (2, 3):
        base = BaseModel(ModelSource.parse(models["qwen2"]))
        mask, name = make_mask(base.inventory, 0), f"qwen2-{zero}-recomputed"
        train(base, out, name, mask, zero=zero, precision="float32", gradient_checkpointing=True)
    llama = models["llama"]
    for name, options in OFFLOADS.items():
        results[name] = stopped_and_gone_on(llama, out, name, **options)
    results["failing finish"] = failing_finish(llama, out)
    results["failing read"] = failing_read(llama, out)
    results["peak"] = {zero: peak_of_loading(llama, out, zero) for zero in (2, 3)}
    (out / f"results-{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), {name: Path(path) for name, _, path in (one.partition("=") for one in sys.argv[2:])})
