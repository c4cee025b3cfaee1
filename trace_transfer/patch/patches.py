"""`TASK.patch.safetensors`: what one stage changed, with the values before and after, so that it can be undone.

Tensors `before/NAME` and `after/NAME` of each trained tensor, by its run-time name: the whole tensor, or the trained
rows (columns; depth, along the third axis) or single parameters alone, one after another in their order; the places of
single parameters are in `chosen/NAME`, as in the file beside a core file. Before and after may be of
different types: after a patch its tensors are stored in the type of `after`. Metadata: format, version, task, method,
`names_sha256` of the model, and `parameters`, a JSON list of name, shape and perhaps rows, columns, depth or chosen.
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

from trace_transfer.core_sets.chosen import Chosen, decoded, encoded
from trace_transfer.core_sets.masks import Mask, Part, Slice
from trace_transfer.engine.slices import laid, taken, with_part
from trace_transfer.errors import ArtefactError, UserError, first_line, listing, together
from trace_transfer.models.content import weights_sha256
from trace_transfer.models.sources import AXES, numel, row_blocks
from trace_transfer.models.tensors import (
    DTYPES,
    TensorSpec,
    converted,
    differing,
    dtype_name,
    read_blocks,
    read_tensor,
    writing_tensors,
)
from trace_transfer.records import TASK, Name, Range, Strict, checked

FORMAT, VERSION = "trace-transfer/patch", "1"
SUFFIX = ".patch.safetensors"
BEFORE: Final = "before"
AFTER: Final = "after"
CHOSEN: Final = "chosen"
Kind = Literal["before", "after"]
Changes = Iterable[tuple["PatchEntry", Tensor, Tensor]]


@dataclass(frozen=True)
class PatchEntry:
    """One tensor of a patch.

    Attributes:
        shape: of the whole tensor.
        part: the rows, columns, depth or single parameters that the patch holds; None for all.
        before_dtype, after_dtype: types in which the tensor is stored before and after the stage.
    """

    name: str
    shape: tuple[int, ...]
    part: Part | None
    before_dtype: torch.dtype
    after_dtype: torch.dtype

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of what the patch holds of it."""
        return self.shape if self.part is None else self.part.shape(self.shape)

    def part_of(self, value: Tensor) -> Tensor:
        """What the patch holds of a whole tensor."""
        return taken(value, self.part)

    @property
    def num_elements(self) -> int:
        """Elements that the patch holds of it."""
        return TensorSpec(self.after_dtype, self.part_shape).num_bytes // self.after_dtype.itemsize

    @property
    def inverse(self) -> PatchEntry:
        return replace(self, before_dtype=self.after_dtype, after_dtype=self.before_dtype)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Its two tensors, and the places of single parameters, by their names in the file."""
        places = self.places
        return {
            f"{BEFORE}/{self.name}": TensorSpec(self.before_dtype, self.part_shape),
            f"{AFTER}/{self.name}": TensorSpec(self.after_dtype, self.part_shape),
            **({f"{CHOSEN}/{self.name}": TensorSpec(places.dtype, tuple(places.shape))} if places is not None else {}),
        }

    @property
    def places(self) -> Tensor | None:
        """Those of single parameters, as they are stored."""
        if not isinstance(self.part, Chosen):
            return None
        return torch.from_numpy(encoded(self.part, numel(self.shape)))


class _Tensor(Strict):
    name: Name
    shape: tuple[int, ...]
    rows: tuple[Range, ...] | None = None
    columns: tuple[Range, ...] | None = None
    depth: tuple[Range, ...] | None = None
    chosen: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_part_that_fits(self) -> Self:
        given = [(dim, word, ranges) for dim, word in enumerate(AXES) if (ranges := getattr(self, word)) is not None]
        if len(given) + (self.chosen is not None) > 1:
            raise ValueError(f"{self.name}: {' and '.join(word for _, word, _ in given)}, expected one of them")
        for dim, word, ranges in given:
            bounds = [bound for one in ranges for bound in one]
            size = self.shape[dim] if dim < len(self.shape) else 0
            in_order = all(a < b for a, b in ranges) and bounds == sorted(bounds)
            if not (bounds and in_order and bounds[0] >= 0 and bounds[-1] <= size):
                told = f"{word} {[list(one) for one in ranges]} of shape {list(self.shape)}"
                raise ValueError(f"{self.name}: {told}, expected ranges in order and within it")
        return self

    @property
    def part(self) -> Slice | None:
        for dim, word in enumerate(AXES):
            if (ranges := getattr(self, word)) is not None:
                return Slice(dim, ranges)
        return None


class _Header(Strict):
    """The metadata of a patch."""

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
        """Open a patch and check all of its header.

        Raises:
            ArtefactError: it cannot be read, is cut short or damaged, of another format or version, or holds other
                tensors than its metadata say; all of that is told at once.
        """
        file = Path(path)
        metadata, specs = _read_header(file)
        found = metadata.get("format")
        if found != FORMAT:
            what = f"format {found!r}" if found else "no 'format' in its metadata"
            raise ArtefactError(f"{file}: {what}, expected {FORMAT}")
        header = checked(file, metadata, _Header, ArtefactError)
        entries, problems = _entries(file, header.parameters, specs)
        if problems:
            raise ArtefactError(f"{file}: {len(problems)} things do not fit its metadata:\n" + listing(problems))
        return cls(file, header.task, header.method, header.names_sha256, entries)

    @classmethod
    def open_all(cls, files: Iterable[Path | str]) -> tuple[Patch, ...]:
        """Open patches, in the order given.

        Raises:
            ArtefactError: some cannot be used, as `open` says; all of them are named.
        """
        patches, problems = [], []
        for file in files:
            try:
                patches.append(cls.open(file))
            except ArtefactError as error:
                problems.append(str(error))
        if problems:
            raise ArtefactError(together("patches that cannot be used", problems))
        return tuple(patches)

    @cached_property
    def by_name(self) -> Mapping[str, PatchEntry]:
        return {entry.name: entry for entry in self.entries}

    @property
    def num_elements(self) -> int:
        """Elements that it holds."""
        return sum(entry.num_elements for entry in self.entries)

    @property
    def mask(self) -> Mask:
        """What it changes."""
        return Mask({entry.name: entry.part for entry in self.entries})

    @property
    def inverse(self) -> Patch:
        """From the state after the stage back to the one before."""
        return replace(self, entries=tuple(entry.inverse for entry in self.entries), inverted=not self.inverted)

    def before(self, name: str) -> Tensor:
        """A tensor's values (those of its part) in the state that the patch begins with."""
        return read_tensor(self.path, self._key(name, BEFORE))

    def after(self, name: str) -> Tensor:
        """A tensor's values (those of its part) in the state that the patch ends with."""
        return read_tensor(self.path, self._key(name, AFTER))

    def blocks(self, name: str, kind: Kind, counts: Iterable[int]) -> Iterator[Tensor]:
        """`before` or `after` in blocks of some rows each."""
        return read_blocks(self.path, self._key(name, kind), counts)

    def _key(self, name: str, kind: Kind) -> str:
        other = AFTER if kind == BEFORE else BEFORE
        return f"{other if self.inverted else kind}/{name}"

    @property
    def sha256(self) -> str:
        """Of the file."""
        return weights_sha256([self.path])


def write_patch(
    path: Path, *, task: str, method: str, names_sha256: str, entries: Sequence[PatchEntry], values: Changes
) -> Patch:
    """Write a patch, one tensor in memory at a time; whole or not at all.

    Args:
        values: each of the entries once, in any order, with its part before and after, of the entry's types.

    Raises:
        DiskFullError: nothing of the patch is left.
        ValueError: values that are not those of the entries.
    """
    tensors = [_described(entry) for entry in sorted(entries, key=lambda entry: entry.name)]
    header = {
        "format": FORMAT, "version": VERSION, "task": task, "method": method, "names_sha256": names_sha256,
        "parameters": json.dumps(tensors, ensure_ascii=False, separators=(",", ":")),
    }  # fmt: skip
    _Header.model_validate(header)
    specs = {key: spec for entry in entries for key, spec in entry.specs.items()}
    with writing_tensors(path, specs, header) as writer:
        for entry, before, after in values:
            writer.add(f"{BEFORE}/{entry.name}", before)
            writer.add(f"{AFTER}/{entry.name}", after)
            if (places := entry.places) is not None:
                writer.add(f"{CHOSEN}/{entry.name}", places)
            del before, after  # before the next ones are made
    return Patch.open(path)


def _described(entry: PatchEntry) -> dict[str, object]:
    described: dict[str, object] = {"name": entry.name, "shape": list(entry.shape)}
    if isinstance(entry.part, Chosen):
        described[CHOSEN] = len(entry.part.places)
    elif entry.part is not None:
        described[AXES[entry.part.dim]] = [list(one) for one in entry.part.ranges]
    return described


def _read_header(file: Path) -> tuple[Mapping[str, str], Mapping[str, tuple[str, tuple[int, ...]]]]:
    """Metadata, and name → (type, shape) of each tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
            found = {key: (one.get_dtype(), tuple(one.get_shape())) for key, one in slices.items()}
            return opened.metadata() or {}, found
    except SafetensorError as error:
        raise ArtefactError(
            f"{file}: not a safetensors file, or cut short or damaged ({first_line(error)}); have it made or copied "
            "again"
        ) from error
    except OSError as error:
        raise ArtefactError(f"{file}: cannot be read: {error.strerror or first_line(error)}") from error


def _entries(
    file: Path, tensors: Sequence[_Tensor], specs: Mapping[str, tuple[str, tuple[int, ...]]]
) -> tuple[tuple[PatchEntry, ...], list[str]]:
    """The entries that metadata describe, and whatever tensors or metadata do not fit."""
    entries: dict[str, PatchEntry] = {}
    problems, rest = [], dict(specs)
    for tensor in tensors:
        entry = PatchEntry(tensor.name, tensor.shape, tensor.part, torch.float32, torch.float32)
        if entry.name in entries:
            problems.append(f"{entry.name}: listed twice")
            continue
        if tensor.chosen is not None:
            entry, problem = _with_places(file, entry, tensor.chosen, rest.pop(f"{CHOSEN}/{entry.name}", None))
            problems += [] if problem is None else [problem]
        dtypes = dict.fromkeys((BEFORE, AFTER), torch.float32)
        for kind in dtypes:
            dtype, shape = rest.pop(key := f"{kind}/{entry.name}", (None, ()))
            if dtype is None:
                problems.append(f"{key}: missing")
            elif dtype not in DTYPES:
                problems.append(f"{key}: of type {dtype}, expected one of {', '.join(DTYPES)}")
            elif shape != entry.part_shape:
                problems.append(f"{key}: shape {list(shape)}, expected {list(entry.part_shape)}")
            else:
                dtypes[kind] = DTYPES[dtype]
        entries[entry.name] = replace(entry, before_dtype=dtypes[BEFORE], after_dtype=dtypes[AFTER])
    return tuple(entries.values()), [*problems, *(f"{key}: not in its metadata" for key in sorted(rest))]


def _with_places(
    file: Path, entry: PatchEntry, count: int, spec: tuple[str, tuple[int, ...]] | None
) -> tuple[PatchEntry, str | None]:
    """An entry with its single parameters, or what is wrong with them."""
    from safetensors import safe_open

    key = f"{CHOSEN}/{entry.name}"
    if spec is None:
        return entry, f"{key}: missing"
    with safe_open(file, framework="np") as opened:
        try:
            part = decoded(opened.get_tensor(key), numel(entry.shape))
        except ValueError as error:
            return entry, f"{key}: {error}"
    found = len(part.places)
    return replace(entry, part=part), None if found == count else f"{key}: {found:,} parameters, expected {count:,}"


class StateError(UserError):
    """A model is not in the state that a patch begins with."""


@dataclass
class Difference:
    """How one tensor of a model differs from what a patch begins with, added up over its blocks."""

    expected_dtype: torch.dtype
    found_dtype: torch.dtype | None = None
    count: int = 0
    is_after: bool = True

    def add(self, found: Tensor, before: Tensor, after: Tensor) -> None:
        """A block's part as it is in the model, and as it is before and after the patch."""
        self.found_dtype = found.dtype
        self.count += int(differing(found, before).sum())
        self.is_after &= found.dtype == after.dtype and not bool(differing(found, after).any())

    @property
    def exists(self) -> bool:
        return self.count > 0 or self.found_dtype != self.expected_dtype

    @property
    def told(self) -> str:
        if self.found_dtype == self.expected_dtype:
            return f"{self.count:,} element" + ("" if self.count == 1 else "s")
        found, expected = map(dtype_name, (self.found_dtype, self.expected_dtype))
        return f"{found} there, {expected} in the patch" + (", and other values" if self.count else "")


@dataclass(frozen=True)
class Step:
    """A patch's values of one tensor, read along with the tensor's blocks of rows."""

    patch: Patch
    entry: PatchEntry
    values: Iterator[Tensor]

    @classmethod
    def of(cls, patch: Patch, entry: PatchEntry, kind: Kind) -> Step:
        counts = (
            len(inside(entry, start, stop)) if entry.part is not None and entry.part.dim == 0 else stop - start
            for start, stop in row_blocks(entry.shape)
        )
        return cls(patch, entry, patch.blocks(entry.name, kind, counts))

    def part_of(self, block: Tensor, start: int, stop: int) -> Tensor:
        """Those elements of a block that the patch holds."""
        part = self.entry.part
        if part is None:
            return block
        return laid(block, part).index_select(part.dim, inside(self.entry, start, stop))

    def put(self, block: Tensor, values: Tensor, start: int, stop: int, *, lossy: bool = False) -> Tensor:
        """The block with the patch's values in it, in their type.

        Args:
            lossy: round where that type does not hold the values of the other rows; otherwise that is an error.
        """
        part = self.entry.part
        if part is None:
            return values
        wide = torch.promote_types(block.dtype, values.dtype)
        whole = with_part(block.to(wide), part, inside(self.entry, start, stop), values.to(wide))
        found = whole.to(values.dtype) if lossy else converted(whole, values.dtype)
        if found is None:
            raise StateError(
                f"{self.patch.path}: stores {self.entry.name} as {dtype_name(self.entry.after_dtype)}, which does not "
                "hold the values that its other rows have in this model"
            )
        return found


def inside(entry: PatchEntry, start: int, stop: int) -> Tensor:
    """Which rows of the block of rows [start, stop), or which columns (or depth), a sliced entry holds; of single
    parameters their places in the flattened block."""
    assert entry.part is not None
    if isinstance(entry.part, Chosen):
        inner = numel(entry.shape[1:])
        first, last = entry.part.places.searchsorted((start * inner, stop * inner))
        return torch.from_numpy(entry.part.places[first:last] - start * inner)
    ranges = entry.part.ranges
    if entry.part.dim == 0:
        ranges = tuple((max(a, start) - start, min(b, stop) - start) for a, b in ranges if a < stop and b > start)
    return torch.cat([torch.arange(a, b) for a, b in ranges]) if ranges else torch.empty(0, dtype=torch.long)
