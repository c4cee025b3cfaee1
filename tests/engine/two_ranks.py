"""Started twice by a launcher: trains in many ways, one after the other, and writes what became of each tensor.

    torchrun --nproc_per_node 2 -m tests.engine.two_ranks OUT FAMILY=MODEL …

Writes `OUT/results-RANK.json` and, from the first rank, `OUT/NAME.safetensors`: what each training trained.
"""

import gc
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import load_file, save_file

from tests.engine.made_up import base_of, make_mask, make_task, run
from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine import checkpointing, deepspeed_json, engine
from trace_transfer.engine.batches import HeldOut
from trace_transfer.engine.checkpointing import read_evaluations
from trace_transfer.engine.loading import BaseModel, StartingPoint
from trace_transfer.engine.loop import Run, TrainResult
from trace_transfer.errors import TrainingError
from trace_transfer.stopping import StopRequested, StopSignal

WHOLE = {  # full fine-tuning of a tied model
    "zero0": {"zero": 0},
    "zero1": {"zero": 1, "precision": "bfloat16"},
    "zero2": {"zero": 2},
    "zero3": {"zero": 3, "gradient_checkpointing": True},
}
GROUPS = {"learning_rate_of": {"*.mlp.*": 1e-2}, "no_decay": ("*norm*",), "weight_decay": 1.0}
OPTIMIZERS = {
    "muon": {"zero": 0, "optimizer": "muon", **GROUPS},
    "sgd": {"zero": 2, "optimizer": "sgd", "optimizer_args": {"momentum": 0.9}, **GROUPS},
}
RESUMED = ("zero1", "zero3", "muon")
HELD_OUT = HeldOut((make_task(5, seed=11, name="law"), make_task(4, seed=12, name="math")), every=2)
TRAINED = ("model.layers.1.mlp.down_proj.weight", "model.norm.weight", "model.layers.2.self_attn.k_proj.weight")

PRECISIONS = {"llama": "bfloat16", "qwen2": "float32"}  # untied; tied and with biases
MATRIX = [(family, zero) for family in PRECISIONS for zero in range(4)]
OFFLOADS = {  # name → settings; each is stopped after its first step and gone on from
    f"offload-{offload}-zero{zero}": {"zero": zero, "precision": "bfloat16", "offload": offload}
    for offload, zero in (("optimizer", 3), ("parameters", 3))
}
OPTIONS = {
    "learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.05, "warmup": 0.0, "batch_size": 4,
    "micro_batch_size": 2,
}  # fmt: skip
RANK = int(os.environ.get("RANK", "0"))


@contextmanager
def instead(owner, name, made):
    """Another function in place of one, made of it."""
    before = getattr(owner, name)
    setattr(owner, name, made(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def looked_at(look):
    """Engines are looked at before they are closed."""
    with instead(engine.Engine, "close", lambda close: lambda self: (look(self), close(self))[1]):
        yield


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    as_integers = {2: torch.int16, 4: torch.int32}[first.element_size()]
    return first.dtype == second.dtype and torch.equal(first.view(as_integers), second.view(as_integers))


def train(start: StartingPoint, out: Path, name: str, **options) -> tuple[TrainResult, dict[str, torch.Tensor]]:
    """Train; what the first rank got is read by all of them."""
    file = out / f"{name}.safetensors"
    options = {"data": make_task(7), "finish": lambda values: save_file(dict(values), file), **options}
    result, _ = run(start, out / name, **options)
    gc.freeze()  # DeepSpeed collects garbage many times while it is built
    return result, load_file(file)


def stopped_and_gone_on(base: BaseModel, out: Path, name: str, options: dict[str, object]) -> dict[str, object]:
    """A training, and the same one told on the last rank to stop after its first step, and run again."""
    seen: dict[str, object] = {}
    options = {**OPTIONS, **options, "mask": make_mask(base.inventory)}

    def look(built):
        offloaded = [built.deepspeed.zero_use_cpu_optimizer(), built.deepspeed.zero_cpu_offload()]
        seen["offloaded"] = [*offloaded, built.deepspeed.zero_offload_param() is not None]
        seen["basic"] = type(built.deepspeed.basic_optimizer).__name__

    with looked_at(look):
        _, whole = train(base, out, f"{name}-whole", **options)
    stop, said = StopSignal(), "nothing"

    def ask_and_step(one_step):
        def step(self, number, batch):
            stop.requested = RANK == 1 and number == 0
            return one_step(self, number, batch)

        return step

    with instead(Run, "one_step", ask_and_step):
        try:
            train(base, out, name, stop=stop, **options)
        except StopRequested as stopped:
            said = str(stopped)
    left = sorted(path.name for path in (out / name / "checkpoint").iterdir())
    _, again = train(base, out, name, **options)
    different = [key for key in whole if not same_bits(whole[key], again[key])]
    return {**seen, "said": said, "left": left, "different": different}


def whole(base: BaseModel, out: Path, results: dict[str, object]) -> None:
    """Full fine-tuning, undisturbed and stopped after the third step; the second with evaluations."""

    def write_and_stop(write):
        def stopping(directory, identity, done, *rest):
            path = write(directory, identity, done, *rest)
            if len(done) == 3:
                raise TrainingError("stopped here")
            return path

        return stopping

    for name, options in (WHOLE | OPTIMIZERS).items():
        result, _ = train(base, out, name, data=make_task(), epochs=2, **options)
        results[name] = {"losses": result.losses, "tokens": sum(step.tokens for step in result.steps)}
    for case in RESUMED:
        name = f"{case}-resumed"
        options = {"data": make_task(), "epochs": 2, "held_out": HELD_OUT, **(WHOLE | OPTIMIZERS)[case]}
        with instead(checkpointing, "write", write_and_stop):
            try:
                run(base, out / name, checkpoint_minutes=0, **options)
            except TrainingError as error:
                results[name] = str(error)
        result, _ = train(base, out, name, **options)
        assert result.evaluations == read_evaluations(out / name / "eval.csv")  # on both ranks
    mask = Mask(dict.fromkeys(TRAINED))  # the last step has a single micro-batch for two ranks
    train(base, out, "masked", data=make_task(9), zero=3, mask=mask, weight_decay=0.1)


def main(out: Path, models: dict[str, Path]) -> None:
    results: dict[str, object] = {}
    deepspeed_json.PERSISTENT = 0  # or nothing of a tiny model would be partitioned
    whole(base_of(models["tied"]), out, results)
    for family, zero in MATRIX:
        base, case = base_of(models[family]), f"{family}-{zero}"
        options = {"zero": zero, "precision": PRECISIONS[family], "mask": make_mask(base.inventory), **OPTIONS}
        results[case] = train(base, out, case, **options)[0].losses
    base = base_of(models["llama"])
    for name, options in OFFLOADS.items():
        results[name] = stopped_and_gone_on(base, out, name, options)
    (out / f"results-{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), {name: Path(path) for name, _, path in (one.partition("=") for one in sys.argv[2:])})
