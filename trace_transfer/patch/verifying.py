"""Proof of what moved: two models are read side by side, some rows at a time, and compared bit for bit.

Reads: the weights of both, and a mask. Gives: `Verification`, how much of each tensor moved, core and frozen apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path

import torch
from torch import Tensor

from trace_transfer.core_sets.chosen import Chosen
from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.masks import Mask, Part, Slice, merged_ranges
from trace_transfer.errors import ArtefactError, FrozenMovedError, ModelError, UserError, listing, together
from trace_transfer.models.sources import AXES, ModelSource, Ranges, numel, row_blocks
from trace_transfer.models.tensors import differing, dtype_name
from trace_transfer.patch.model_state import ModelState, require_same_names
from trace_transfer.patch.patches import Patch
from trace_transfer.patch.records import Verification, VerifiedTensor
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions, read_artefact


def verify(base: ModelState, tuned: ModelState, mask: Mask, reporter: Reporter) -> Verification:
    """Compare two models; whether frozen elements moved is for the caller to look at (`require_frozen`).

    What is saved with the tensors but is none (a router's correction of its scores) is compared, too, as frozen.
    Elements of different types are compared after widening, so that a value is the same in float32 and bfloat16.

    Raises:
        ModelError: other names or shapes (all are told), or weights that cannot be read.
        StateError: a patch of a state does not begin where the one before ended.
    """
    require_same_names(base, tuned)
    unknown = [name for name in mask.parts if name not in base.shapes]
    if unknown:
        raise ModelError(f"{base.source.name} lacks tensors that were to be trained:\n" + listing(unknown))
    base.check(reporter)
    tuned.check(reporter)
    tensors = []
    shapes = {**base.shapes, **base.buffers}
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
    """Fail if anything frozen moved.

    Raises:
        FrozenMovedError: it did; names the tensors and how much of them.
    """
    if verification.ok:
        return
    raise FrozenMovedError(
        f"{verification.tuned}: {len(verification.wrong)} tensors moved that were to stay bit-identical to "
        f"{verification.base}:\n" + listing(verification.wrong)
    )


def _require_of_base(cores: Mapping[Path, CoreFile], base: ModelState) -> None:
    """Core files of another model say nothing of this one, even where some names are the same."""
    here = f"{base.config.get_text_config().num_hidden_layers} layers, {len(base.shapes)} tensors"
    problems = [
        f"{file}: core file is of {core.model.id} ({core.model.model_type}, {core.model.num_layers} layers, "
        f"{core.model.num_parameters} tensors), BASE is {base.source.name} ({base.config.model_type}, {here})"
        for file, core in cores.items()
        if core.model.names_sha256 != base.names_sha256
    ]
    if problems:
        raise ArtefactError(together("core files of another model than BASE", problems))


@dataclass
class _Moved:
    """What moved of one tensor, added up over its blocks of rows."""

    shape: tuple[int, ...]
    trained: bool
    part: Part | None
    core: int = 0
    frozen: int = 0
    _rows: list[Tensor] = field(default_factory=list)

    def add(self, moved: Tensor, start: int, stop: int) -> None:
        """Add the block of rows [start, stop), where some elements moved."""
        count = int(moved.sum())
        if self.part is None:
            self.core += count if self.trained else 0
            self.frozen += 0 if self.trained else count
            return
        if isinstance(self.part, Chosen):
            places, inner = self.part.places, numel(self.shape[1:])
            first, last = places.searchsorted((start * inner, stop * inner))
            trained = int(moved.flatten()[torch.from_numpy(places[first:last] - start * inner)].sum())
            self.core, self.frozen = self.core + trained, self.frozen + count - trained
            return
        still = torch.ones(self.shape[self.part.dim], dtype=torch.bool)
        still[self.part.indices] = False
        along = moved.movedim(self.part.dim, 0)
        if self.part.dim == 0:
            still = still[start:stop]
        self.frozen += (frozen := int(along[still].sum()))
        self.core += count - frozen
        broken = along.flatten(1).any(dim=1) if along.dim() > 1 else along
        self._rows.append((broken & still).nonzero().flatten() + (start if self.part.dim == 0 else 0))

    @property
    def ranges(self) -> Ranges:
        """Rows (columns, depth) with frozen elements that moved."""
        return merged_ranges((index, index + 1) for rows in self._rows for index in rows.tolist())


def _verified(
    base: ModelState, tuned: ModelState, name: str, shape: tuple[int, ...], mask: Mask
) -> VerifiedTensor:  # fmt: skip
    part = mask.parts.get(name)
    moved = _Moved(shape, mask.trains(name), part)
    pairs = zip(row_blocks(shape), base.chunks(name), tuned.chunks(name), strict=True)
    for (start, stop), ours, theirs in pairs:
        differs = differing(ours, theirs)
        if differs.any():
            moved.add(differs.view(stop - start, *shape[1:]), start, stop)
    core = 0 if not moved.trained else numel(shape) if part is None else part.numel(shape)
    ranges = moved.ranges or None
    return VerifiedTensor(
        name=name,
        shape=shape,
        base_dtype=dtype_name(base.dtype(name)),
        tuned_dtype=dtype_name(tuned.dtype(name)),
        core=core,
        core_moved=moved.core,
        frozen=numel(shape) - core,
        frozen_moved=moved.frozen,
        **({AXES[part.dim]: part.ranges, f"moved_{AXES[part.dim]}": ranges} if isinstance(part, Slice) else {}),
    )


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
    opened_cores: dict[Path, CoreFile] = {file: read_artefact(file, CoreFile) for file in cores}
    _require_of_base(opened_cores, state)
    tied = state.base.inventory.tied
    masks = [Mask.of_core(core, state.shapes, tied, str(file)) for file, core in opened_cores.items()]
    opened = Patch.open_all(patches)
    ModelState(state.source, opened, state.base)  # are they of this model?
    masks += [patch.mask for patch in opened]
    return verify(state, ModelState(ModelSource.parse(tuned)), reduce(or_, masks), reporter)
