"""Started twice by a launcher: trains in several ways, one after the other, and writes what came out.

    torchrun --nproc_per_node 2 -m tests.engine.two_ranks MODEL OUT

Writes, from the first rank, `OUT/results.json` and `OUT/NAME.safetensors`.
"""

import gc
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import save_file

from tests.engine.made_up import make_task, run
from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine import checkpointing, engine
from trace_transfer.engine.held_out import HeldOut, read_csv
from trace_transfer.errors import TrainingError

CASES = {
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
RESUMED = ("zero0", "zero1", "zero3", *OPTIMIZERS)
HELD_OUT = HeldOut((make_task(5, seed=11, name="law"), make_task(4, seed=12, name="math")), every=2)
TRAINED = ("model.layers.1.mlp.down_proj.weight", "model.norm.weight", "model.layers.2.self_attn.k_proj.weight")


def seen(built: engine.Engine) -> dict[str, object]:
    """What DeepSpeed says of itself, and how much of the model this rank holds."""
    basic = type(built.deepspeed.basic_optimizer)
    return {
        "engine": type(built.deepspeed).__name__,
        "stage": int(built.deepspeed.zero_optimization_stage()),
        "optimizer": type(built.deepspeed.optimizer).__name__,
        "basic": f"{basic.__module__}.{basic.__name__}",
        "held": sum(parameter.numel() for parameter in built.deepspeed.module.parameters()),
    }


def write_and_stop(directory, identity, done, *rest):
    """As `checkpointing.write`, but after the third step the training fails."""
    path = WRITE(directory, identity, done, *rest)
    if len(done) == 3:
        raise TrainingError("stopped here")
    return path


WRITE, BUILD = checkpointing.write, engine.Engine.__init__


def main(model: Path, out: Path) -> None:
    results: dict[str, dict[str, object]] = {}

    def build_and_look(self, *arguments):
        BUILD(self, *arguments)
        results[name]["deepspeed"] = seen(self)

    engine.PERSISTENT = 0  # or nothing of a tiny model would be partitioned
    engine.Engine.__init__ = build_and_look
    for name, options in (CASES | OPTIMIZERS).items():
        results[name] = {}
        result, values = run(model, out / name, epochs=2, **options)
        results[name] |= {"losses": result.losses, "tokens": result.tokens}
        gc.freeze()  # DeepSpeed collects garbage many times while it is built, and all libraries are loaded now
        keep(out, name, values)
    for case in RESUMED:  # with evaluations, which change no bit
        name, options = f"{case}-resumed", {"epochs": 2, "held_out": HELD_OUT, **(CASES | OPTIMIZERS)[case]}
        results[name] = {}
        checkpointing.write = write_and_stop
        try:
            run(model, out / name, checkpoint_minutes=0, **options)
        except TrainingError as error:
            results[name]["stopped"] = str(error)
        checkpointing.write = WRITE
        result, values = run(model, out / name, **options)
        assert result.evaluations == read_csv(out / name / "eval.csv")  # on both ranks
        keep(out, name, values)
    name = "masked"
    results[name] = {}
    data = make_task(9)  # the last step has a single micro-batch for two ranks
    keep(out, name, run(model, out / name, data, zero=3, mask=Mask(dict.fromkeys(TRAINED)), weight_decay=0.1)[1])
    if os.environ["RANK"] == "0":
        (out / "results.json").write_text(json.dumps(results))


def keep(out: Path, name: str, values: dict[str, torch.Tensor]) -> None:
    if values:  # on the first rank
        save_file(values, out / f"{name}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
