"""A user's own DeepSpeed JSON beside the options of trace-transfer: what is passed on, must agree, or is refused.

1. What the options decide — batch sizes, optimizer, precision, ZeRO stage, offloading, clipping — may be left out, be
   `"auto"` (as Hugging Face's integration has it), or say the same as the options (`DECIDED`).
2. What changes speed or memory alone is passed on, nested objects merged key by key (`PASSED`). There `"auto"` and
   `null` mean what trace-transfer would do without it.
3. What would change results, or does nothing here, is refused with its reason, unless it is switched off (`REFUSED`);
   so is a name that is unknown. What only shapes DeepSpeed's own messages is dropped (`DROPPED`).

The engine tells DeepSpeed an accumulation of 1 whatever the batch size (see `training.engine`), so the batch keys are
compared with the options and never merged.

The tables are in `settings.deepspeed_names`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trace_transfer.engine.deepspeed_names import DECIDED, DROPPED, PASSED, REFUSED, REQUIRED, SWITCHES, ZERO
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.text_formats import read_json_object

BETAS, EPS = [0.9, 0.999], 1e-8  # the engine's AdamW
_KNOWN = frozenset({*DECIDED, *PASSED, *DROPPED, *REFUSED, *REQUIRED})
_OBJECTS = frozenset(
    ".".join(name.split(".")[:depth]) for name in _KNOWN for depth in range(1, name.count(".") + 1)
)  # names that must hold an object


def read_deepspeed_json(path: Path | str) -> Mapping[str, Any]:
    """A DeepSpeed configuration as it is written; nothing in it is judged here.

    Raises:
        UserError: it is not there, not JSON (says the line), not an object, or names something twice.
    """
    return read_json_object(Path(path))


def contradictions(
    given: Mapping[str, Any], settings: TrainSettings, num_ranks: int, precision: str | None = None
) -> list[str]:
    """Everything in a configuration that the options contradict, that is refused, or that is unknown; one line each.

    Args:
        precision: `float32` or `bfloat16`; None for that of the settings, of which `auto` agrees with either.
    """
    expected = _decided(settings, num_ranks, precision or settings.precision)
    problems: dict[str, str] = {}
    for name, value in _leaves(given):
        known = _known_as(name)
        if known is None:
            problems.setdefault(*_unknown(name, value))
        elif _says_nothing(value):
            continue
        elif known in DECIDED:
            if not _same(known, value, expected[known]):
                problems[name] = f"{name}: {_text(value)} there, {_text(expected[known])} by {DECIDED[known]}"
        elif known in REQUIRED and value != REQUIRED[known][0]:
            wanted, reason = REQUIRED[known]
            problems[name] = f"{name}: {_text(value)} there, only {_text(wanted)} can be used: trace-transfer {reason}"
        elif known in REFUSED and not _is_off(given, known):
            place = name if known in _OBJECTS else known  # beside something that may be given, or a whole section
            problems.setdefault(place, f"{place}: trace-transfer {REFUSED[known]}")
        elif known not in _KNOWN:
            problems[name] = f"{name}: expected an object, {{…}}, found {_text(value)}"
    profiler = given.get("flops_profiler")
    if isinstance(profiler, Mapping) and profiler.get("enabled") is True and not profiler.get("output_file"):
        problems["flops_profiler"] = "flops_profiler: needs an output_file, as stdout is kept for results"
    return list(problems.values())


def merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """DeepSpeed's configuration: the engine's own, with what is passed on of a configuration without contradictions.

    Neither argument is changed. Of offloading, details are passed on where the engine's own has it on.
    """
    result = _copied(own)
    for name, value in _leaves(given):
        if _says_nothing(value) or _known_as(name) not in PASSED:
            continue
        *path, last = name.split(".")
        if path and path[-1].startswith("offload_") and path[-1] not in own.get(ZERO, {}):
            continue
        place = result
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return result


def _decided(settings: TrainSettings, num_ranks: int, precision: str) -> dict[str, Any]:
    micro_batches = math.ceil(settings.batch_size / settings.micro_batch_size)
    bfloat16 = {"bfloat16": True, "float32": False}.get(precision)  # None: known on the machine that trains
    optimizer, parameters = settings.offload in ("optimizer", "parameters"), settings.offload == "parameters"
    return {
        "train_batch_size": settings.batch_size,
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": math.ceil(micro_batches / num_ranks),
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "optimizer.type": "AdamW",
        "optimizer.params.lr": settings.learning_rate,
        "optimizer.params.betas": BETAS,
        "optimizer.params.eps": EPS,
        "optimizer.params.weight_decay": settings.weight_decay,
        "optimizer.params.torch_adam": True,
        "optimizer.params.adam_w_mode": True,
        "bf16.enabled": bfloat16,
        "bfloat16.enabled": bfloat16,
        "communication_data_type": "fp32",
        "data_types.grad_accum_dtype": "fp32",
        f"{ZERO}.stage": settings.zero,
        f"{ZERO}.offload_optimizer.device": "cpu" if optimizer else "none",
        f"{ZERO}.offload_param.device": "cpu" if parameters else "none",
        f"{ZERO}.cpu_offload": optimizer,
        f"{ZERO}.cpu_offload_param": parameters,
    }


def _leaves(given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that is no object; an empty object counts as a value."""
    for key, value in given.items():
        name = prefix + key
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _known_as(name: str) -> str | None:
    """The entry of the tables that a name falls under: its own, or the nearest above it."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        if (known := ".".join(parts[:depth])) in _KNOWN:
            return known
    return name if name in _OBJECTS else None


def _says_nothing(value: Any) -> bool:
    return value is None or value == "auto" or value == {}


def _is_off(given: Mapping[str, Any], name: str) -> bool:
    """Whether something refused is switched off."""
    value: Any = given
    for key in name.split("."):
        value = value[key]
    if isinstance(value, Mapping):
        return name in SWITCHES and value.get(SWITCHES[name]) in (None, False, "auto")
    return value is False or (value in (0, 1) and name.endswith("_size")) or value == "mean"


def _same(name: str, found: Any, expected: Any) -> bool:
    if name == "optimizer.type":  # DeepSpeed's Adam is AdamW, unless `adam_w_mode` says otherwise
        return isinstance(found, str) and found.lower() in ("adamw", "adam")
    if expected is None:
        return isinstance(found, bool)
    if isinstance(expected, bool) or isinstance(found, bool):
        return found is expected
    if isinstance(expected, str) and isinstance(found, str):
        return found.lower() == expected
    return bool(found == expected)


def _unknown(name: str, value: Any) -> tuple[str, str]:
    """An unknown name, cut where it leaves what is known, and what is said of it."""
    parts = name.split(".")
    depth = next(depth for depth in range(1, len(parts) + 1) if ".".join(parts[:depth]) not in _OBJECTS)
    above, key = parts[: depth - 1], parts[depth - 1]
    prefix = ".".join([*above, ""])
    beside = {other[len(prefix) :].partition(".")[0] for other in _KNOWN if other.startswith(prefix)}
    close = get_close_matches(key, sorted(beside), 1)
    hint = f"did you mean {close[0]}?" if close else f"known there: {', '.join(sorted(beside))}"
    return prefix + key, f"{prefix}{key}: unknown to this version of trace-transfer; {hint}"


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _text(value: Any) -> str:
    return json.dumps(value)
