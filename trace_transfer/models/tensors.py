"""Tensors in safetensors files, a block of rows at a time: read, checked, compared by their bits, and written.

The library maps files, and a mapped file comes from a cold disk page by page; read in order it comes much faster.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from trace_transfer.errors import ModelError, listing
from trace_transfer.files import replacing
from trace_transfer.models.sources import numel, row_blocks
from trace_transfer.models.stored_weights import stored_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TYPES = DTYPES | {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "I8": torch.int8, "BOOL": torch.bool}
TYPES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu}
NAMES = {dtype: name for name, dtype in TYPES.items()}
_WIDEST_FIRST = ("F64", "I64", "F32", "I32", "BF16", "F16", "U8")
_ALIGNMENT = 8
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dtype_name(dtype: torch.dtype | None) -> str:
    """`float32`, without the name of the library."""
    return str(dtype).removeprefix("torch.")


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; makes no copy of them.

    A sum is five times as fast as the extremes, and not finite if a value is not; it may overflow by itself."""
    if not values.is_floating_point() or not values.numel():
        return True
    if values.element_size() == 1:  # float8 knows neither sum nor extremes
        values = values.float()
    return bool(values.sum().isfinite()) or all(bool(one.isfinite()) for one in values.aminmax())


def differing(one: Tensor, other: Tensor) -> Tensor:
    """Where two tensors of one shape differ, as bool of that shape.

    Of different types, both are first widened to one that holds all values of both, which loses nothing."""
    if one.dtype != other.dtype:
        wide = torch.promote_types(one.dtype, other.dtype)
        one, other = one.to(wide), other.to(wide)
    integers = _INTEGERS[one.element_size()]
    return one.contiguous().view(integers) != other.contiguous().view(integers)


def converted(values: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The same values in another type, or None if that type does not hold all of them exactly."""
    if values.dtype == dtype:
        return values
    found = values.to(dtype)
    return None if differing(found, values).any() else found


def require_finite(owner: str, values: Mapping[str, Tensor]) -> None:
    """Refuse weights that say nothing, wherever they are read: whatever is computed of them is noise, or NaN."""
    if bad := [name for name, value in values.items() if not all_finite(value)]:
        raise ModelError(
            f"{owner}: NaN or Inf in {len(bad)} tensor{'s' if len(bad) > 1 else ''}; the file is damaged, or the "
            "training that made it diverged:\n" + listing(bad)
        )


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
    places: dict[str, int]  # of those that are still to come

    def add(self, name: str, tensor: Tensor) -> None:
        if name in self.specs and tuple(tensor.shape) != self.specs[name].shape:
            raise ValueError(f"{name}: {list(tensor.shape)} given, {list(self.specs[name].shape)} expected")
        self.add_blocks(name, (tensor,))

    def add_blocks(self, name: str, blocks: Iterable[Tensor]) -> None:
        """Write a tensor given in pieces, in the order of its elements; raises as `add`."""
        if name not in self.places:
            raise ValueError(f"{name}: written before, or not one of the expected tensors")
        spec, written = self.specs[name], 0
        self.stream.seek(self.places.pop(name))
        for block in blocks:
            if block.dtype != spec.dtype:
                raise ValueError(f"{name}: {block.dtype} given, {spec.dtype} expected")
            written += block.nbytes
            if written > spec.num_bytes:
                break
            self.stream.write(block.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        if written != spec.num_bytes:
            raise ValueError(f"{name}: {written} bytes or more given, {spec.num_bytes} expected")


@contextmanager
def writing_tensors(path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> Iterator[TensorWriter]:
    """Write a safetensors file whole or not at all: it appears when the block ends without an error. A ValueError if a
    tensor is missing then, a DiskFullError if there is no room."""
    header, places = _layout(specs, metadata)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(header)
        yield TensorWriter(stream, specs, places)
        if places:
            raise ValueError(f"tensors that were never written: {', '.join(list(places)[:5])}")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors that are all in memory; their metadata say format and version. Raises as `writing_tensors`."""
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with writing_tensors(path, specs, metadata) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)


def _layout(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    starts, end = {}, 0
    for name in sorted(specs, key=lambda name: (_WIDEST_FIRST.index(NAMES[specs[name].dtype]), name)):
        spec = specs[name]
        starts[name], end = end, end + spec.num_bytes
        entries[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [starts[name], end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + start for name, start in starts.items()}


def read_rows(file: Path, key: str, shape: tuple[int, ...], owner: str) -> Iterator[Tensor]:
    """One tensor, flattened, in blocks of whole rows as `row_blocks` cuts them, as it is on disk; `owner` is told."""
    found = stored_tensors(file)[key].shape
    if found != shape:
        raise ModelError(f"{owner}: {key} is {list(found)} on disk, expected {list(shape)}")
    counts = (stop - start for start, stop in row_blocks(shape))
    yield from (block.flatten() for block in read_blocks(file, key, counts, owner))


def read_blocks(file: Path, key: str, counts: Iterable[int], owner: str | None = None) -> Iterator[Tensor]:
    """One tensor in blocks of so many rows each, as it is on disk: [count, d1, …]; a scalar has one row."""
    owner, stored = owner or str(file), stored_tensors(file)[key]
    if stored.dtype not in DTYPES:
        raise ModelError(f"{owner}: {key} is of type {stored.dtype}, expected one of {', '.join(DTYPES)}")
    for block in _blocks(file, key, counts):
        require_finite(owner, {key: block})
        yield block


def read_tensor(file: Path, key: str) -> Tensor:
    """One whole tensor, a copy; raises as `read_blocks`."""
    shape = stored_tensors(file)[key].shape
    (block,) = read_blocks(file, key, shape[:1] or (1,))
    return block.view(shape)


def read_any(file: Path, key: str) -> Tensor:
    """As `read_tensor`, of any type, and with any values."""
    shape = stored_tensors(file)[key].shape
    (block,) = _blocks(file, key, shape[:1] or (1,))
    return block.view(shape)


def _blocks(file: Path, key: str, counts: Iterable[int]) -> Iterator[Tensor]:
    stored = stored_tensors(file)[key]
    dtype, inner = TYPES[stored.dtype], stored.shape[1:]
    with file.open("rb") as stream:
        stream.seek(stored.start)
        for count in counts:
            # Memory of torch's is aligned: products give other last bits where it is not.
            room = torch.empty(count * numel(inner), dtype=dtype)
            if stream.readinto(room.view(torch.uint8).numpy().data) != room.nbytes:
                raise ModelError(f"{file}: cut short within {key}; have it made or downloaded again")
            yield room.view(count, *inner)
