"""`patch`: a model moved between the states of a stream, the patch between two models, and one model for each task.
`verify`: two models are read side by side, some rows at a time, and compared bit for bit.

Reads: models, patches, masks. Writes: a model's directory, a patch, or (`patch task-models`) a directory with a model
`TASK/` for each patch and `mergekit.yaml`, which adds them all to the base.

A task's model minus the base is its task vector (Ilharco et al., 2023, arXiv 2212.04089). Where an earlier task had
moved the values that a patch begins with, the difference that it makes is added to the base's values, so that the
vectors of a whole stream still add up to its last state; the patch from the base to that model is then written, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.core_sets.masks import Mask, Slice, merged_ranges
from trace_transfer.engine.slices import laid
from trace_transfer.errors import ArtefactError, FrozenMovedError, ModelError, UserError, listing, together
from trace_transfer.files import held, new_directory, prepare_directory, refuse_inputs, write_text
from trace_transfer.models.model_directory import require_room
from trace_transfer.models.sources import AXES, ModelSource, numel, row_blocks
from trace_transfer.models.tensors import differing, dtype_name
from trace_transfer.patch.model_state import ModelState, require_same_names, write_model
from trace_transfer.patch.patches import SUFFIX, Patch, PatchEntry, index_within, write_patch
from trace_transfer.patch.records import Verification, VerifiedTensor, mergekit_yaml
from trace_transfer.progress import Reporter
from trace_transfer.publish.model_card import patched_card
from trace_transfer.records import library_versions, model_line, read_artefact, require_task

YAML, BASE = "mergekit.yaml", "base"


def move_model(
    model: str, patches: Sequence[Path], out: Path, reporter: Reporter, *, revert: bool = False
) -> ModelState:
    """Write the model that patches, in the order of the stream, make of another one; `revert` goes back."""
    require_room(out)
    opened = Patch.open_all(patches)
    path = tuple(patch.inverse for patch in reversed(opened)) if revert else opened
    state = ModelState(ModelSource.parse(model), path)
    with held(out, replaced=True):
        write_model(state, out, reporter, texts=patched_card(state))
    return state


def diff_models(
    before: str, after: str, out: Path, reporter: Reporter, *, task: str = "diff"
) -> tuple[list[tuple[PatchEntry, int]], int]:
    """Write a patch from the one model to the other, if they differ; returns each tensor that differs, with the number
    of elements that do, and the number of all tensors."""
    require_task(task, "--task")
    refuse_inputs([out], [before, after])
    prepare_directory(out.parent, "directory of --out")
    one, other = (ModelState(ModelSource.parse(name)) for name in (before, after))
    require_same_names(one, other)
    found: list[tuple[PatchEntry, int]] = []
    with reporter.task("comparing every tensor", len(one.shapes)) as advance:
        for name, shape in one.shapes.items():
            entry = PatchEntry(name, shape, None, one.dtype(name), other.dtype(name))
            pairs = zip(one.chunks(name), other.chunks(name), strict=True)
            count = sum(int(differing(ours, theirs).sum()) for ours, theirs in pairs)
            if count or entry.before_dtype != entry.after_dtype:
                found.append((entry, count))
            advance()
    if entries := [entry for entry, _ in found]:

        def values() -> Iterator[tuple[PatchEntry, Tensor, Tensor]]:
            with reporter.task("writing the patch", len(entries)) as advance:
                for entry in entries:
                    yield entry, one.value(entry.name), other.value(entry.name)
                    advance()

        write_patch(out, task=task, method="diff", names_sha256=one.names_sha256, entries=entries, values=values())
    return found, len(one.shapes)


class TaskModel(NamedTuple):
    """One written model: how many elements its patch holds, and how many of these an earlier task had moved already."""

    task: str
    directory: Path
    num_elements: int
    num_moved_before: int


def write_task_models(
    base: str, patches: Sequence[Path], out: Path, reporter: Reporter, *, merge_method: str = "task_arithmetic"
) -> tuple[TaskModel, ...]:
    """Write the model of each patch alone, and `mergekit.yaml`, which adds them all up.

    A GGUF base, which mergekit does not read, is written as a directory, too. The patches are of tasks with different
    names; `merge_method` is one of `records.METHODS`."""
    require_room(out)
    opened = Patch.open_all(patches)
    counts = Counter([BASE, *(patch.task for patch in opened)])
    if problems := [f"{patch.path}: task '{patch.task}'" for patch in opened if counts[patch.task] > 1]:
        raise ArtefactError(
            f"each task's model lies under the task's name (the base's under '{BASE}'), and these are taken:\n"
            + listing(problems)
        )
    state = ModelState(ModelSource.parse(base))
    for patch in opened:
        state.apply(patch)  # is it of this model?
    with held(out.absolute(), replaced=True) as place, new_directory(place) as temporary:
        models = tuple(
            _write(state, patch, temporary, reporter)._replace(directory=place / patch.task) for patch in opened
        )
        named = state.source.name if state.source.directory is None else str(state.source.directory.absolute())
        if state.source.gguf is not None:
            write_model(state, temporary / BASE, reporter)
            named = str(place / BASE)
        dtypes = {state.dtype(name) for name in state.shapes} | {e.after_dtype for p in opened for e in p.entries}
        text = mergekit_yaml(named, [str(one.directory) for one in models], merge_method, dtypes)
        write_text(temporary / YAML, text)
    return models


def _write(state: ModelState, patch: Patch, directory: Path, reporter: Reporter) -> TaskModel:
    """Write the base with one task; with a patch of its own where the task did not begin with the base."""
    moved = sum(
        int(differing(entry.part_of(state.value(entry.name)), patch.before(entry.name)).sum())
        for entry in patch.entries
    )
    alone = patch
    if moved or any(entry.before_dtype != state.dtype(entry.name) for entry in patch.entries):
        alone = write_patch(
            directory / f"{patch.task}{SUFFIX}", task=patch.task, method=patch.method, names_sha256=patch.names_sha256,
            entries=[replace(entry, before_dtype=state.dtype(entry.name)) for entry in patch.entries],
            values=_on_base(state, patch),
        )  # fmt: skip
    tuned = state.apply(alone)
    write_model(tuned, directory / patch.task, reporter, texts=patched_card(tuned))
    return TaskModel(patch.task, directory / patch.task, patch.num_elements, moved)


def _on_base(state: ModelState, patch: Patch) -> Iterator[tuple[PatchEntry, Tensor, Tensor]]:
    """What a patch changes, begun from the base's values instead of those it was begun with."""
    for entry in patch.entries:
        ours = entry.part_of(state.value(entry.name))
        before, after = patch.before(entry.name), patch.after(entry.name)
        added = (ours.double() + (after.double() - before.double())).to(after.dtype)
        yield replace(entry, before_dtype=ours.dtype), ours, torch.where(differing(ours, before), added, after)


# ---- proof of what moved


def verify(base: ModelState, tuned: ModelState, mask: Mask, reporter: Reporter) -> Verification:
    """Compare two models; whether frozen elements moved is for the caller to look at (`require_frozen`).

    What is saved with the tensors but is none (a router's correction of its scores) counts as frozen. Elements of
    different types are compared after widening."""
    require_same_names(base, tuned)
    if unknown := [name for name in mask.parts if name not in base.shapes]:
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
        base=base.source.name, base_fingerprint=base.fingerprint, tuned=tuned.source.name,
        names_sha256=base.names_sha256, mask_sha256=mask.sha256, parameters=tuple(tensors),
        libraries=library_versions(),
    )  # fmt: skip


def require_frozen(verification: Verification) -> None:
    """Raise a FrozenMovedError if anything frozen moved; it names the tensors and how much of them."""
    if not verification.ok:
        raise FrozenMovedError(
            f"{verification.tuned}: {len(verification.broken)} tensors moved that were to stay bit-identical to "
            f"{verification.base}:\n" + listing([one.told for one in verification.broken])
        )


def _verified(base: ModelState, tuned: ModelState, name: str, shape: tuple[int, ...], mask: Mask) -> VerifiedTensor:
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
    size, sides = 0 if not trains else numel(shape if part is None else part.shape(shape)), {}
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
    """`verify` for models, core files and patches by their names; trained is what any of the files says."""
    if not cores and not patches:
        raise UserError("what was to move is not said: give --core with core files, or --patch with patches")
    state = ModelState(ModelSource.parse(base))
    tied, masks, problems = state.base.inventory.tied, [], []
    for file in cores:
        core: CoreFile = read_artefact(file, CoreFile)
        if core.model.names_sha256 == state.names_sha256:
            masks.append(Mask.of_core(core, state.shapes, tied, str(file)))
        else:
            problems.append(f"{file}: of {model_line(core.model)}, BASE is {state.source.name}")
    if problems:
        raise ArtefactError(together("core files of another model than BASE", problems))
    opened = Patch.open_all(patches)
    ModelState(state.source, opened, state.base)  # are they of this model?
    masks += [patch.mask for patch in opened]
    return verify(state, ModelState(ModelSource.parse(tuned)), reduce(or_, masks), reporter)
