"""What is written and shown beside patches: `verify --json`, the file for `mergekit-yaml`, tables in the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml
from pydantic import Field

from trace_transfer.core_sets.core_file import TensorPart
from trace_transfer.core_sets.masks import Chosen
from trace_transfer.errors import MAX_LISTED, few
from trace_transfer.models.sources import AXES
from trace_transfer.records import Range, Strict
from trace_transfer.terminal import Page, as_text

if TYPE_CHECKING:
    import torch

    from trace_transfer.patch.patches import Patch, PatchEntry
    from trace_transfer.patch.patching import TaskModel


class VerifiedTensor(TensorPart):
    """One tensor in two models.

    `rows`, `columns` or `depth` (along the third axis) are the trained ones, where only some are. Elements are counted
    as core (trained) or frozen, and as moved where their bits differ. `moved_rows` (`moved_columns`, `moved_depth`) are
    those with frozen elements that moved, of a sliced tensor."""

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
        text = f"{self.name}: {self.frozen_moved:,} of {self.frozen:,} frozen parameters"
        for word, ranges in zip(AXES, (self.moved_rows, self.moved_columns, self.moved_depth), strict=True):
            if ranges:
                text += f", in {word} " + few([str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in ranges], 8)
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
        return not self.broken

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

    It computes in a type in which a difference of stored values loses nothing, and stores in the widest of `dtypes`:
    then vectors that do not overlap add up to the very bits of the tasks' models."""
    import torch

    stored = reduce(torch.promote_types, dtypes)
    computed = torch.float32 if stored.itemsize == 2 else torch.float64
    content: dict[str, Any] = {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model, "parameters": {"weight": 1.0, **METHODS[method]}} for model in models],
        "dtype": _dtype(computed),
        "out_dtype": _dtype(stored),
    }
    head = (
        "# mergekit-yaml THIS_FILE OUTPUT_DIRECTORY\n"
        "# A model's weight says how much of its task is added to the base; directories are those of this machine.\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


# ---- in the terminal


@as_text
def render_patch(page: Page, patch: Patch) -> None:
    """Which tensors it holds, and how much of each."""
    page.line(str(patch.path), "bold")
    page.line(
        f"task {patch.task}, method {patch.method}: {len(patch.entries)} tensors, {patch.num_elements:,} parameters, "
        f"{patch.path.stat().st_size:,} bytes"
    )
    page.lines((f"of a model with names_sha256 {patch.names_sha256[:12]}…", ""))
    rows = [
        (one.name, _part(one), one.num_elements, _dtype(one.before_dtype), _dtype(one.after_dtype))
        for one in patch.entries
    ]
    page.table(("tensor", "part", "parameters", "before", "after"), rows)


@as_text
def render_differences(page: Page, found: Sequence[tuple[PatchEntry, int]], num_tensors: int) -> None:
    """What differs between two models."""
    page.line(f"{len(found)} of {num_tensors} tensors differ")
    if found:
        page.line()
        rows = []
        for entry, count in found:
            types = dict.fromkeys(map(_dtype, (entry.before_dtype, entry.after_dtype)))
            rows.append((entry.name, f"{count:,} of {entry.num_elements:,}", " → ".join(types)))
        page.table(("tensor", "parameters that differ", "types"), rows)


@as_text
def render_task_models(page: Page, models: Sequence[TaskModel], file: Path) -> None:
    """The models that were written, and how mergekit merges them."""
    rows = [(one.task, str(one.directory), one.num_elements, one.num_moved_before) for one in models]
    page.table(("task", "model", "parameters", "moved by an earlier task"), rows)
    page.line()
    if any(model.num_moved_before for model in models):
        page.line("Of parameters that an earlier task had moved, a model has what its own task added to them.")
    page.whole(f"mergekit-yaml {shlex.quote(str(file))} merged")


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _part(entry: PatchEntry) -> str:
    if entry.part is None:
        return ""
    if isinstance(entry.part, Chosen):
        return f"{len(entry.part.indices):,} single"
    count = sum(stop - start for start, stop in entry.part.ranges)
    return f"{count} of {entry.shape[entry.part.dim]} {AXES[entry.part.dim]}"


def draw_verification(page: Page, verification: Verification) -> None:
    """What moved, and whether that was frozen."""
    page.line("Compared bit for bit:", "bold")
    page.lines((f"  base   {verification.base}", f"  tuned  {verification.tuned}", ""))
    rows = [(kind, count.parameters, count.elements) for kind, count in verification.counts.items()]
    page.table(("", "tensors", "parameters"), rows)
    page.line()
    changed = [p for p in verification.parameters if p.base_dtype != p.tuned_dtype]
    if changed:
        page.line(f"{len(changed)} tensors are of another type in both and were compared by value")
    for told, tensors in (
        ("core tensors did not move", verification.unmoved), ("frozen tensors MOVED", verification.broken)
    ):  # fmt: skip
        if tensors:
            page.lines((f"! {len(tensors)} {told}:", *(f"  {one.name}" for one in tensors[:MAX_LISTED])))
        if len(tensors) > MAX_LISTED:
            page.line(f"  … and {len(tensors) - MAX_LISTED} more (--json lists all)")
    if verification.ok:
        page.line("no frozen tensor moved")


render_verification = as_text(draw_verification)
