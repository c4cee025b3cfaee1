"""What a model's `config.json` may not name: kernels and files that transformers would fetch and run.

`trust_remote_code` is always False here, so that `auto_map` and `custom_generate/` are never run. But transformers
takes the name of an implementation that it does not know as that of a kernel on the hub (looked up in 5.23).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trace_transfer.errors import ModelError, listing

ATTENTION = ("eager", "sdpa", "flex_attention")
EXPERTS = ("eager", "batched_mm", "grouped_mm")  # transformers has two more, both kernels of the hub


def refuse_code_in_config(model: str, config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for code or files from elsewhere.

    Args:
        model: its name, for the message.
        config: the content of its `config.json`.
    """
    from transformers.utils import import_utils

    attention = list(ATTENTION)
    for version in (2, 3, 4):  # where it is not installed, transformers takes a kernel of the hub for it
        is_available: Callable[[], bool] = getattr(import_utils, f"is_flash_attn_{version}_available", bool)
        attention += [f"flash_attention_{version}"] if is_available() else []
    known = {"attn_implementation": attention, "experts_implementation": EXPERTS, "transformers_weights": ()}
    problems = [
        f"{place}: {value!a:.80}, expected {'one of ' if known[key] else ''}{', '.join(known[key]) or 'none'}"
        for place, key, value in _fields(config)
        if key in known and value is not None and value not in known[key]
    ]
    if problems:
        raise ModelError(
            f"{model}: config.json asks for code or files from elsewhere, which are never fetched or run here:\n"
            + listing(problems)
        )


def _fields(value: Any, place: str = "", key: str = "") -> Iterator[tuple[str, str, Any]]:
    """Place, key and value at any depth; below an implementation, that of each sub-config."""
    if isinstance(value, (Mapping, list)):
        for name, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            own = key if key.endswith("_implementation") else str(name).strip("_").removesuffix("_internal")
            yield from _fields(one, f"{place}.{name}".lstrip("."), own)
    else:
        yield place, key, value
