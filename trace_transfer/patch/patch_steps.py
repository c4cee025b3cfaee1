"""Patches followed along the blocks of rows of one parameter, and how a model differs from what a patch begins with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trace_transfer.errors import UserError
from trace_transfer.models.bits import converted, differing
from trace_transfer.models.sources import row_blocks
from trace_transfer.patch.patches import Kind, Patch, PatchEntry


class StateError(UserError):
    """A model is not in the state that a patch begins with."""


@dataclass
class Difference:
    """How one parameter of a model differs from what a patch begins with, added up over its blocks."""

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
        found, expected = (str(dtype).removeprefix("torch.") for dtype in (self.found_dtype, self.expected_dtype))
        return f"{found} there, {expected} in the patch" + (", and other values" if self.count else "")


@dataclass(frozen=True)
class Step:
    """A patch's values of one parameter, read along with the parameter's blocks of rows."""

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
        return block if part is None else block.index_select(part.dim, inside(self.entry, start, stop))

    def put(self, block: Tensor, values: Tensor, start: int, stop: int, *, lossy: bool = False) -> Tensor:
        """The block with the patch's values in it, in their type.

        Args:
            lossy: round where that type does not hold the values of the other rows; otherwise that is an error.
        """
        part = self.entry.part
        if part is None:
            return values
        wide = torch.promote_types(block.dtype, values.dtype)
        whole = block.to(wide).index_copy(part.dim, inside(self.entry, start, stop), values.to(wide))
        found = whole.to(values.dtype) if lossy else converted(whole, values.dtype)
        if found is None:
            raise does_not_hold(self.entry, self.patch)
        return found


def inside(entry: PatchEntry, start: int, stop: int) -> Tensor:
    """Which rows of the block of rows [start, stop), or which columns (or depth), a sliced entry holds."""
    assert entry.part is not None
    ranges = entry.part.ranges
    if entry.part.dim == 0:
        ranges = tuple((max(a, start) - start, min(b, stop) - start) for a, b in ranges if a < stop and b > start)
    return torch.cat([torch.arange(a, b) for a, b in ranges]) if ranges else torch.empty(0, dtype=torch.long)


def does_not_hold(entry: PatchEntry, patch: Patch) -> StateError:
    return StateError(
        f"{patch.path}: stores {entry.name} as {str(entry.after_dtype).removeprefix('torch.')}, which does not "
        "hold the values that its other rows have in this model"
    )
