"""A user's own DeepSpeed JSON beside the options of trace-transfer.

1. A key that the options decide (batch sizes, optimizer, precision, ZeRO stage, offloading, clipping) may be left out,
   be `"auto"` as in Hugging Face's integration, or say the same as the options (`_decided`).
2. A key that would change results is refused with its reason, unless it is switched off (`REFUSED`).
3. DeepSpeed gets and judges everything else; nested objects are merged key by key. There `"auto"` and `null` mean what
   trace-transfer would do without the key.

Names are dotted: `zero_optimization.stage`. The engine tells DeepSpeed an accumulation of 1 whatever the batch size is
(see `engine`), so the batch keys are compared with the options and never merged.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trace_transfer.engine.distributed import quiet
from trace_transfer.engine.optimizers import BETAS, EPS
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.text_formats import read_json_object

ZERO = "zero_optimization"
_PRECISION = "trains in bfloat16 or float32, which need no loss scaling: --precision"
_SUMS = "sums gradients in float32"
_ROUNDED = "must leave what is frozen bit-identical, and this rounds it"
_DATA = "decides itself which examples are read in which step"
_RANKS = "spreads data over the ranks, not the model, but for ZeRO"
_OWN = "uses the same optimizer wherever its state lies, so that offloading changes no result"
# Key, or the object that holds it → why not: "trace-transfer …".
REFUSED: Mapping[str, str] = {
    "fp16": _PRECISION, "amp": _PRECISION, "torch_autocast": _PRECISION,
    "bf16.immediate_grad_update": _SUMS,
    "bf16.bf16_master_weights_and_grads": "keeps float32 master weights, without which small steps are lost",
    "bf16.bf16_optimizer_states": "keeps float32 moments, without which small steps are lost",
    "data_types": _SUMS, "gradient_allreduce_op": "averages gradients over the ranks",
    "optimizer": "makes the optimizer itself: --optimizer, --optimizer-args",
    "scheduler": "has schedules of its own: --schedule, --schedule-args, --warmup",
    "elasticity": "fixes the batch size, so that results do not depend on the number of machines",
    "managed_gradient_accumulation": "says itself where a step ends",
    "compression_training": _ROUNDED, "weight_quantization": _ROUNDED, "quantize_training": _ROUNDED,
    "sparse_attention": "leaves the model's attention as it is", "progressive_layer_drop": "trains with all layers",
    "curriculum_learning": _DATA, "data_efficiency": _DATA,
    "pipeline": _RANKS, "tensor_parallel": _RANKS, "sequence_parallel_size": _RANKS, "expert_parallel": _RANKS,
    "compile": "does not compile models: that is not tested with masks",
    "zero_force_ds_cpu_optimizer": _OWN,
    f"{ZERO}.offload_optimizer.super_offload": _OWN, f"{ZERO}.offload_optimizer.ratio": _OWN,
    f"{ZERO}.zero_quantized_weights": "computes with the weights themselves, and this rounds them to 8 bits",
    f"{ZERO}.zero_quantized_nontrainable_weights": _ROUNDED, f"{ZERO}.zero_quantized_gradients": _SUMS,
    f"{ZERO}.zeropp_loco_param": _SUMS,
    f"{ZERO}.zenflow": "updates all of what is trained in every step, and ZenFlow delays a part",
}  # fmt: skip
# Values that change nothing, beside false.
HARMLESS: Mapping[str, Any] = {
    "gradient_allreduce_op": "mean", "sequence_parallel_size": 1, f"{ZERO}.offload_optimizer.ratio": 1.0,
}  # fmt: skip


def read_deepspeed_json(path: Path | str) -> Mapping[str, Any]:
    """A DeepSpeed configuration as it is written; nothing in it is judged here.

    Raises:
        UserError: it is not there, not JSON (says the line), not an object, or names something twice.
    """
    return read_json_object(Path(path))


def contradictions(
    given: Mapping[str, Any], settings: TrainSettings, num_ranks: int, precision: str | None = None
) -> list[str]:
    """Everything in a configuration that contradicts the options or would change results; one line each.

    Args:
        precision: `float32` or `bfloat16`; None for the settings', whose `auto` agrees with either.
    """
    decided = _decided(settings, num_ranks, precision or settings.precision)
    problems: dict[str, str] = {}
    for name, value in _leaves(given):
        holds_decided = {key.rpartition(".")[0] for key in decided}
        if _says_nothing(value):
            continue
        if name in decided:
            expected, option = decided[name]
            if not _same(name, value, expected):
                problems[name] = f"{name}: {json.dumps(value)} there, {json.dumps(expected)} by {option}"
        elif name in holds_decided:
            problems[name] = f"{name}: expected an object, {{…}}, found {json.dumps(value)}"
        elif (refused := _refused(name)) and not _is_off(given, refused, name, value):
            place = name if refused in holds_decided else refused
            problems[place] = f"{place}: trace-transfer {REFUSED[refused]}"
    return [*problems.values(), *_of_no_use(given)]


def _of_no_use(given: Mapping[str, Any]) -> list[str]:
    """What DeepSpeed refuses of ZeRO's settings, or would ignore as it does not know the name."""
    problems = []
    for name in given.keys() - {ZERO}:
        if close := get_close_matches(name, [ZERO, "gradient_clipping", "optimizer", "bf16"], 1, cutoff=0.9):
            problems += [f"{name}: did you mean {close[0]}?"] if name != close[0] else []
    zero = given.get(ZERO)
    if isinstance(zero, Mapping):
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

        if zero.get("compute_grad_norm") is False:
            problems.append(f"{ZERO}.compute_grad_norm: trace-transfer needs the norm of each gradient")
        try:
            with quiet():
                DeepSpeedZeroConfig(**{key: value for key, value in zero.items() if not _says_nothing(value)})
        except ValidationError as error:
            problems += [
                f"{'.'.join(map(str, (ZERO, *one['loc'])))}: {one['msg']} (DeepSpeed)" for one in error.errors()
            ]
    profiler = given.get("flops_profiler")
    if isinstance(profiler, Mapping) and profiler.get("enabled") is True and not profiler.get("output_file"):
        problems.append("flops_profiler: needs an output_file, as stdout is kept for results")
    return problems


def merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration: the engine's own, and what a configuration without contradictions adds to it.

    Neither argument is changed. Details of offloading are passed on where the engine's own has it on.
    """
    decided, result = _decided(TrainSettings(), 1, "auto"), copy.deepcopy(dict(own))
    for name, value in _leaves(given):
        if _says_nothing(value) or name in decided or _refused(name):
            continue
        *path, last = name.split(".")
        if path and path[-1].startswith("offload_") and path[-1] not in own.get(ZERO, {}):
            continue
        place = result
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return result


def _decided(settings: TrainSettings, num_ranks: int, precision: str) -> dict[str, tuple[Any, str]]:
    """Key → the value that the options give it, and the option."""
    micro_batches = math.ceil(settings.batch_size / settings.micro_batch_size)
    bfloat16 = {"bfloat16": True, "float32": False}.get(precision)  # None: known on the machine that trains
    optimizer, parameters = settings.offload in ("optimizer", "parameters"), settings.offload == "parameters"
    given, adamw = {"betas": list(BETAS), "eps": EPS, **settings.optimizer_args}, "adamw" in settings.optimizer
    return {
        "train_batch_size": (settings.batch_size, "--batch-size"),
        "train_micro_batch_size_per_gpu": (settings.micro_batch_size, "--micro-batch-size"),
        "gradient_accumulation_steps": (
            math.ceil(micro_batches / num_ranks), "--batch-size, --micro-batch-size and the number of ranks",
        ),
        "gradient_clipping": (settings.max_grad_norm or 0.0, "--max-grad-norm"),
        "optimizer.type": ("AdamW" if adamw else settings.optimizer, "--optimizer"),
        "optimizer.params.lr": (settings.learning_rate, "--learning-rate"),
        **{f"optimizer.params.{key}": (value, "--optimizer-args") for key, value in given.items()},
        "optimizer.params.weight_decay": (settings.weight_decay, "--weight-decay"),
        "optimizer.params.torch_adam": (True, "the engine"),
        "optimizer.params.adam_w_mode": (True, "--optimizer"),
        "bf16.enabled": (bfloat16, "--precision"),
        "bfloat16.enabled": (bfloat16, "--precision"),
        "communication_data_type": ("fp32", "the engine"),
        "data_types.grad_accum_dtype": ("fp32", "the engine"),
        f"{ZERO}.stage": (settings.zero, "--zero"),
        f"{ZERO}.offload_optimizer.device": ("cpu" if optimizer else "none", "--offload"),
        f"{ZERO}.offload_param.device": ("cpu" if parameters else "none", "--offload"),
        f"{ZERO}.cpu_offload": (optimizer, "--offload"),
        f"{ZERO}.cpu_offload_param": (parameters, "--offload"),
    }  # fmt: skip


def _leaves(given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that is no object; an empty object counts as a value."""
    for key, value in given.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _refused(name: str) -> str | None:
    """The entry of `REFUSED` that a key is, or lies in."""
    parts = name.split(".")
    return next((whole for n in range(1, len(parts) + 1) if (whole := ".".join(parts[:n])) in REFUSED), None)


def _says_nothing(value: Any) -> bool:
    return value is None or value == "auto" or value == {}


def _is_off(given: Mapping[str, Any], refused: str, name: str, value: Any) -> bool:
    """Whether a refused key, or the object that it lies in, is switched off."""
    whole = given.get(refused)
    switched_off = isinstance(whole, Mapping) and whole.get("enabled", True) in (False, "auto")
    return value is False or switched_off or (name in HARMLESS and value == HARMLESS[name])


def _same(name: str, found: Any, expected: Any) -> bool:
    if name == "optimizer.type" and (str(found).lower(), expected) == ("adam", "AdamW"):
        return True  # DeepSpeed's Adam is AdamW, unless `adam_w_mode` says otherwise
    if expected is None:
        return isinstance(found, bool)
    if isinstance(expected, bool) or isinstance(found, bool):
        return found is expected
    if isinstance(expected, str) and isinstance(found, str):
        return found.lower() == expected.lower()
    return bool(found == expected)
