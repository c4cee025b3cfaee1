"""One verdict on what lies in a model's directory, before any value is read; all commands enter by it.

Reads: `config.json`, `adapter_config.json` and the headers of the weight files; where the config says that two stored
tensors are one, their bytes. All problems come in one `ModelError`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trace_transfer.errors import ModelError, together
from trace_transfer.models.names_on_disk import CODES, LoadedNames, dequantiser_of, gguf_names, open_gguf
from trace_transfer.models.stored_weights import CONFIG_NAME, StoredTensor, read_leniently, read_stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"
PLAIN = ("F64", "F32", "F16", "BF16")
COMPARED_AT_ONCE = 1 << 24  # bytes
MAX_NAMES = 5
# What older versions of transformers saved with the weights, and compute today.
COMPUTED = re.compile(
    r"(?:rotary_emb\.inv_freq|(?:^|\.)position_ids|attn\.bias|attn\.masked_bias|attention\.(?:masked_)?bias"
    r"|num_batches_tracked)$"
)


def quantisation_of(config: Mapping[str, Any]) -> str | None:
    """The method that a `config.json` says its weights are quantised by; None for plain weights."""
    for part in (config, config.get("text_config")):
        found = (part.get("quantization_config") or part.get("compression_config")) if isinstance(part, dict) else None
        if found:
            return str(found.get("quant_method", "unknown") if isinstance(found, dict) else found)
    return None


def quantised_told(found: Sequence[str]) -> str:
    """What to say of quantised weights: what was found, and what to do."""
    return (
        f"quantised weights: {'; '.join(found)}. They are codes, not values; give the model that it was made from, or "
        "what transformers' `model.dequantize().save_pretrained(…)` makes of it where its method runs"
    )


def examine(directory: Path, model: PreTrainedModel, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Compare what is stored with the model that the config makes, on the meta device: stored tensors take the place
    of its own. Returns stored tensors that it lacks, which nobody reads; what a user is told, a sentence each."""
    stored, config = read_stored(directory), read_leniently(directory / CONFIG_NAME)
    dequantiser = dequantiser_of(config)
    names = LoadedNames.of(model, stored, dequantiser)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name for name, _ in model.named_buffers()}
    superfluous = [
        key for key, one in names.at_run_time.items() if one not in known | buffers and not COMPUTED.search(key)
    ]
    values = known | {names.at_run_time[key] for key in superfluous}
    codes = [key for key, one in stored.items() if one.dtype not in PLAIN and names.at_run_time[key] in values]
    problems = []
    if (directory / ADAPTER_CONFIG).is_file():
        problems.append(
            f"{ADAPTER_CONFIG} beside a whole model: transformers would add that adapter to the weights when it loads "
            "them; move its files elsewhere, or merge it there (`merge_and_unload`)"
        )
    quantised = _quantised(quantisation_of(config), codes, stored, names)
    problems += quantised or _misfits(model, stored, names)
    if problems:
        raise ModelError(f"{name}: {together('its files cannot be used as they are', problems)}")
    notes = []
    if dequantiser is not None:
        notes.append(
            f"its weights are quantised ({dequantiser.method}); they are read, and written, as what transformers "
            f"dequantises them to, {str(dequantiser.dtype).removeprefix('torch.')}"
        )
    if superfluous:
        notes.append(
            f"the weights hold {_named(superfluous)} that the model made by {CONFIG_NAME} lacks; not read, compared or "
            "written"
        )
    return tuple(superfluous), tuple(f"{name}: {note}" for note in notes)


def _quantised(
    method: str | None, codes: list[str], stored: Mapping[str, StoredTensor], names: LoadedNames
) -> list[str]:
    """What says that weights are quantised and cannot be read: the config, and their element types."""

    def is_read(key: str) -> bool:
        fused = names.fused(names.at_run_time[key]) if names.dequantiser and stored[key].dtype in CODES else None
        return fused is not None and fused.has_scales

    told = [] if method is None else [f"quantization_config in {CONFIG_NAME} ({method})"]
    if unread := [key for key in codes if not is_read(key)]:
        kinds = ", ".join(sorted({stored[key].dtype for key in unread}))
        return [quantised_told([*told, f"{_named(unread)} of type {kinds}"])]
    if told and not codes:
        return [f"{told[0]}, but its weights are not: if they have been dequantised, remove it from {CONFIG_NAME}"]
    return []


def _misfits(model: PreTrainedModel, stored: Mapping[str, StoredTensor], names: LoadedNames) -> list[str]:
    """What transformers says when it loads tensors of the stored shapes, without values."""
    saved = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    groups: dict[int, list[str]] = {}
    for name, value in saved:
        groups.setdefault(id(value), []).append(name)
    empty = {key: torch.empty(one.shape, dtype=CODES.get(one.dtype), device="meta") for key, one in stored.items()}
    info = names.load(empty, "meta", model.dtype)
    problems = [
        f"{name}: {list(found)} in the weights, {list(expected)} by {CONFIG_NAME}"
        for name, found, expected in sorted(info.mismatched_keys)
    ]
    problems += [f"{name}: {' '.join(why.splitlines()[-2:])}" for name, why in sorted(info.conversion_errors.items())]
    told = info.missing_keys - info.conversion_errors.keys()
    ignored = "|".join(model._keys_to_ignore_on_load_missing or ()) or r"(?!)"
    if missing := [one[0] for one in groups.values() if set(one) <= told and not re.search(ignored, one[0])]:
        tied = f" (if the head is the embedding, say tie_word_embeddings: true in {CONFIG_NAME})"
        problems.append(f"the weights lack {_named(missing)} of the model{tied * (missing == ['lm_head.weight'])}")
    for group in groups.values():
        keys = [names.keys_of[name][0] for name in group if len(names.keys_of.get(name, ())) == 1]
        problems += [
            f"{keys[0]} and {key} are two different tensors, but one by {CONFIG_NAME} (tie_word_embeddings: true); say "
            "tie_word_embeddings: false there if both are meant, or remove the one that is not"
            for key in keys[1:]
            if not _same(stored[keys[0]], stored[key])
        ]
    return problems


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors are equal to the bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    left, right = (np.memmap(each.file, np.uint8, "r", each.start, (each.stop - each.start,)) for each in (one, other))
    starts = range(0, len(left), COMPARED_AT_ONCE)
    return all(np.array_equal(left[at : at + COMPARED_AT_ONCE], right[at : at + COMPARED_AT_ONCE]) for at in starts)


def examine_gguf(file: Path, model: PreTrainedModel, name: str) -> None:
    """Refuse a GGUF file that lacks tensors of its model."""
    reader = open_gguf(file)
    stored = {tensor.name for tensor in reader.tensors}
    made = {at_run_time for key, at_run_time in gguf_names(model, reader, file)[1].items() if key in stored}
    there = {id(value) for one, value in model.named_parameters(remove_duplicate=False) if one in made}
    if missing := [one for one, value in model.named_parameters() if id(value) not in there]:
        raise ModelError(f"{name}: the weights lack {_named(missing)} of the model")


def _named(names: Collection[str]) -> str:
    """`9 tensors (a, b, … and 7 more)`: how many, and the first of them."""
    count = "1 tensor" if len(names) == 1 else f"{len(names):,} tensors"
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{count} ({', '.join(list(names)[:MAX_NAMES])}{more})"
