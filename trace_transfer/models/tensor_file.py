"""Safetensors files written and read a tensor, or some rows of one, at a time: a file may be larger than the memory.

What is written is byte for byte what safetensors' own writer makes of the same tensors (with sorted metadata): tensors
of wider types first, so that each lies where its type may lie, and by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from trace_transfer.errors import ModelError
from trace_transfer.files import replacing
from trace_transfer.models.shards import DTYPES, require_finite
from trace_transfer.models.sources import numel
from trace_transfer.text_formats import read_tensor_header

NAMES = {dtype: name for name, dtype in DTYPES.items()}
_WIDEST_FIRST = ("F64", "F32", "BF16", "F16")
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written: one of float64, float32, bfloat16, float16, and its shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return numel(self.shape) * self.dtype.itemsize


@dataclass
class TensorWriter:
    """A file being written; made by `writing_tensors`. Tensors may come in any order, each once."""

    stream: BinaryIO
    specs: Mapping[str, TensorSpec]
    places: Mapping[str, int]

    def __post_init__(self) -> None:
        self._missing = dict.fromkeys(self.specs)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a whole tensor.

        Raises:
            ValueError: it is not expected, or of another type or shape than was said.
        """
        if name in self.specs and tuple(tensor.shape) != self.specs[name].shape:
            raise ValueError(f"{name}: {list(tensor.shape)} given, {list(self.specs[name].shape)} expected")
        self.add_blocks(name, (tensor,))

    def add_blocks(self, name: str, blocks: Iterable[Tensor]) -> None:
        """Write a tensor given in pieces, in the order of its elements.

        Raises:
            ValueError: as `add`, or they are too few or too many elements.
        """
        if name not in self._missing:
            raise ValueError(f"{name}: {'written before' if name in self.specs else 'not one of the expected tensors'}")
        del self._missing[name]
        spec, written = self.specs[name], 0
        self.stream.seek(self.places[name])
        for block in blocks:
            if block.dtype != spec.dtype:
                raise ValueError(f"{name}: {block.dtype} given, {spec.dtype} expected")
            written += block.nbytes
            if written > spec.num_bytes:
                break
            self.stream.write(block.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        if written != spec.num_bytes:
            raise ValueError(f"{name}: {written} bytes or more given, {spec.num_bytes} expected")

    def require_complete(self) -> None:
        """Refuse a file with gaps.

        Raises:
            ValueError: tensors were not written.
        """
        if self._missing:
            raise ValueError(f"tensors that were never written: {', '.join(list(self._missing)[:5])}")


@contextmanager
def writing_tensors(path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> Iterator[TensorWriter]:
    """Write a safetensors file whole or not at all: it appears when the block ends without an error.

    Raises:
        DiskFullError: nothing of it is left.
        ValueError: a tensor is missing at the end.
    """
    header, places = _layout(specs, metadata)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(header)
        writer = TensorWriter(stream, specs, places)
        yield writer
        writer.require_complete()


def _layout(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header, and where in the file each tensor begins."""
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    starts, end = {}, 0
    for name in sorted(specs, key=lambda name: (_WIDEST_FIRST.index(NAMES[specs[name].dtype]), name)):
        spec = specs[name]
        starts[name], end = end, end + spec.num_bytes
        entries[name] = {
            "dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [starts[name], end]
        }  # fmt: skip
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: what it is and where its bytes begin."""

    spec: TensorSpec
    start: int


def stored_tensors(path: Path) -> Mapping[str, StoredTensor]:
    """What a safetensors file holds, by name; its header only is read. The file must have been found to be good."""
    stat = path.stat()
    return _stored_tensors(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _stored_tensors(path: Path, size: int, changed: int) -> Mapping[str, StoredTensor]:
    start, header = read_tensor_header(path, ModelError)
    return {
        name: StoredTensor(TensorSpec(DTYPES[entry["dtype"]], tuple(entry["shape"])), start + entry["data_offsets"][0])
        for name, entry in header.items()
        if entry["dtype"] in DTYPES
    }


def read_blocks(path: Path, name: str, counts: Iterable[int]) -> Iterator[Tensor]:
    """One tensor in blocks of some rows each, as it is on disk: [count, d1, …]; a scalar has one row.

    Raises:
        ModelError: the file ends before that, or it holds NaN or Inf.
    """
    stored = stored_tensors(path)[name]
    inner = stored.spec.shape[1:]
    width = numel(inner)
    with path.open("rb", buffering=0) as stream:
        stream.seek(stored.start)
        for count in counts:
            block = torch.empty(count * width, dtype=stored.spec.dtype)
            if count * width and not _fill(stream, block.view(torch.uint8).numpy().data):
                raise ModelError(f"{path}: cut short within {name}; have it made or copied again")
            require_finite(str(path), {name: block})
            yield block.view(count, *inner)


def _fill(stream: BinaryIO, room: memoryview) -> bool:
    """Read until there is no more room; one read takes 2 GB at most. False at the end of the file."""
    done = 0
    while done < len(room):
        count = stream.readinto(room[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True


def read_tensor(path: Path, name: str) -> Tensor:
    """One whole tensor, a copy."""
    shape = stored_tensors(path)[name].spec.shape
    (block,) = read_blocks(path, name, shape[:1] or (1,))
    return block.view(shape)
