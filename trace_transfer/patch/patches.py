"""`TASK.patch.safetensors`: what one stage changed, with the values before and after, so that it can be undone.

Tensors `before/NAME` and `after/NAME` of each trained tensor, by its run-time name: the whole tensor, or the trained
rows (columns; depth, along the third axis) or single parameters alone, in their order; the places of single parameters
are in `chosen/NAME`, as in the file beside a core file. After a patch its tensors are stored in the type of `after`.
Metadata: format, version, task, method, `names_sha256` of the model, and `parameters`, a JSON list of name, shape and
perhaps rows, columns, depth or chosen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self

import torch
from pydantic import Field, Json, model_validator
from torch import Tensor

from trace_transfer.core_sets.core_file import TensorPart
from trace_transfer.core_sets.masks import Chosen, Mask, Part, Slice, decoded, encoded, merged_ranges
from trace_transfer.engine.slices import laid, taken
from trace_transfer.errors import ArtefactError, each_of, first_line, listing
from trace_transfer.models.content import weights_sha256
from trace_transfer.models.sources import AXES, numel, row_blocks
from trace_transfer.models.stored_weights import StoredTensor, stored_tensors
from trace_transfer.models.tensors import DTYPES, TensorSpec, read_blocks, read_tensor, writing_tensors
from trace_transfer.records import TASK, Strict, checked

SUFFIX = ".patch.safetensors"
BEFORE: Final = "before"
AFTER: Final = "after"
CHOSEN: Final = "chosen"
Kind = Literal["before", "after"]
Changes = Iterable[tuple["PatchEntry", Tensor, Tensor]]


@dataclass(frozen=True)
class PatchEntry:
    """One tensor of a patch: its whole shape, the part that the patch holds (None: all), and its types on disk before
    and after the stage."""

    name: str
    shape: tuple[int, ...]
    part: Part | None
    before_dtype: torch.dtype
    after_dtype: torch.dtype

    @property
    def part_shape(self) -> tuple[int, ...]:
        return self.shape if self.part is None else self.part.shape(self.shape)

    @property
    def num_elements(self) -> int:
        """Those that the patch holds of it."""
        return numel(self.part_shape)

    def part_of(self, value: Tensor) -> Tensor:
        """What the patch holds of a whole tensor."""
        return taken(value, self.part)

    def part_of_block(self, block: Tensor, start: int, stop: int) -> Tensor:
        if self.part is None:
            return block
        return laid(block, self.part).index_select(self.part.dim, index_within(self.part, self.shape, start, stop))

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Its two tensors, and the places of single parameters, by their names in the file."""
        specs = {
            f"{BEFORE}/{self.name}": TensorSpec(self.before_dtype, self.part_shape),
            f"{AFTER}/{self.name}": TensorSpec(self.after_dtype, self.part_shape),
        }
        if self.places is not None:
            specs[f"{CHOSEN}/{self.name}"] = TensorSpec(self.places.dtype, tuple(self.places.shape))
        return specs

    @cached_property
    def places(self) -> Tensor | None:
        """Those of single parameters, as they are stored."""
        return torch.from_numpy(encoded(self.part, numel(self.shape))) if isinstance(self.part, Chosen) else None


def index_within(part: Part, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Where a part lies in the block of rows [start, stop), along its dimension."""
    return torch.as_tensor(part.within(shape, start, stop), dtype=torch.int64)


class _Tensor(TensorPart):
    chosen: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.part and merged_ranges(self.part.ranges) != self.part.ranges:
            raise ValueError(f"{self.name}: {AXES[self.part.dim]} {list(self.part.ranges)}, expected ranges in order")
        return self

    @property
    def part(self) -> Slice | None:
        return next((Slice(dim, ranges) for dim, ranges in enumerate(self.place[1:]) if ranges is not None), None)


class _Header(Strict):
    format: Literal["trace-transfer/patch"] = "trace-transfer/patch"
    version: Literal["1"] = "1"
    task: str = Field(pattern=TASK)
    method: str
    names_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    parameters: Json[tuple[_Tensor, ...]]


@dataclass(frozen=True)
class Patch:
    """A patch on disk, or (`inverted`) the way back. Only its header is in memory."""

    path: Path
    task: str
    method: str
    names_sha256: str
    entries: tuple[PatchEntry, ...]
    inverted: bool = False

    @classmethod
    def open(cls, path: Path | str) -> Patch:
        """Open a patch and check all of its header; an ArtefactError if it is damaged, of another format or version, or
        holds other tensors than its metadata say."""
        file = Path(path)
        header = checked(file, _metadata(file), _Header, ArtefactError)
        stored, entries, problems = stored_tensors(file), [], []
        for tensor in header.parameters:
            found = [stored.get(f"{kind}/{tensor.name}") for kind in (BEFORE, AFTER)]
            before, after = (DTYPES.get(one.dtype if one else "", torch.float32) for one in found)  # others: told below
            try:
                part = tensor.part if tensor.chosen is None else _chosen(file, tensor, stored)
                entries.append(PatchEntry(tensor.name, tensor.shape, part, before, after))
            except ValueError as error:
                problems.append(f"{CHOSEN}/{tensor.name}: {error}")
        problems = problems or _misfits(entries, stored)
        if problems:
            raise ArtefactError(f"{file}: {len(problems)} things do not fit its metadata:\n" + listing(problems))
        return cls(file, header.task, header.method, header.names_sha256, tuple(entries))

    @classmethod
    def open_all(cls, files: Iterable[Path | str]) -> tuple[Patch, ...]:
        """Open patches, in the order given; an ArtefactError names all that cannot be used, as `open` says."""
        return tuple(each_of(files, cls.open, "patches that cannot be used", ArtefactError))

    @cached_property
    def by_name(self) -> Mapping[str, PatchEntry]:
        return {entry.name: entry for entry in self.entries}

    @property
    def num_elements(self) -> int:
        return sum(entry.num_elements for entry in self.entries)

    @property
    def mask(self) -> Mask:
        return Mask({entry.name: entry.part for entry in self.entries})

    @property
    def inverse(self) -> Patch:
        """From the state after the stage back to the one before."""
        back = (replace(one, before_dtype=one.after_dtype, after_dtype=one.before_dtype) for one in self.entries)
        return replace(self, entries=tuple(back), inverted=not self.inverted)

    def before(self, name: str) -> Tensor:
        """Values of a tensor's part in the state that the patch begins with."""
        return read_tensor(self.path, self._key(name, BEFORE))

    def after(self, name: str) -> Tensor:
        return read_tensor(self.path, self._key(name, AFTER))

    def blocks(self, name: str, kind: Kind) -> Iterator[Tensor]:
        """`before` or `after`: what lies in each block of the whole tensor's rows, as `row_blocks` cuts them."""
        entry = self.by_name[name]
        part, counts = entry.part, (stop - start for start, stop in row_blocks(entry.shape))
        if part is not None and part.dim == 0:
            counts = (len(part.within(entry.shape, start, stop)) for start, stop in row_blocks(entry.shape))
        return read_blocks(self.path, self._key(name, kind), counts)

    def _key(self, name: str, kind: Kind) -> str:
        other = AFTER if kind == BEFORE else BEFORE
        return f"{other if self.inverted else kind}/{name}"

    @property
    def sha256(self) -> str:
        return weights_sha256([self.path])


def _metadata(file: Path) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return opened.metadata() or {}
    except SafetensorError as error:
        raise ArtefactError(
            f"{file}: not a safetensors file, or cut short or damaged ({first_line(error)}); have it made or copied "
            "again"
        ) from error
    except OSError as error:
        raise ArtefactError(f"{file}: cannot be read: {error.strerror or first_line(error)}") from error


def _chosen(file: Path, tensor: _Tensor, stored: Mapping[str, StoredTensor]) -> Chosen:
    """The single parameters of a tensor; a ValueError where they are missing or not so many."""
    from safetensors import safe_open

    if (key := f"{CHOSEN}/{tensor.name}") not in stored:
        raise ValueError("missing")
    with safe_open(file, framework="np") as opened:
        part = decoded(opened.get_tensor(key), numel(tensor.shape))
    if len(part.indices) != tensor.chosen:
        raise ValueError(f"{len(part.indices):,} parameters, expected {tensor.chosen:,}")
    return part


def _misfits(entries: Sequence[PatchEntry], stored: Mapping[str, StoredTensor]) -> list[str]:
    """Where the tensors of a file are not those of its entries."""
    expected = {key: spec for entry in entries for key, spec in entry.specs.items()}
    problems = [f"{key}: not in its metadata" for key in sorted(stored.keys() - expected.keys())]
    for key, spec in expected.items():
        if key not in stored:
            problems.append(f"{key}: missing")
        elif not key.startswith(CHOSEN) and stored[key].dtype not in DTYPES:
            problems.append(f"{key}: of type {stored[key].dtype}, expected one of {', '.join(DTYPES)}")
        elif stored[key].shape != spec.shape:
            problems.append(f"{key}: shape {list(stored[key].shape)}, expected {list(spec.shape)}")
    return problems


def write_patch(
    path: Path, *, task: str, method: str, names_sha256: str, entries: Sequence[PatchEntry], values: Changes
) -> Patch:
    """Write a patch, whole or not at all; `values` are each of the entries once, in any order, with its part before and
    after, of the entry's types."""
    tensors = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        described: dict[str, object] = {"name": entry.name, "shape": list(entry.shape)}
        if isinstance(entry.part, Chosen):
            described[CHOSEN] = len(entry.part.indices)
        elif entry.part is not None:
            described[AXES[entry.part.dim]] = [list(one) for one in entry.part.ranges]
        tensors.append(described)
    header = {
        "format": "trace-transfer/patch", "version": "1", "task": task, "method": method, "names_sha256": names_sha256,
        "parameters": json.dumps(tensors, ensure_ascii=False, separators=(",", ":")),
    }  # fmt: skip
    _Header.model_validate(header)
    specs = {key: spec for entry in entries for key, spec in entry.specs.items()}
    with writing_tensors(path, specs, header) as writer:
        for entry, before, after in values:
            writer.add(f"{BEFORE}/{entry.name}", before)
            writer.add(f"{AFTER}/{entry.name}", after)
            if entry.places is not None:
                writer.add(f"{CHOSEN}/{entry.name}", entry.places)
            del before, after  # before the next ones are made
    return Patch.open(path)
