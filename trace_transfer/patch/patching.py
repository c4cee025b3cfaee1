"""A model moved between the states of a stream, and the patch between any two models of the same names.

Reads: a model, patches. Writes: another model's directory, or a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from trace_transfer.errors import ModelError, listing
from trace_transfer.files import check_file, prepare_directory, refuse_inputs
from trace_transfer.locking import held
from trace_transfer.models.bits import differing
from trace_transfer.models.model_directory import require_room
from trace_transfer.models.sources import ModelSource
from trace_transfer.patch.model_state import ModelState, write_model
from trace_transfer.patch.patches import Patch, PatchEntry, write_patch
from trace_transfer.progress import Reporter
from trace_transfer.publish.model_card import patched_card
from trace_transfer.records import require_task


@dataclass(frozen=True)
class Difference:
    """One parameter that differs between two models: how many elements, and its types in both."""

    entry: PatchEntry
    count: int


@dataclass(frozen=True)
class Differences:
    """All that differs between two models, of how many parameters they have."""

    differences: tuple[Difference, ...]
    num_parameters: int


def move_model(
    model: str, patches: Sequence[Path], out: Path, reporter: Reporter, *, revert: bool = False
) -> ModelState:
    """Write the model that patches make of another one; returns the state that was written.

    Args:
        patches: in the order of the stream; `revert` goes back through them.

    Raises:
        UserError: `out` is not empty, or in use; ArtefactError: patches that cannot be read, or are not of this model;
            StateError: it is not in the state that they begin (end) with. Nothing has been written then.
    """
    require_room(out)
    opened = Patch.open_all(patches)
    path = tuple(patch.inverse for patch in reversed(opened)) if revert else opened
    state = ModelState(ModelSource.parse(model), path)
    with held(out, replaced=True):
        write_model(state, out, reporter, texts=patched_card(state))
    return state


def diff_models(before: str, after: str, out: Path, reporter: Reporter, *, task: str = "diff") -> Differences:
    """Find every parameter of which a bit differs, and write a patch from the one model to the other.

    Nothing is written where nothing differs.

    Raises:
        ModelError: other names or shapes, or weights that cannot be read.
        UserError: `out` cannot be written, or is of one of the models; DiskFullError: nothing is left.
    """
    require_task(task, "--task")
    check_file(out)
    refuse_inputs([out], [before, after])
    prepare_directory(out.parent, "directory of --out")
    one, other = (ModelState(ModelSource.parse(name)) for name in (before, after))
    if one.names_sha256 != other.names_sha256:
        raise ModelError(f"{after}: not of the same names and shapes as {before}:\n" + listing(_misfits(one, other)))
    found = []
    with reporter.task("comparing every parameter", len(one.shapes)) as advance:
        for name, shape in one.shapes.items():
            entry = PatchEntry(name, shape, None, one.dtype(name), other.dtype(name))
            pairs = zip(one.chunks(name), other.chunks(name), strict=True)
            count = sum(int(differing(ours, theirs).sum()) for ours, theirs in pairs)
            if count or entry.before_dtype != entry.after_dtype:
                found.append(Difference(entry, count))
            advance()
    if found:
        entries = [difference.entry for difference in found]
        write_patch(
            out, task=task, method="diff", names_sha256=one.names_sha256, entries=entries,
            values=_values(one, other, entries, reporter),
        )  # fmt: skip
    return Differences(tuple(found), len(one.shapes))


def _values(
    one: ModelState, other: ModelState, entries: Sequence[PatchEntry], reporter: Reporter
) -> Iterator[tuple[PatchEntry, Tensor, Tensor]]:
    with reporter.task("writing the patch", len(entries)) as advance:
        for entry in entries:
            yield entry, one.value(entry.name), other.value(entry.name)
            advance()


def _misfits(one: ModelState, other: ModelState) -> list[str]:
    names = [*one.shapes, *(name for name in other.shapes if name not in one.shapes)]
    return [
        f"{name}: {_shape(one, name)} in the first, {_shape(other, name)} in the second"
        for name in names
        if one.shapes.get(name) != other.shapes.get(name)
    ]


def _shape(state: ModelState, name: str) -> object:
    return list(state.shapes[name]) if name in state.shapes else "missing"
