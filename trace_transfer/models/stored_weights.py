"""Which files of a directory hold a model's weights, in transformers' order, and which tensors are in them.

Reads: `model.safetensors`, or `model.safetensors.index.json` with its shards; of each file the header alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trace_transfer.errors import ModelError, listing
from trace_transfer.text_formats import read_json_object, read_tensor_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
LFS_POINTER = b"version https://git-lfs"
PICKLES = ("bin", "pt", "pth")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a shard: its element type as safetensors names it, and where its bytes lie."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_stored(directory: Path) -> dict[str, StoredTensor]:
    """All tensors that transformers would read from a directory, by their names on disk."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, StoredTensor] = {}
    problems = []
    files = _files(directory)
    for file in files:
        if not file.is_file():
            problems.append(f"{file.name}: missing")
            continue
        try:
            with safe_open(file, framework="numpy"):  # checks the header; for torch it would map the file writable
                tensors |= stored_tensors(file)
        except (SafetensorError, OSError, ModelError) as error:
            with file.open("rb") as stream:
                pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
            why = "a pointer of git-lfs; run `git lfs pull`" if pointer else str(error).removeprefix(f"{file}: ")
            problems.append(f"{file.name}: cut short or damaged ({file.stat().st_size:,} bytes; {why})")
    if problems:
        raise ModelError(
            f"{directory}: {len(problems)} of {len(files)} weight files cannot be used, have them downloaded again:\n"
            + listing(problems)
        )
    return tensors


def has_weights(directory: Path) -> bool:
    """Whether anything lies there that may be meant as weights; a directory with a config alone is a model's names."""
    found = (file for ending in ("safetensors", "index.json", *PICKLES) for file in directory.glob(f"*.{ending}"))
    return any(not file.name.startswith("training_args") for file in found)


def _files(directory: Path) -> list[Path]:
    """Files in the order in which transformers reads them."""
    if (directory / SINGLE_NAME).is_file():
        return [directory / SINGLE_NAME]
    index = directory / INDEX_NAME
    if not index.is_file():
        raise ModelError(f"{directory}: {_none(directory)}")
    try:
        names = sorted(set(read_json_object(index, ModelError)["weight_map"].values()))
        wrong = [name for name in names if Path(name).name != name]
    except (ModelError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not a safetensors index ({error}); have it downloaded again") from error
    if wrong or not names:
        what = f"names {wrong[0][:200]}, a file outside of the directory" if wrong else "is empty"
        raise ModelError(f"{index}: not a safetensors index (weight_map {what}); have it downloaded again")
    return [directory / name for name in names]


def _none(directory: Path) -> str:
    """What to say where transformers would find no weights."""
    there = sorted(file.name for ending in ("safetensors", *PICKLES) for file in directory.glob(f"*.{ending}"))
    found = f"has {', '.join(there[:3])}, but" if there else "has a config, but"
    return (
        f"{found} neither {SINGLE_NAME} nor {INDEX_NAME}, which are read; rename a single file, have the index made "
        "again, convert pickled weights (load and `save_pretrained` once), or name a GGUF file itself"
    )


def read_leniently(file: Path) -> dict[str, Any]:
    """A JSON object of transformers' or peft's, with the numbers of any length that theirs have; empty where there is
    none that can be read, which others tell."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def stored_tensors(file: Path) -> Mapping[str, StoredTensor]:
    """The tensors of one safetensors file, by its header."""
    stat = file.stat()
    return _header(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _header(file: Path, size: int, changed: int) -> Mapping[str, StoredTensor]:
    """What the file held when it had that size and time."""
    first, header = read_tensor_header(file, ModelError)
    return {
        name: StoredTensor(file, one["dtype"], tuple(one["shape"]), *(first + at for at in one["data_offsets"]))
        for name, one in header.items()
    }
