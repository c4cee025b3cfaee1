"""Single parameters of tensors, and the safetensors file beside a core file that holds them.

One entry per tensor, under its name: the sorted places of its core parameters in the flattened tensor (`int32`; `int64`
where it has 2³¹ or more), or a bitmap (`uint8`, lowest bit first) where that is smaller. The core file names the file
and the SHA-256 of what it holds, which is also in its name: a file of another core set is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trace_transfer.errors import ArtefactError, first_line
from trace_transfer.files import replacing
from trace_transfer.models.sources import numel

Places = NDArray[np.int64]
METADATA = {"format": "trace-transfer/chosen", "version": "1"}


@dataclass(frozen=True, eq=False)
class Chosen:
    """Single parameters of a tensor: their sorted places in it, flattened."""

    places: Places
    dim = 0  # of the flattened tensor

    @property
    def indices(self) -> Places:
        return self.places

    def within(self, shape: tuple[int, ...], start: int, stop: int) -> Places:
        """Those in the block of rows [start, stop), counted from its beginning."""
        inner = numel(shape[1:])
        first, last = self.places.searchsorted((start * inner, stop * inner))
        return self.places[first:last] - start * inner

    def numel(self, shape: tuple[int, ...]) -> int:
        return len(self.places)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of these parameters alone."""
        return (len(self.places),)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.places.astype("<i8").tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chosen) and np.array_equal(self.places, other.places)

    def __or__(self, other: Chosen) -> Chosen:
        return Chosen(np.union1d(self.places, other.places))

    def common(self, other: Chosen) -> int:
        """How many parameters are in both."""
        return len(np.intersect1d(self.places, other.places, assume_unique=True))

    def __str__(self) -> str:
        return f"{len(self.places):,} single parameters"


def encoded(chosen: Chosen, size: int) -> NDArray[Any]:
    """As they are stored: places, or a bitmap of so many bits, whichever is smaller."""
    places = chosen.places.astype(np.int32 if size < 1 << 31 else np.int64)
    if places.nbytes <= (size + 7) // 8:
        return places
    bits = np.zeros(size, dtype=bool)
    bits[chosen.places] = True
    return np.packbits(bits, bitorder="little")


def decoded(values: NDArray[Any], size: int) -> Chosen:
    """The opposite.

    Raises:
        ValueError: they cannot be of a tensor with so many parameters.
    """
    if values.dtype == np.uint8 and values.shape == ((size + 7) // 8,):
        return Chosen(np.flatnonzero(np.unpackbits(values, count=size, bitorder="little")))
    if values.dtype not in (np.int32, np.int64) or values.ndim != 1:
        raise ValueError(f"{values.dtype} {list(values.shape)}, expected places or a bitmap of {size:,} bits")
    found = values.astype(np.int64)
    if len(found) and (found[0] < 0 or found[-1] >= size or (np.diff(found) <= 0).any()):
        raise ValueError(f"places that are not in order, or not below {size:,}")
    return Chosen(found)


def content_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Of names, types and values, whatever the file looks like."""
    found = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        found.update(f"{name} {values.dtype} {values.size}\n".encode())
        found.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return found.hexdigest()


def write_chosen(file: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write it whole or not at all."""
    from safetensors.numpy import save

    with replacing(file) as temporary:
        temporary.write_bytes(save(dict(tensors), METADATA))


def read_chosen(file: Path, sha256: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Chosen]:
    """Read and check it.

    Raises:
        ArtefactError: missing, damaged, of another core set, or not of these tensors.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise ArtefactError(
            f"{file}: missing; it holds the parameters of the core file beside it, copy both"
        ) from error
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{file}: cut short or damaged ({first_line(error)}); copy or make it again") from error
    if content_sha256(tensors) != sha256 or tensors.keys() != shapes.keys():
        raise ArtefactError(f"{file}: not what the core file beside it names: of another core set, or damaged")
    try:
        return {name: decoded(values, numel(shapes[name])) for name, values in tensors.items()}
    except ValueError as error:
        raise ArtefactError(f"{file}: {error}") from error
