"""Patches, differences and proofs in the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trace_transfer.core_sets.chosen import Chosen
from trace_transfer.errors import MAX_LISTED
from trace_transfer.models.sources import AXES
from trace_transfer.patch.records import Verification, VerifiedTensor
from trace_transfer.terminal import Page, drawn

if TYPE_CHECKING:
    from trace_transfer.patch.patches import Patch, PatchEntry
    from trace_transfer.patch.patching import Difference, TaskModels


def render_patch(patch: Patch) -> str:
    """A patch as text as wide as the terminal."""
    return drawn(lambda page: _draw_patch(patch, page))


def _draw_patch(patch: Patch, page: Page) -> None:
    page.line(str(patch.path), "bold")
    page.line(
        f"task {patch.task}, method {patch.method}: {len(patch.entries)} tensors, {patch.num_elements:,} elements, "
        f"{patch.path.stat().st_size:,} bytes"
    )
    page.line(f"of a model with names_sha256 {patch.names_sha256[:12]}…")
    page.line()
    page.table(
        [("tensor", "left"), ("part", "left"), ("elements", "right"), ("before", "left"), ("after", "left")],
        ((e.name, _part(e), f"{e.num_elements:,}", _dtype(e.before_dtype), _dtype(e.after_dtype))
         for e in patch.entries),
    )  # fmt: skip


def render_differences(found: Sequence[Difference], num_tensors: int) -> str:
    """What differs between two models, as text as wide as the terminal."""
    return drawn(lambda page: _draw_differences(found, num_tensors, page))


def _draw_differences(found: Sequence[Difference], num_tensors: int, page: Page) -> None:
    page.line(f"{len(found)} of {num_tensors} tensors differ")
    if found:
        page.line()
        page.table(
            [("tensor", "left"), ("elements that differ", "right"), ("types", "left")],
            ((d.entry.name, f"{d.count:,} of {d.entry.num_elements:,}", _types(d.entry)) for d in found),
        )


def render_task_models(found: TaskModels) -> str:
    """The models that were written, and how mergekit merges them, as text as wide as the terminal."""
    return drawn(lambda page: _draw_task_models(found, page))


def _draw_task_models(found: TaskModels, page: Page) -> None:
    page.table(
        [("task", "left"), ("model", "left"), ("elements", "right"), ("moved by an earlier task", "right")],
        ((m.task, str(m.directory), f"{m.num_elements:,}", f"{m.num_moved_before:,}") for m in found.models),
    )
    page.line()
    if any(model.num_moved_before for model in found.models):
        page.line("Of elements that an earlier task had moved, a model has what its own task added to them.")
    page.whole(f"mergekit-yaml {shlex.quote(str(found.yaml))} merged")


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _types(entry: PatchEntry) -> str:
    same = entry.before_dtype == entry.after_dtype
    return _dtype(entry.after_dtype) if same else f"{_dtype(entry.before_dtype)} → {_dtype(entry.after_dtype)}"


def _part(entry: PatchEntry) -> str:
    if entry.part is None:
        return ""
    if isinstance(entry.part, Chosen):
        return f"{len(entry.part.places):,} single"
    count = sum(stop - start for start, stop in entry.part.ranges)
    return f"{count} of {entry.shape[entry.part.dim]} {AXES[entry.part.dim]}"


def render_verification(verification: Verification) -> str:
    """The result as text as wide as the terminal."""
    return drawn(lambda page: draw_verification(verification, page))


def draw_verification(verification: Verification, page: Page) -> None:
    """Draw the result within a page's width."""
    page.line("Compared bit for bit:", "bold")
    page.line(f"  base   {verification.base}")
    page.line(f"  tuned  {verification.tuned}")
    page.line()
    page.table(
        [("", "left"), ("tensors", "right"), ("elements", "right")],
        ((kind, f"{count.parameters:,}", f"{count.elements:,}") for kind, count in verification.counts.items()),
    )
    page.line()
    changed = [p for p in verification.parameters if p.base_dtype != p.tuned_dtype]
    if changed:
        page.line(f"{len(changed)} tensors are of another type in both and were compared by value")
    _names(f"! {len(verification.unmoved)} core tensors did not move:", verification.unmoved, page)
    if verification.ok:
        page.line("no frozen tensor moved")
    else:
        _names(f"! {len(verification.broken)} frozen tensors MOVED:", verification.broken, page)


def _names(heading: str, tensors: tuple[VerifiedTensor, ...], page: Page) -> None:
    if not tensors:
        return
    page.line(heading, "yellow")
    for tensor in tensors[:MAX_LISTED]:
        page.line(f"  {tensor.name}")
    if len(tensors) > MAX_LISTED:
        page.line(f"  … and {len(tensors) - MAX_LISTED} more (--json lists all)")
