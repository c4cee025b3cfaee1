"""What a stage of a stream changed, made a patch: trained values beside the state that the stage began with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from trace_transfer.core_sets.masks import Mask
from trace_transfer.errors import NumericalError, TraceTransferError
from trace_transfer.models.bits import all_finite
from trace_transfer.patch.model_state import ModelState
from trace_transfer.patch.patches import Patch, PatchEntry, write_patch


def patch_entries(state: ModelState, mask: Mask, save_dtype: str = "stored") -> tuple[PatchEntry, ...]:
    """The entries of the patch of a stage, in the order of the model; reads headers only.

    Args:
        state: that the stage begins with.
        save_dtype: `stored`, the type in which the state has each parameter, or `float32`, or wider where it is wider.
    """
    entries = []
    for name, shape in state.shapes.items():
        if mask.trains(name):
            before = state.dtype(name)
            after = torch.promote_types(before, torch.float32) if save_dtype == "float32" else before
            entries.append(PatchEntry(name, shape, mask.parts[name], before, after))
    return tuple(entries)


def record_patch(
    path: Path, state: ModelState, mask: Mask, trained: Iterable[tuple[str, Tensor]], *, task: str, method: str,
    save_dtype: str = "stored",
) -> Patch:  # fmt: skip
    """Write the patch of a stage, a parameter at a time.

    Args:
        state: that the stage began with.
        trained: what is trained of each parameter of the mask, in float32, once, in any order (of a slice its rows or
            columns, one after the other).

    Raises:
        NumericalError: values that are not finite, or that the stored type cannot hold.
        TraceTransferError: other parameters come than those of the mask.
        DiskFullError: nothing of the patch is left.
    """
    entries = patch_entries(state, mask, save_dtype)
    return write_patch(
        path, task=task, method=method, names_sha256=state.names_sha256, entries=entries,
        values=_changes(state, entries, trained),
    )  # fmt: skip


def _changes(
    state: ModelState, entries: Iterable[PatchEntry], trained: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[PatchEntry, Tensor, Tensor]]:
    waiting = {entry.name: entry for entry in entries}
    for name, value in trained:
        if name not in waiting:
            raise TraceTransferError(f"{name}: trained, but not of the mask, or handed over twice")
        entry = waiting.pop(name)
        after = value.to(entry.after_dtype)
        if not all_finite(value):
            raise NumericalError(f"{name}: NaN or Inf in the trained values; no patch can hold them")
        if not all_finite(after):
            raise NumericalError(
                f"{name}: trained values of up to {float(value.abs().max()):g} do not fit "
                f"{str(entry.after_dtype).removeprefix('torch.')}, in which the base stores it; save them in float32"
            )
        yield entry, entry.part_of(state.value(name)), after
    if waiting:
        raise TraceTransferError(f"trained parameters that were not handed over: {', '.join(list(waiting)[:5])}")
