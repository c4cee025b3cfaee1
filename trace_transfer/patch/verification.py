"""`verify --json`: for every parameter of two models, how much of it moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from trace_transfer.records import Range, Strict


class VerifiedParameter(Strict):
    """One parameter in two models.

    `rows`, `columns` or `depth` (along the third axis) are the trained ones, where only some are. Elements are counted
    as core (trained) or frozen, and as moved where their bits differ. `moved_rows` (`moved_columns`, `moved_depth`) are
    those with frozen elements that moved, of a parameter of which some are trained.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[Range, ...] | None = None
    columns: tuple[Range, ...] | None = None
    depth: tuple[Range, ...] | None = None
    base_dtype: str
    tuned_dtype: str
    core: int = Field(ge=0)
    core_moved: int = Field(ge=0)
    frozen: int = Field(ge=0)
    frozen_moved: int = Field(ge=0)
    moved_rows: tuple[Range, ...] | None = None
    moved_columns: tuple[Range, ...] | None = None
    moved_depth: tuple[Range, ...] | None = None

    @property
    def told(self) -> str:
        """What of it moved although it was frozen."""
        text = f"{self.name}: {self.frozen_moved:,} of {self.frozen:,} frozen elements"
        for word, ranges in (("rows", self.moved_rows), ("columns", self.moved_columns), ("depth", self.moved_depth)):
            if ranges:
                shown = ", ".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in ranges[:8])
                text += f", in {word} {shown}" + (", …" if len(ranges) > 8 else "")
        return text + (f" ({self.base_dtype} → {self.tuned_dtype})" if self.base_dtype != self.tuned_dtype else "")


@dataclass(frozen=True)
class Count:
    """Parameters and elements of one kind."""

    parameters: int
    elements: int


class Verification(Strict):
    """What moved between two models of the same names, in the order of the model."""

    format: Literal["trace-transfer/verification"] = "trace-transfer/verification"
    version: Literal[1] = 1
    base: str
    base_fingerprint: str
    tuned: str
    names_sha256: str
    mask_sha256: str
    parameters: tuple[VerifiedParameter, ...]
    libraries: dict[str, str] = Field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no frozen element moved."""
        return not self.broken

    @property
    def wrong(self) -> tuple[str, ...]:
        """A line for each parameter of which something frozen moved."""
        return tuple(parameter.told for parameter in self.broken)

    @property
    def broken(self) -> tuple[VerifiedParameter, ...]:
        """Those of which something frozen moved."""
        return tuple(parameter for parameter in self.parameters if parameter.frozen_moved)

    @property
    def unmoved(self) -> tuple[VerifiedParameter, ...]:
        """Those of which something is core, and nothing of that moved."""
        return tuple(parameter for parameter in self.parameters if parameter.core and not parameter.core_moved)

    @property
    def counts(self) -> dict[str, Count]:
        """What moved and what did not; a sliced parameter may be counted as core and as frozen.

        A parameter is unmoved if nothing of its core (frozen) elements moved.
        """
        every = self.parameters
        return {
            "core moved": _count([(p.core_moved, p.core_moved) for p in every]),
            "core unmoved": _count([(p.core and not p.core_moved, p.core - p.core_moved) for p in every]),
            "frozen unmoved": _count([(p.frozen and not p.frozen_moved, p.frozen - p.frozen_moved) for p in every]),
            "frozen MOVED": _count([(p.frozen_moved, p.frozen_moved) for p in every]),
        }


def _count(pairs: Sequence[tuple[object, int]]) -> Count:
    return Count(sum(bool(counted) for counted, _ in pairs), sum(elements for _, elements in pairs))
