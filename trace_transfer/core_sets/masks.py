"""What is trained: whole tensors, some rows, columns or depth of them, or single parameters. Everything else stays
bit-identical. Names are those of `named_parameters()`.

Single parameters lie in a safetensors file beside the core file, one entry per tensor, under its name: their sorted
places in the flattened tensor (`int32`; `int64` where it has 2³¹ or more), or a bitmap (`uint8`, lowest bit first)
where that is smaller. The core file names the file and the SHA-256 of what it holds, which is also in its name: a file
of another core set is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trace_transfer.errors import ArtefactError, UserError, few, first_line, listing
from trace_transfer.files import sha256_text
from trace_transfer.models.sources import AXES, Ranges, numel

if TYPE_CHECKING:
    from trace_transfer.core_sets.core_file import CoreFile

Places = NDArray[np.int64]
METADATA = {"format": "trace-transfer/chosen", "version": "1"}
ONLY = "only either can be trained"


class MaskError(UserError):
    """A core set cannot be trained on this model."""


@dataclass(frozen=True)
class Slice:
    """Some rows (dim 0), columns (1) or depth (2) of a tensor: half-open ranges, sorted, apart from each other."""

    dim: int
    ranges: Ranges

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Of these ranges of a parameter of that shape, put together."""
        return (*whole[: self.dim], sum(b - a for a, b in self.ranges), *whole[self.dim + 1 :])

    @property
    def indices(self) -> list[int]:
        return [index for start, stop in self.ranges for index in range(start, stop)]

    def within(self, shape: tuple[int, ...], start: int, stop: int) -> list[int] | Places:
        """Its indices in the block of rows [start, stop) alone, counted from there."""
        if self.dim:
            return self.indices
        return [index - start for a, b in self.ranges for index in range(max(a, start), min(b, stop))]

    def __str__(self) -> str:
        return f"{AXES[self.dim]} {few([f'{a}-{b - 1}' for a, b in self.ranges], 5)}"


@dataclass(frozen=True, eq=False)
class Chosen:
    """Single parameters of a tensor: their sorted places in it, flattened."""

    indices: Places
    dim = 0  # of the flattened tensor

    def within(self, shape: tuple[int, ...], start: int, stop: int) -> Places:
        inner = numel(shape[1:])
        first, last = self.indices.searchsorted((start * inner, stop * inner))
        return self.indices[first:last] - start * inner

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.indices),)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chosen) and np.array_equal(self.indices, other.indices)

    def __or__(self, other: Chosen) -> Chosen:
        return Chosen(np.union1d(self.indices, other.indices))

    def common(self, other: Chosen) -> int:
        """How many parameters are in both."""
        return len(np.intersect1d(self.indices, other.indices, assume_unique=True))

    def __str__(self) -> str:
        return f"{len(self.indices):,} single parameters"


Part = Slice | Chosen


@dataclass(frozen=True)
class Mask:
    """The trained tensors, each with its trained part, or None where all of it is trained, in no particular order."""

    parts: Mapping[str, Part | None]

    @classmethod
    def everything(cls, shapes: Mapping[str, tuple[int, ...]]) -> Mask:
        """Full fine-tuning."""
        return cls(dict.fromkeys(shapes))

    @classmethod
    def of_core(cls, core: CoreFile, shapes: Mapping[str, tuple[int, ...]], tied: Mapping[str, str], file: str) -> Mask:
        """The core set of a file on a model with that inventory, where an alias means its owner; a MaskError if it is
        empty, or lists all that the model lacks or has in another shape."""
        problems: list[str] = []
        found: dict[str, dict[int | None, list[tuple[int, int]]]] = {}  # name → dimension (None: whole) → ranges
        for tensor in core.core:
            name = tied.get(tensor.name, tensor.name)
            if name not in shapes:
                problems.append(f"{tensor.name}: not a tensor of this model")
            elif tuple(tensor.shape) != shapes[name]:
                problems.append(f"{name}: {list(tensor.shape)} there, {list(shapes[name])} in this model")
            else:
                sides = found.setdefault(name, {})
                for dim, ranges in enumerate(tensor.place[1:]):
                    if ranges is not None:
                        sides.setdefault(dim, []).extend(ranges)
                if not any(tensor.place[1:]):
                    sides[None] = []
        if problems:
            raise MaskError(
                f"{file}: its core set does not fit the model to be trained; carry it over with `trace-transfer map`:\n"
                + listing(problems)
            )
        if not found:
            raise MaskError(f"{file}: its core set is empty; make another one with `trace-transfer select --ratio`")
        if core.chosen is not None:
            return cls({tied.get(name, name): part for name, part in core.parameters_chosen.items()})
        return cls({name: _joined(f"{file}: {name}", sides, shapes[name]) for name, sides in found.items()})

    def __or__(self, other: Mask) -> Mask:
        """What either of them trains; a MaskError where that is rows of a tensor in one and columns in the other."""
        parts = dict(self.parts)
        for name, part in other.parts.items():
            mine = parts.get(name, part)
            if mine is None or part is None:
                parts[name] = None
            elif isinstance(mine, Chosen) and isinstance(part, Chosen):
                parts[name] = mine | part
            elif isinstance(mine, Slice) and isinstance(part, Slice) and mine.dim == part.dim:
                parts[name] = Slice(part.dim, merged_ranges([*mine.ranges, *part.ranges]))
            else:
                kinds = ["single parameters" if isinstance(one, Chosen) else AXES[one.dim] for one in (mine, part)]
                raise MaskError(f"{name}: its {kinds[0]} are core for one task and its {kinds[1]} for another; {ONLY}")
        return Mask(parts)

    def trains(self, name: str) -> bool:
        return name in self.parts

    def numel(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return sum(numel(shape) for shape in self.trained_shapes(shapes).values())

    def trained_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Name → shape of what is trained of each parameter, in the model's order."""
        trained = ((name, self.parts[name], shape) for name, shape in shapes.items() if name in self.parts)
        return {name: shape if part is None else part.shape(shape) for name, part, shape in trained}

    @cached_property
    def sliced(self) -> Mapping[str, Part]:
        """Those that are trained in part."""
        return {name: part for name, part in self.parts.items() if part is not None}

    @cached_property
    def sha256(self) -> str:
        """Other names or ranges, other sum."""

        def told(part: Part | None) -> str:
            return part.sha256 if isinstance(part, Chosen) else str((part.dim, part.ranges)) if part else ""

        return sha256_text("\n".join(f"{name} {told(self.parts[name])}" for name in sorted(self.parts)))


def _joined(where: str, sides: Mapping[int | None, list[tuple[int, int]]], shape: tuple[int, ...]) -> Slice | None:
    """The parts of one tensor as one slice, None for all of it."""
    if None in sides:
        return None
    dims = sorted(dim for dim in sides if dim is not None)
    if len(dims) > 1:
        raise MaskError(f"{where}: {' and '.join(AXES[dim] for dim in dims)} of one tensor are core; {ONLY}")
    merged = merged_ranges(sides[dims[0]])
    return None if merged == ((0, shape[dims[0]]),) else Slice(dims[0], merged)


def merged_ranges(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges sorted, and one where several touch or overlap."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return tuple(merged)


# ---- single parameters as they are stored


def encoded(chosen: Chosen, size: int) -> NDArray[Any]:
    """As they are stored: places, or a bitmap of so many bits, whichever is smaller."""
    places = chosen.indices.astype(np.int32 if size < 1 << 31 else np.int64)
    if places.nbytes <= (size + 7) // 8:
        return places
    bits = np.zeros(size, dtype=bool)
    bits[chosen.indices] = True
    return np.packbits(bits, bitorder="little")


def decoded(values: NDArray[Any], size: int) -> Chosen:
    """The opposite, of a tensor with so many parameters."""
    if values.dtype == np.uint8:
        return Chosen(np.flatnonzero(np.unpackbits(values, count=size, bitorder="little")))
    return Chosen(values.astype(np.int64))


def content_sha256(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Of names, types and values, whatever the file looks like."""
    found = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        found.update(f"{name} {values.dtype} {values.size}\n".encode())
        found.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return found.hexdigest()


def read_chosen(file: Path, sha256: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Chosen]:
    """Read and check it; an ArtefactError if it is missing, damaged, of another core set, or not of these tensors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise ArtefactError(f"{file}: missing; it holds the parameters of its core file, copy both") from error
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{file}: cut short or damaged ({first_line(error)}); copy or make it again") from error
    if content_sha256(tensors) != sha256 or tensors.keys() != shapes.keys():
        raise ArtefactError(f"{file}: not what the core file beside it names: of another core set, or damaged")
    return {name: decoded(values, numel(shapes[name])) for name, values in tensors.items()}
