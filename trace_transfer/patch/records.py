"""What is written beside patches: `verify --json`, and the file that `mergekit-yaml` reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml
from pydantic import Field

from trace_transfer.core_sets.core_file import TensorPart
from trace_transfer.models.sources import AXES
from trace_transfer.records import Range, Strict

if TYPE_CHECKING:
    import torch


class VerifiedTensor(TensorPart):
    """One tensor in two models.

    `rows`, `columns` or `depth` (along the third axis) are the trained ones, where only some are. Elements are counted
    as core (trained) or frozen, and as moved where their bits differ. `moved_rows` (`moved_columns`, `moved_depth`) are
    those with frozen elements that moved, of a sliced tensor.
    """

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
        for word, ranges in zip(AXES, (self.moved_rows, self.moved_columns, self.moved_depth), strict=True):
            if ranges:
                shown = ", ".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in ranges[:8])
                text += f", in {word} {shown}" + (", …" if len(ranges) > 8 else "")
        return text + (f" ({self.base_dtype} → {self.tuned_dtype})" if self.base_dtype != self.tuned_dtype else "")


class Count(NamedTuple):
    """Tensors and elements of one kind."""

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
    parameters: tuple[VerifiedTensor, ...]
    libraries: dict[str, str] = Field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no frozen element moved."""
        return not self.broken

    @property
    def wrong(self) -> tuple[str, ...]:
        return tuple(tensor.told for tensor in self.broken)

    @property
    def broken(self) -> tuple[VerifiedTensor, ...]:
        """Tensors with frozen elements that moved."""
        return tuple(tensor for tensor in self.parameters if tensor.frozen_moved)

    @property
    def unmoved(self) -> tuple[VerifiedTensor, ...]:
        """Tensors with core elements, none of which moved."""
        return tuple(tensor for tensor in self.parameters if tensor.core and not tensor.core_moved)

    @property
    def counts(self) -> dict[str, Count]:
        """What moved and what did not; a sliced tensor may be counted as core and as frozen, as unmoved if nothing of
        its core (frozen) elements moved."""
        found = {}
        for kind in ("core", "frozen"):
            pairs = [(getattr(one, kind), getattr(one, f"{kind}_moved")) for one in self.parameters]
            moved, unmoved = [some for _, some in pairs if some], [every for every, some in pairs if every and not some]
            found[f"{kind} {'moved' if kind == 'core' else 'MOVED'}"] = Count(len(moved), sum(moved))
            found[f"{kind} unmoved"] = Count(len(unmoved), sum(every - some for every, some in pairs))
        return {key: found[key] for key in ("core moved", "core unmoved", "frozen unmoved", "frozen MOVED")}


# Methods that merge task vectors → what each task's model is given besides its weight.
METHODS: Mapping[str, Mapping[str, float]] = {
    "task_arithmetic": {},
    "ties": {"density": 1.0},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
}


def mergekit_yaml(base: str, models: Sequence[str], method: str, dtypes: Iterable[torch.dtype]) -> str:
    """A mergekit configuration that adds the models' task vectors to the base, each once.

    It computes in a type wide enough for a difference of two stored values to lose nothing, and stores in the widest
    type of the models (`dtypes`): then vectors that do not overlap add up to the very bits of the tasks' models.
    """
    import torch

    stored = reduce(torch.promote_types, dtypes)
    computed = torch.float32 if stored.itemsize == 2 else torch.float64
    content: dict[str, Any] = {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model, "parameters": {"weight": 1.0, **METHODS[method]}} for model in models],
        "dtype": str(computed).removeprefix("torch."),
        "out_dtype": str(stored).removeprefix("torch."),
    }
    head = (
        "# mergekit-yaml THIS_FILE OUTPUT_DIRECTORY\n"
        "# A model's weight says how much of its task is added to the base; directories are those of this machine.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
