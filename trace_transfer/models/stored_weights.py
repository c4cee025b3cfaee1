"""Which files of a directory hold a model's weights, in transformers' order, and which tensors are in them.

Reads: the config's `transformers_weights`, `model.safetensors`, or `model.safetensors.index.json` with its shards; of
each file the header alone. What else lies there is not read, as transformers does not. Gives: `StoredWeights`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trace_transfer.errors import ModelError, listing
from trace_transfer.files import LONGEST_NAME
from trace_transfer.text_formats import read_json_object, read_tensor_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
MAX_SHOWN = 200  # characters of such a name
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a shard: its element type as safetensors names it, and where its bytes lie."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class StoredWeights:
    """All tensors that transformers would read from a directory, by their names on disk.

    Attributes:
        notes: weights that lie there as well, and are not read.
    """

    directory: Path
    tensors: Mapping[str, StoredTensor]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> StoredWeights:
        """Find the files and read their headers.

        Raises:
            ModelError: no weights that transformers takes; an index that is none; files missing, cut short or damaged.
        """
        files, notes = _files(directory)
        return cls(directory, _tensors(directory, files), notes)


def has_weights(directory: Path) -> bool:
    """Whether anything lies there that may be meant as weights; a directory with a config alone is a model's names."""
    found = (
        name for ending in ("safetensors", "index.json", "bin", "pt", "pth") for name in directory.glob(f"*.{ending}")
    )
    return any(not file.name.startswith("training_args") for file in found)


def _files(directory: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Files in the order in which transformers reads them, and what is passed over."""
    named = read_config(directory).get("transformers_weights")
    first = [named] if isinstance(named, str) else [SINGLE_NAME, INDEX_NAME]
    for name in first:
        if not _inside(name):
            raise ModelError(
                f"{directory / CONFIG_NAME}: transformers_weights names {name[:MAX_SHOWN]}, a file outside of the "
                "model's directory"
            )
        file = directory / name
        if not file.is_file():
            continue
        if name == SINGLE_NAME:
            return [file], _passed_over(directory)
        return (_shards(file) if name.endswith(".index.json") else [file]), ()
    raise ModelError(f"{directory}: {_none(directory, named)}")


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json`, read as transformers reads it; empty where there is none that can be read, which others tell."""
    return read_leniently(directory / CONFIG_NAME)


def read_leniently(file: Path) -> dict[str, Any]:
    """A JSON object of transformers' or peft's, with the numbers of any length that theirs have; empty for none."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _inside(name: str) -> bool:
    """Whether a file of that name may lie in a directory."""
    path = Path(name)
    can_be = all(0 < len(os.fsencode(part)) <= LONGEST_NAME for part in path.parts) and "\x00" not in name
    return can_be and not path.is_absolute() and ".." not in path.parts


def _passed_over(directory: Path) -> tuple[str, ...]:
    """A second set of weights: an index beside the single file that names other files, which are there."""
    index = directory / INDEX_NAME
    if not index.is_file():
        return ()
    try:
        others = [file.name for file in _shards(index) if file.name != SINGLE_NAME and file.is_file()]
    except ModelError:
        others = []
    if not others:
        return ()
    return (
        f"two sets of weights lie there; {SINGLE_NAME} is read, as transformers does, and {INDEX_NAME} with its "
        f"{len(others)} files is not: remove the one that is not meant",
    )


def _shards(index: Path) -> list[Path]:
    try:
        found = read_json_object(index, ModelError)["weight_map"]
        names = sorted(set(found.values()))
        wrong = [name for name in names if not _inside(name)]
    except (ModelError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not a safetensors index ({error}); have it downloaded again") from error
    if wrong:
        raise ModelError(
            f"{index}: weight_map names files outside of the model's directory, which are not read; have the model "
            "downloaded or saved again:\n" + listing([name[:MAX_SHOWN] for name in wrong])
        )
    if not names:
        raise ModelError(f"{index}: not a safetensors index (weight_map is empty); have it downloaded again")
    return [index.parent / name for name in names]


def _none(directory: Path, named: object) -> str:
    """What to say where transformers would find no weights."""
    if named is not None:
        return (
            f"transformers_weights of {CONFIG_NAME} is {named!r}, expected the name of a safetensors file that is there"
        )
    others = sorted(file.name for file in directory.glob("*.safetensors"))
    pickles = sorted(file.name for ending in ("bin", "pt", "pth") for file in directory.glob(f"*.{ending}"))
    if others:
        do = f"rename it to {SINGLE_NAME}" if len(others) == 1 else f"have {INDEX_NAME} downloaded or made again"
        return (
            f"has {', '.join(others[:3])}{', …' if len(others) > 3 else ''}, but neither {SINGLE_NAME} nor "
            f"{INDEX_NAME}, which transformers reads; if the weights are in there, {do}"
        )
    if pickles:
        return (
            f"has pickled weights only ({', '.join(pickles[:3])}); convert them to safetensors "
            "(load and `save_pretrained` once), trace-transfer does not unpickle"
        )
    ggufs = sorted(file.name for file in directory.glob("*.gguf"))
    if ggufs:
        return f"has a config but no safetensors weights; name the GGUF file itself: {directory / ggufs[0]}"
    inner = sorted(file.parent.name for file in directory.glob(f"*/{CONFIG_NAME}"))
    below = f"; there are models in {', '.join(inner[:3])}" if inner else ""
    return f"has a config but no weights (*.safetensors or *.gguf){below}"


def _tensors(directory: Path, files: list[Path]) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, StoredTensor] = {}
    problems = []
    for file in files:
        if not file.is_file():
            problems.append(f"{file.name}: missing")
            continue
        try:
            with safe_open(file, framework="pt"):  # checks that offsets are whole and the file is long enough
                pass
            tensors |= stored_tensors(file)
        except (SafetensorError, OSError) as error:
            with file.open("rb") as stream:
                pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
            why = f"a pointer of git-lfs; run `git lfs pull` ({error})" if pointer else error
            problems.append(f"{file.name}: cut short or damaged ({file.stat().st_size:,} bytes; {why})")
    if problems:
        raise ModelError(
            f"{directory}: {len(problems)} of {len(files)} weight files cannot be used, have them downloaded again:\n"
            + listing(problems)
        )
    return tensors


def stored_tensors(file: Path) -> Mapping[str, StoredTensor]:
    """The tensors of one safetensors file that is whole."""
    stat = file.stat()
    return _header(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _header(file: Path, size: int, changed: int) -> Mapping[str, StoredTensor]:
    """What the file held when it had that size and time."""
    first, header = read_tensor_header(file, ModelError)
    return {
        name: StoredTensor(
            file,
            entry["dtype"],
            tuple(entry["shape"]),
            first + entry["data_offsets"][0],
            first + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }
