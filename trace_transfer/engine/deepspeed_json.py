"""What DeepSpeed is told: the engine's own configuration, and in it a user's JSON beside the options.

1. A key that the options decide (batch sizes, optimizer, precision, ZeRO stage, offloading, clipping) may be left out,
   be `"auto"` as in Hugging Face's integration, or say the same as the options (`_decided`).
2. Of the rest, ZeRO's tuning and what DeepSpeed reports are taken (`TAKEN`); DeepSpeed judges them. Nested objects are
   merged key by key. There `"auto"` and `null` mean what trace-transfer would do without the key.
3. Every other key is refused unless it is switched off: it would change results, or do nothing.

Names are dotted: `zero_optimization.stage`. The engine tells DeepSpeed an accumulation of 1 whatever the batch size is
(see `engine`), so the batch keys are compared with the options and never merged.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import ValidationError

from trace_transfer.engine.distributed import Ranks
from trace_transfer.engine.optimizers import BETAS, EPS
from trace_transfer.engine.settings import LARGEST_BUCKET, PERSISTENT, TrainSettings
from trace_transfer.printable import quiet

ZERO = "zero_optimization"
OFFLOADED = {"offload_optimizer": ("optimizer", "parameters"), "offload_param": ("parameters",)}
TAKEN = (
    ZERO, "activation_checkpointing", "aio", "comms_logger", "csv_monitor", "dump_state", "memory_breakdown",
    "steps_per_print", "tensorboard", "wall_clock_breakdown", "wandb",
)  # fmt: skip
REFUSED = (f"{ZERO}.zenflow", f"{ZERO}.zeropp_loco_param", f"{ZERO}.cpu_offload", f"{ZERO}.cpu_offload_param")


def configuration(settings: TrainSettings, ranks: Ranks, dtype: torch.dtype, num_elements: int) -> dict[str, Any]:
    bucket = min(LARGEST_BUCKET, num_elements + num_elements % 2)  # must be even
    zero: dict[str, Any] = {
        "stage": settings.zero, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket,
        "stage3_param_persistence_threshold": PERSISTENT,
    }  # fmt: skip
    if settings.zero == 3 and "leaf_module" in _zero_config().model_fields:  # not in older ones
        zero["leaf_module"] = {"classes": []}
    memory = {"device": "cpu", "pin_memory": ranks.device.type == "cuda"}
    zero |= {kind: memory for kind, kinds in OFFLOADED.items() if settings.offload in kinds}
    config = {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "train_batch_size": settings.micro_batch_size * ranks.size,
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # the same optimizer, so that offloading changes no result
        "zero_allow_untested_optimizer": True,  # by DeepSpeed: it is tested here
        "bf16": {"enabled": dtype == torch.bfloat16},
        "communication_data_type": "fp32",
        "steps_per_print": None,
    }
    if dtype == torch.bfloat16 and settings.zero > 0:  # without ZeRO there is no float32 accumulation to be had
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return merged(config, settings.deepspeed)


def contradictions(given: Mapping[str, Any], settings: TrainSettings, num_ranks: int, dtype: torch.dtype) -> list[str]:
    """Everything in a configuration that contradicts the options or would change results; one line each."""
    decided = _decided(settings, num_ranks, dtype)
    problems: dict[str, str] = {}
    for name, value in _leaves(given):
        top = name.partition(".")[0]
        if name in decided and not _same(value, decided[name]):
            problems[name] = f"{name}: {json.dumps(value)} there, {json.dumps(decided[name])} by the options"
        elif name not in decided and not _is_taken(name) and not _is_off(given.get(top), value):
            place = name if top in (ZERO, "bf16", "bfloat16", "optimizer", "data_types") else top
            problems[place] = (
                f"{place}: trace-transfer decides this by its own options, or does without; leave it out, or set it to "
                f'"auto". Beside what the options decide it takes {", ".join(TAKEN)}'
            )
    zero = {} if _says_nothing(given.get(ZERO)) else given[ZERO]
    if not isinstance(zero, Mapping):
        return [*problems.values(), f"{ZERO}: expected an object, {{…}}, found {json.dumps(zero)}"]
    try:
        if zero:
            _zero_config()(**{key: value for key, value in zero.items() if not _says_nothing(value)})
    except ValidationError as error:
        for one in error.errors():
            problems.setdefault(name := ".".join(map(str, (ZERO, *one["loc"]))), f"{name}: {one['msg']} (DeepSpeed)")
    return [*problems.values()]


def merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's own configuration, and what one without contradictions adds to what that has switched on."""
    decided, result = _decided(TrainSettings(), 1, torch.float32), copy.deepcopy(dict(own))
    for name, value in _leaves(given):
        *path, last = name.split(".")
        if name in decided or not _is_taken(name):
            continue
        if path and path[-1].startswith("offload_") and path[-1] not in own.get(ZERO, {}):
            continue
        place = result
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return result


def _zero_config() -> Any:
    with quiet():
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return DeepSpeedZeroConfig


def _decided(settings: TrainSettings, num_ranks: int, dtype: torch.dtype) -> dict[str, Any]:
    """Key → the value that the options, or the engine, give it."""
    micro_batches = math.ceil(settings.batch_size / settings.micro_batch_size)
    devices = {kind: "cpu" if settings.offload in kinds else "none" for kind, kinds in OFFLOADED.items()}
    optimizer = "AdamW" if "adamw" in settings.optimizer else settings.optimizer
    given = {"betas": list(BETAS), "eps": EPS, **settings.optimizer_args}
    return {
        "train_batch_size": settings.batch_size, "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": math.ceil(micro_batches / num_ranks),
        "gradient_clipping": settings.max_grad_norm or 0.0, "gradient_allreduce_op": "mean",
        "communication_data_type": "fp32", "data_types.grad_accum_dtype": "fp32", "sequence_parallel_size": 1,
        **dict.fromkeys(("bf16.enabled", "bfloat16.enabled"), dtype == torch.bfloat16),
        **{f"optimizer.params.{key}": value for key, value in given.items()},
        "optimizer.type": optimizer, "optimizer.params.lr": settings.learning_rate,
        "optimizer.params.weight_decay": settings.weight_decay,
        "optimizer.params.torch_adam": True, "optimizer.params.adam_w_mode": True,
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, f"{ZERO}.stage": settings.zero,
        **{f"{ZERO}.{kind}.device": device for kind, device in devices.items()},
        f"{ZERO}.compute_grad_norm": True, f"{ZERO}.offload_optimizer.ratio": 1.0,
        f"{ZERO}.offload_optimizer.super_offload": False, f"{ZERO}.zero_quantized_weights": False,
        f"{ZERO}.zero_quantized_nontrainable_weights": False, f"{ZERO}.zero_quantized_gradients": False,
    }  # fmt: skip


def _leaves(given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif not _says_nothing(value):
            yield prefix + key, value


def _says_nothing(value: Any) -> bool:
    return value is None or value in ("auto", {})


def _is_taken(name: str) -> bool:
    return name.partition(".")[0] in TAKEN and not any(f"{name}.".startswith(f"{one}.") for one in REFUSED)


def _is_off(holder: Any, value: Any) -> bool:
    """Whether a key that is not taken, or the object that it lies in, is switched off."""
    return value is False or (isinstance(holder, Mapping) and holder.get("enabled", True) in (False, "auto"))


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, bool):
        return found is expected
    if isinstance(expected, str) and isinstance(found, str):  # DeepSpeed's Adam is AdamW
        return {"adam": "adamw"}.get(found.lower(), found.lower()) == expected.lower()
    return bool(found == expected) and not isinstance(found, bool)
