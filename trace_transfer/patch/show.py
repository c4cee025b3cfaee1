"""Patches, differences and proofs in the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trace_transfer.core_sets.masks import Chosen
from trace_transfer.errors import MAX_LISTED
from trace_transfer.models.sources import AXES
from trace_transfer.patch.records import Verification
from trace_transfer.terminal import Page, as_text

if TYPE_CHECKING:
    from trace_transfer.patch.patches import Patch, PatchEntry
    from trace_transfer.patch.patching import Difference, TaskModels


@as_text
def render_patch(page: Page, patch: Patch) -> None:
    """Which tensors it holds, and how much of each."""
    page.line(str(patch.path), "bold")
    page.line(
        f"task {patch.task}, method {patch.method}: {len(patch.entries)} tensors, {patch.num_elements:,} elements, "
        f"{patch.path.stat().st_size:,} bytes"
    )
    page.lines((f"of a model with names_sha256 {patch.names_sha256[:12]}…", ""))
    rows = [
        (one.name, _part(one), one.num_elements, _dtype(one.before_dtype), _dtype(one.after_dtype))
        for one in patch.entries
    ]
    page.table(("tensor", "part", "elements", "before", "after"), rows)


@as_text
def render_differences(page: Page, found: Sequence[Difference], num_tensors: int) -> None:
    """What differs between two models."""
    page.line(f"{len(found)} of {num_tensors} tensors differ")
    if found:
        page.line()
        rows = [(one.entry.name, f"{one.count:,} of {one.entry.num_elements:,}", _types(one.entry)) for one in found]
        page.table(("tensor", "elements that differ", "types"), rows)


@as_text
def render_task_models(page: Page, found: TaskModels) -> None:
    """The models that were written, and how mergekit merges them."""
    rows = [(one.task, str(one.directory), one.num_elements, one.num_moved_before) for one in found.models]
    page.table(("task", "model", "elements", "moved by an earlier task"), rows)
    page.line()
    if any(model.num_moved_before for model in found.models):
        page.line("Of elements that an earlier task had moved, a model has what its own task added to them.")
    page.whole(f"mergekit-yaml {shlex.quote(str(found.yaml))} merged")


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _types(entry: PatchEntry) -> str:
    return " → ".join(dict.fromkeys(map(_dtype, (entry.before_dtype, entry.after_dtype))))


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
    page.table(("", "tensors", "elements"), rows)
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
