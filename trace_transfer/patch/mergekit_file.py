"""The file that `mergekit-yaml` reads: which models are merged with which base, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import torch

# Methods that merge task vectors → what each task's model is given besides its weight.
METHODS: Mapping[str, Mapping[str, float]] = {
    "task_arithmetic": {},
    "ties": {"density": 1.0},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
}


def mergekit_yaml(base: str, models: Sequence[str], method: str, dtypes: Iterable[torch.dtype]) -> str:
    """A mergekit configuration that adds the models' task vectors to the base, each once.

    It computes in a type wide enough for a difference of two stored values to lose nothing, and stores in the widest
    type of the models: then vectors that do not overlap add up to the very bits of the tasks' models.

    Args:
        base, models: directories or hub names.
        method: one of `METHODS`.
        dtypes: in which the models' parameters are stored.
    """
    import torch

    stored = reduce(torch.promote_types, dtypes)
    computed = torch.float32 if stored.itemsize == 2 else torch.float64
    content: dict[str, Any] = {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model, "parameters": {"weight": 1.0, **METHODS[method]}} for model in models],
        "dtype": _name(computed),
        "out_dtype": _name(stored),
    }
    head = (
        "# mergekit-yaml THIS_FILE OUTPUT_DIRECTORY\n"
        "# A model's weight says how much of its task is added to the base; directories are those of this machine.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
