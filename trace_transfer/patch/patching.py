"""`patch`: a model moved between the states of a stream, the patch between two models, and one model for each task.

Reads: models, patches. Writes: a model's directory, a patch, or (`patch task-models`) a directory with a model `TASK/`
for each patch and `mergekit.yaml`, which adds them all to the base.

A task's model minus the base is its task vector (Ilharco et al., 2023, arXiv 2212.04089). Where a patch begins with the
base's values, the task's model has the patch's values. Where an earlier task had moved them, the difference that the
patch makes is added to the base's values, so that the vectors of a whole stream still add up to its last state; the
patch from the base to that task's model is then written, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.files import new_directory, prepare_directory, refuse_inputs, write_text
from trace_transfer.locking import held
from trace_transfer.models.model_directory import require_room
from trace_transfer.models.sources import ModelSource
from trace_transfer.models.tensors import differing
from trace_transfer.patch.model_state import ModelState, require_same_names, write_model
from trace_transfer.patch.patches import SUFFIX, Patch, PatchEntry, write_patch
from trace_transfer.patch.records import METHODS, mergekit_yaml
from trace_transfer.progress import Reporter
from trace_transfer.publish.model_card import patched_card
from trace_transfer.records import require_task


@dataclass(frozen=True)
class Difference:
    """One tensor that differs between two models: how many elements, and its types in both."""

    entry: PatchEntry
    count: int


class Differences(NamedTuple):
    """All that differs between two models, of how many tensors they have."""

    differences: tuple[Difference, ...]
    num_parameters: int


def move_model(
    model: str, patches: Sequence[Path], out: Path, reporter: Reporter, *, revert: bool = False
) -> ModelState:
    """Write the model that patches, in the order of the stream, make of another one; `revert` goes back through them.

    Raises:
        UserError: `out` is not empty, or in use; patches that cannot be read, or are not of this model, or the model is
            not in the state that they begin (end) with. Nothing has been written then.
    """
    require_room(out)
    opened = Patch.open_all(patches)
    path = tuple(patch.inverse for patch in reversed(opened)) if revert else opened
    state = ModelState(ModelSource.parse(model), path)
    with held(out, replaced=True):
        write_model(state, out, reporter, texts=patched_card(state))
    return state


def diff_models(before: str, after: str, out: Path, reporter: Reporter, *, task: str = "diff") -> Differences:
    """Find every tensor with a bit that differs, and write a patch from the one model to the other if there are any.

    Raises:
        UserError: other names or shapes, weights that cannot be read; `out` cannot be written, or is of a model.
    """
    require_task(task, "--task")
    refuse_inputs([out], [before, after])
    prepare_directory(out.parent, "directory of --out")
    one, other = (ModelState(ModelSource.parse(name)) for name in (before, after))
    require_same_names(one, other)
    found = []
    with reporter.task("comparing every tensor", len(one.shapes)) as advance:
        for name, shape in one.shapes.items():
            entry = PatchEntry(name, shape, None, one.dtype(name), other.dtype(name))
            pairs = zip(one.chunks(name), other.chunks(name), strict=True)
            count = sum(int(differing(ours, theirs).sum()) for ours, theirs in pairs)
            if count or entry.before_dtype != entry.after_dtype:
                found.append(Difference(entry, count))
            advance()
    if entries := [difference.entry for difference in found]:

        def values() -> Iterator[tuple[PatchEntry, Tensor, Tensor]]:
            with reporter.task("writing the patch", len(entries)) as advance:
                for entry in entries:
                    yield entry, one.value(entry.name), other.value(entry.name)
                    advance()

        write_patch(out, task=task, method="diff", names_sha256=one.names_sha256, entries=entries, values=values())
    return Differences(tuple(found), len(one.shapes))


YAML, BASE = "mergekit.yaml", "base"


class TaskModel(NamedTuple):
    """One written model: how many elements its patch holds, and how many of these an earlier task had moved already."""

    task: str
    directory: Path
    num_elements: int
    num_moved_before: int


class TaskModels(NamedTuple):
    """What was written: a model for each patch, and the file for `mergekit-yaml`."""

    models: tuple[TaskModel, ...]
    yaml: Path


def write_task_models(
    base: str, patches: Sequence[Path], out: Path, reporter: Reporter, *, merge_method: str = "task_arithmetic"
) -> TaskModels:
    """Write the model of each patch alone, and a mergekit file that adds them all up.

    A GGUF base, which mergekit does not read, is written as a directory, too.

    Args:
        patches: of one stream, in any order, of tasks with different names.
        merge_method: mergekit's, one of `METHODS`.

    Raises:
        UserError: `out` is not empty or in use, no such method; patches that cannot be read, are not of this model, or
            two of one task.
    """
    if merge_method not in METHODS:
        raise UserError(f"--merge-method {merge_method}: expected one of {', '.join(METHODS)}")
    require_room(out)
    opened = Patch.open_all(patches)
    counts = Counter([BASE, *(patch.task for patch in opened)])
    problems = [f"{patch.path}: task '{patch.task}'" for patch in opened if counts[patch.task] > 1]
    if problems:
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
    return TaskModels(models, place / YAML)


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
        values = torch.where(differing(ours, before), added, after)
        yield replace(entry, before_dtype=ours.dtype), ours, values
