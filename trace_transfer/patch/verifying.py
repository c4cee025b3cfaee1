"""Proof of what moved: two models are read side by side, some rows at a time, and compared bit for bit.

Reads: the weights of both, and a mask. Gives: `Verification`, how much of each tensor moved, core and frozen apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path

import torch

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.masks import Mask, Slice, merged_ranges
from trace_transfer.engine.slices import laid
from trace_transfer.errors import ArtefactError, FrozenMovedError, ModelError, UserError, listing, together
from trace_transfer.models.sources import AXES, ModelSource, numel, row_blocks
from trace_transfer.models.tensors import differing, dtype_name
from trace_transfer.patch.model_state import ModelState, require_same_names
from trace_transfer.patch.patches import Patch, index_within
from trace_transfer.patch.records import Verification, VerifiedTensor
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions, read_artefact


def verify(base: ModelState, tuned: ModelState, mask: Mask, reporter: Reporter) -> Verification:
    """Compare two models; whether frozen elements moved is for the caller to look at (`require_frozen`).

    What is saved with the tensors but is none (a router's correction of its scores) is compared, too, as frozen.
    Elements of different types are compared after widening, so that a value is the same in float32 and bfloat16.
    """
    require_same_names(base, tuned)
    unknown = [name for name in mask.parts if name not in base.shapes]
    if unknown:
        raise ModelError(f"{base.source.name} lacks tensors that were to be trained:\n" + listing(unknown))
    base.check(reporter)
    tuned.check(reporter)
    tensors = []
    shapes = {**base.shapes, **base.base.buffers}
    with reporter.task("comparing every tensor", len(shapes)) as advance:
        for name, shape in shapes.items():
            tensors.append(_verified(base, tuned, name, shape, mask))
            advance()
    return Verification(
        base=base.source.name,
        base_fingerprint=base.fingerprint,
        tuned=tuned.source.name,
        names_sha256=base.names_sha256,
        mask_sha256=mask.sha256,
        parameters=tuple(tensors),
        libraries=library_versions(),
    )


def require_frozen(verification: Verification) -> None:
    """Raise a FrozenMovedError if anything frozen moved; it names the tensors and how much of them."""
    if verification.ok:
        return
    raise FrozenMovedError(
        f"{verification.tuned}: {len(verification.wrong)} tensors moved that were to stay bit-identical to "
        f"{verification.base}:\n" + listing(verification.wrong)
    )


def _verified(
    base: ModelState, tuned: ModelState, name: str, shape: tuple[int, ...], mask: Mask
) -> VerifiedTensor:  # fmt: skip
    part, trains = mask.parts.get(name), mask.trains(name)
    core_moved, frozen_moved, broken = 0, 0, []
    for (start, stop), ours, theirs in zip(row_blocks(shape), base.chunks(name), tuned.chunks(name), strict=True):
        moved = differing(ours, theirs).view(stop - start, *shape[1:])
        if not moved.any():
            continue
        core = torch.full(moved.shape, trains and part is None)
        if part is not None:
            index = index_within(part, shape, start, stop)
            core = laid(core, part).index_fill(part.dim, index, True).view_as(moved)
        core_moved += int((moved & core).sum())
        frozen_moved += int((moved & ~core).sum())
        if isinstance(part, Slice):
            along = (moved & ~core).movedim(part.dim, 0)
            rows = along.reshape(len(along), -1).any(dim=1).nonzero().flatten()
            broken += (rows + (0 if part.dim else start)).tolist()
    size, sides = 0 if not trains else numel(shape) if part is None else part.numel(shape), {}
    if isinstance(part, Slice):
        ranges = merged_ranges((row, row + 1) for row in broken)
        sides = {AXES[part.dim]: part.ranges, f"moved_{AXES[part.dim]}": ranges or None}
    return VerifiedTensor(
        name=name, shape=shape, base_dtype=dtype_name(base.dtype(name)), tuned_dtype=dtype_name(tuned.dtype(name)),
        core=size, core_moved=core_moved, frozen=numel(shape) - size, frozen_moved=frozen_moved, **sides,
    )  # fmt: skip


def verify_models(
    base: str, tuned: str, *, cores: Sequence[Path], patches: Sequence[Path], reporter: Reporter
) -> Verification:
    """`verify` for models, core files and patches by their names; trained is what any of the files says.

    Raises:
        UserError: none of them is given, or one cannot be used; nothing of the weights has been read.
    """
    if not cores and not patches:
        raise UserError("what was to move is not said: give --core with core files, or --patch with patches")
    state = ModelState(ModelSource.parse(base))
    tied, masks, problems = state.base.inventory.tied, [], []
    for file in cores:
        core: CoreFile = read_artefact(file, CoreFile)
        if core.model.names_sha256 == state.names_sha256:
            masks.append(Mask.of_core(core, state.shapes, tied, str(file)))
        else:
            problems.append(
                f"{file}: core file is of {core.model.id} ({core.model.model_type}, {core.model.num_layers} layers, "
                f"{core.model.num_parameters} tensors), BASE is {state.source.name} ({state.config.model_type}, "
                f"{len(state.shapes)} tensors)"
            )
    if problems:
        raise ArtefactError(together("core files of another model than BASE", problems))
    opened = Patch.open_all(patches)
    ModelState(state.source, opened, state.base)  # are they of this model?
    masks += [patch.mask for patch in opened]
    return verify(state, ModelState(ModelSource.parse(tuned)), reduce(or_, masks), reporter)
