"""What is trained: whole tensors, some rows, columns or depth of them, or single parameters. Everything else stays
bit-identical.

Names are those of `named_parameters()`; True means trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from trace_transfer.core_sets.chosen import Chosen
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import UserError, listing
from trace_transfer.files import sha256_text
from trace_transfer.models.sources import AXES, Ranges, part_numel


class MaskError(UserError):
    """A core set cannot be trained on this model."""


@dataclass(frozen=True)
class Slice:
    """Some rows (dim 0), columns (1) or depth (2) of a tensor: half-open ranges, sorted, apart from each other."""

    dim: int
    ranges: Ranges

    def numel(self, shape: tuple[int, ...]) -> int:
        """Elements in these ranges of a tensor of that shape."""
        rows, columns, depth = (self.ranges if dim == self.dim else None for dim in range(len(AXES)))
        return part_numel(shape, rows, columns, depth)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Of these ranges of a parameter of that shape, put together."""
        return (*whole[: self.dim], len(self.indices), *whole[self.dim + 1 :])

    @property
    def indices(self) -> list[int]:
        """Every index along its dimension, in order."""
        return [index for start, stop in self.ranges for index in range(start, stop)]


Part = Slice | Chosen


@dataclass(frozen=True)
class Mask:
    """The trained tensors, each with its trained part, or None where all of it is trained.

    Attributes:
        parts: name → part, in no particular order.
    """

    parts: Mapping[str, Part | None]

    @classmethod
    def everything(cls, shapes: Mapping[str, tuple[int, ...]]) -> Mask:
        """Full fine-tuning."""
        return cls(dict.fromkeys(shapes))

    @classmethod
    def of_core(cls, core: CoreFile, shapes: Mapping[str, tuple[int, ...]], tied: Mapping[str, str], file: str) -> Mask:
        """The core set of a file on a model.

        Args:
            shapes, tied: the model's inventory; an alias means its owner.
            file: for messages.

        Raises:
            MaskError: it is empty, or names what the model lacks or has in another shape; lists all of it.
        """
        problems: list[str] = []
        found: dict[str, list[tuple[Ranges | None, ...]]] = {}
        for tensor in core.core:
            name = tied.get(tensor.name, tensor.name)
            if name not in shapes:
                problems.append(f"{tensor.name}: not a tensor of this model")
            elif tuple(tensor.shape) != shapes[name]:
                problems.append(f"{name}: {list(tensor.shape)} there, {list(shapes[name])} in this model")
            else:
                found.setdefault(name, []).append(tensor.place[1:])
        if problems:
            raise MaskError(
                f"{file}: its core set does not fit the model to be trained; carry it over with `trace-transfer map`:\n"
                + listing(problems)
            )
        if not found:
            raise MaskError(f"{file}: its core set is empty; make another one with `trace-transfer select --ratio`")
        if core.chosen is not None:
            return cls({tied.get(name, name): part for name, part in core.parameters_chosen.items()})
        return cls({name: _joined(name, parts, shapes[name], file) for name, parts in found.items()})

    def __or__(self, other: Mask) -> Mask:
        """What either of them trains.

        Raises:
            MaskError: ranges along one dimension of a tensor in one, and along another in the other.
        """
        parts = dict(self.parts)
        for name, part in other.parts.items():
            mine = parts.get(name, part)
            if mine is None or part is None:
                parts[name] = None
            elif isinstance(mine, Chosen) and isinstance(part, Chosen):
                parts[name] = mine | part
            elif isinstance(mine, Chosen) or isinstance(part, Chosen):
                raise MaskError(
                    f"{name}: single parameters are core for one task and rows for another; only either can"
                )
            elif mine.dim == part.dim:
                parts[name] = Slice(part.dim, merged_ranges([*mine.ranges, *part.ranges]))
            else:
                one, two = sorted((mine.dim, part.dim))
                raise MaskError(
                    f"{name}: its {AXES[one]} are core for one task and its {AXES[two]} for another; only either can "
                    "be trained"
                )
        return Mask(parts)

    def trains(self, name: str) -> bool:
        """Whether anything of a tensor is trained."""
        return name in self.parts

    def numel(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Trained elements."""
        return sum(
            part.numel(shapes[name]) if part else part_numel(shapes[name], None, None)
            for name, part in self.parts.items()
        )

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

        lines = (f"{name} {told(self.parts[name])}" for name in sorted(self.parts))
        return sha256_text("\n".join(lines))


def _joined(name: str, parts: Sequence[tuple[Ranges | None, ...]], shape: tuple[int, ...], file: str) -> Slice | None:
    """The parts of one tensor as one slice, None for all of it; each part has its ranges of rows, columns, depth."""
    if any(ranges == (None,) * len(AXES) for ranges in parts):
        return None
    dims = sorted({dim for ranges in parts for dim, one in enumerate(ranges) if one is not None})
    if len(dims) > 1:
        words = " and ".join(AXES[dim] for dim in dims)
        raise MaskError(f"{file}: {name}: {words} of one tensor are core; only either can be trained")
    (dim,) = dims
    merged = merged_ranges(one for ranges in parts for one in ranges[dim] or ())
    return None if merged == ((0, shape[dim]),) else Slice(dim, merged)


def merged_ranges(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges sorted, and one where several touch or overlap."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return tuple(merged)
