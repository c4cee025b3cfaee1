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
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NAMES |= {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8"}  # of places, bitmaps, states
_WIDEST_FIRST = ("F64", "I64", "F32", "I32", "BF16", "F16", "U8")
_ALIGNMENT = 8
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dtype_name(dtype: torch.dtype | None) -> str:
    """`float32`, without the name of the library."""
    return str(dtype).removeprefix("torch.")


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; makes no copy of them.

    A sum is five times as fast as the extremes, and not finite if a value is not; it may overflow by itself.
    """
    if not values.is_floating_point() or not values.numel():
        return True
    if values.element_size() == 1:  # float8 knows neither sum nor extremes
        values = values.float()
    return bool(values.sum().isfinite()) or all(bool(one.isfinite()) for one in values.aminmax())


def differing(one: Tensor, other: Tensor) -> Tensor:
    """Where two tensors of one shape differ, as bool of that shape.

    Of different types, both are first widened to one that holds all values of both, which loses nothing.
    """
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
    """Refuse weights that say nothing, wherever they are read: whatever is computed of them is noise, or NaN.

    Raises:
        ModelError: NaN or Inf; all names are told.
    """
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors that are all in memory; their metadata say format and version. Raises as `writing_tensors`."""
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with writing_tensors(path, specs, metadata) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)


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


def read_rows(file: Path, key: str, shape: tuple[int, ...], owner: str) -> Iterator[Tensor]:
    """One tensor, flattened, in blocks of whole rows as `row_blocks` cuts them, as it is on disk.

    Args:
        owner: whose it is, for messages.

    Raises:
        ModelError: it is of another shape, or as `read_blocks`.
    """
    found = stored_tensors(file)[key].shape
    if found != shape:
        raise ModelError(f"{owner}: {key} is {list(found)} on disk, expected {list(shape)}")
    counts = (stop - start for start, stop in row_blocks(shape))
    yield from (block.flatten() for block in read_blocks(file, key, counts, owner))


def read_blocks(file: Path, key: str, counts: Iterable[int], owner: str | None = None) -> Iterator[Tensor]:
    """One tensor in blocks of so many rows each, as it is on disk: [count, d1, …]; a scalar has one row.

    Raises:
        ModelError: it is of an element type that cannot be compared, holds NaN or Inf, or the file is cut short.
    """
    owner, stored = owner or str(file), stored_tensors(file)[key]
    if stored.dtype not in DTYPES:
        raise ModelError(f"{owner}: {key} is of type {stored.dtype}, expected one of {', '.join(DTYPES)}")
    dtype, inner = DTYPES[stored.dtype], stored.shape[1:]
    with file.open("rb", buffering=0) as stream:
        stream.seek(stored.start)
        for count in counts:
            # Of a bytearray, whose pages are used again: memory of torch's would come fresh from the system each time.
            room = bytearray(count * numel(inner) * dtype.itemsize)
            if not _fill(stream, memoryview(room)):
                raise ModelError(f"{file}: cut short within {key}; have it made or downloaded again")
            block = torch.frombuffer(room, dtype=dtype) if room else torch.empty(0, dtype=dtype)
            require_finite(owner, {key: block})
            yield block.view(count, *inner)


def read_tensor(file: Path, key: str) -> Tensor:
    """One whole tensor, a copy."""
    shape = stored_tensors(file)[key].shape
    (block,) = read_blocks(file, key, shape[:1] or (1,))
    return block.view(shape)


def _fill(stream: BinaryIO, room: memoryview) -> bool:
    """Read until there is no more room; one read takes 2 GB at most. False at the end of the file."""
    done = 0
    while done < len(room):
        count = stream.readinto(room[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True
