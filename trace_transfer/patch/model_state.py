"""The states of a stream: a base model and the patches of its first stages, read a tensor or some rows at a time.

Each tensor is stored in the type in which the base has it on disk (float32 for a GGUF file), or in the type of the last
patch that holds it. So `base + patches` is exact, and a state needs no more room than its patches. A state is what a
patch is recorded against (`record_patch`), what a model is written from (`write_model`), and where the next stage of
training starts (`PatchedModel`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.slices import with_part
from trace_transfer.errors import ArtefactError, ModelError, NumericalError, TraceTransferError, UserError, listing
from trace_transfer.files import sha256_text
from trace_transfer.models.checkpoints import OpenedBase, specs_of
from trace_transfer.models.model_directory import write_model_directory
from trace_transfer.models.sources import ModelSource, numel, row_blocks
from trace_transfer.models.tensors import TensorSpec, all_finite, converted, differing, dtype_name, require_finite
from trace_transfer.patch.patches import AFTER, BEFORE, Patch, PatchEntry, index_within, write_patch
from trace_transfer.progress import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StateError(UserError):
    """A model is not in the state that a patch begins with."""


@dataclass
class Difference:
    """How one tensor of a model differs from what a patch begins with, added up over its blocks."""

    name: str
    expected_dtype: torch.dtype
    found_dtype: torch.dtype | None = None
    count: int = 0
    is_after: bool = True

    def add(self, found: Tensor, before: Tensor, after: Tensor) -> None:
        """A block's part as it is in the model, and as it is before and after the patch."""
        self.found_dtype = found.dtype
        self.count += int(differing(found, before).sum())
        self.is_after &= found.dtype == after.dtype and not bool(differing(found, after).any())

    @property
    def exists(self) -> bool:
        return self.count > 0 or self.found_dtype != self.expected_dtype

    @property
    def told(self) -> str:
        if self.found_dtype == self.expected_dtype:
            return f"{self.name}: {self.count:,} element" + ("" if self.count == 1 else "s")
        found, expected = map(dtype_name, (self.found_dtype, self.expected_dtype))
        return f"{self.name}: {found} there, {expected} in the patch" + (", and other values" if self.count else "")


def _put(
    patch: Patch, entry: PatchEntry, block: Tensor, values: Tensor, rows: tuple[int, int], *, lossy: bool = False
) -> Tensor:
    """A block of rows with a patch's values in it, in their type.

    Args:
        lossy: round where that type does not hold the values of the other rows; otherwise that is an error.
    """
    if entry.part is None:
        return values
    wide = torch.promote_types(block.dtype, values.dtype)
    whole = with_part(block.to(wide), entry.part, index_within(entry.part, entry.shape, *rows), values.to(wide))
    found = whole.to(values.dtype) if lossy else converted(whole, values.dtype)
    if found is None:
        raise StateError(
            f"{patch.path}: stores {entry.name} as {dtype_name(values.dtype)}, which does not hold the values that its "
            "other rows have in this model"
        )
    return found


@dataclass(frozen=True)
class ModelState:
    """A base and patches, in the order in which they are applied. Opening it reads headers only.

    Whether each patch begins where the one before ended is looked at by `check`, which reads what they hold.
    """

    source: ModelSource
    patches: tuple[Patch, ...] = ()
    base: OpenedBase = field(default=None, repr=False, compare=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.base is None:
            object.__setattr__(self, "base", OpenedBase(self.source))
        problems = []
        for patch in self.patches:
            wrong = [entry.name for entry in patch.entries if self.shapes.get(entry.name) != entry.shape]
            if patch.names_sha256 != self.names_sha256:
                sums = f"{patch.names_sha256[:12]}, expected {self.names_sha256[:12]}"
                problems.append(f"{patch.path}: of a model whose names and shapes have the sum {sums}")
            elif wrong:
                problems.append(f"{patch.path}: {', '.join(wrong[:5])}: not a tensor of this shape in the model")
        if problems:
            raise ArtefactError(f"patches that are not of {self.source.name}:\n" + listing(problems))

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all tensors, in the order of the model."""
        return self.base.inventory.shapes

    @property
    def names_sha256(self) -> str:
        return self.base.inventory.names_sha256

    @property
    def fingerprint(self) -> str:
        """Changes when a value changes; that of the base itself where there is no patch."""
        if not self.patches:
            return self.base.weights.fingerprint
        sums = (f"{patch.sha256}{' inverted' if patch.inverted else ''}" for patch in self.patches)
        return sha256_text("\n".join((self.base.weights.fingerprint, *sums)))

    def apply(self, patch: Patch) -> ModelState:
        """The state after one more stage."""
        return replace(self, patches=(*self.patches, patch))

    @property
    def patched(self) -> tuple[str, ...]:
        """Tensors that some patch holds, in the order of the model."""
        held = {entry.name for patch in self.patches for entry in patch.entries}
        return tuple(name for name in self.shapes if name in held)

    def dtype(self, name: str) -> torch.dtype:
        """In which a tensor is stored."""
        held = self._entries_of(name)
        return held[-1][1].after_dtype if held else self.base.dtype(name)

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec(self.dtype(name), self.shapes[name])

    def value(self, name: str) -> Tensor:
        """One whole tensor as it is stored; raises as `chunks`."""
        spec, end = self.spec(name), 0
        value = torch.empty(numel(spec.shape), dtype=spec.dtype)
        for chunk in self.chunks(name):
            start, end = end, end + len(chunk)
            value[start:end] = chunk
        return value.view(spec.shape)

    def chunks(self, name: str) -> Iterator[Tensor]:
        """One tensor, flattened, some rows at a time, cut where `Checkpoint.chunks` cuts.

        Raises:
            ModelError: it is missing on disk.
            StateError: a patch of some rows has another type, which does not hold the values of the other rows.
        """
        held = self._entries_of(name)
        if not held:
            yield from self.base.chunks(name)
            return
        whole = [number for number, (_, entry) in enumerate(held) if entry.part is None]
        held = held[whole[-1] if whole else 0 :]
        base = repeat(torch.empty(0)) if whole else self._base_blocks(name)
        values = zip(*(patch.blocks(name, AFTER) for patch, _ in held), strict=True)
        for rows, block, ends in zip(row_blocks(self.shapes[name]), base, values, strict=False):
            for (patch, entry), end in zip(held, ends, strict=True):
                block = _put(patch, entry, block, end, rows)
            yield block.flatten()

    def check(self, reporter: Reporter) -> None:
        """Read all that patches hold, and see that each begins where the one before ended.

        Raises:
            StateError: the first patch that does not, and which of its tensors differ, bit for bit.
        """
        problems: list[list[Difference]] = [[] for _ in self.patches]
        if not self.patched:
            return
        with reporter.task("checking the state of the model", len(self.patched)) as advance:
            for name in self.patched:
                for number, difference in self._differences(name):
                    problems[number].append(difference)
                advance()
        for patch, found in zip(self.patches, problems, strict=True):
            if found:
                raise StateError(self._told(patch, found))

    def _differences(self, name: str) -> list[tuple[int, Difference]]:
        """By the patches' numbers; whatever one of them begins with, the next is compared with its end."""
        held = self._entries_of(name)
        found = [Difference(name, entry.before_dtype) for _, entry in held]
        values = zip(*(patch.blocks(name, kind) for patch, _ in held for kind in (BEFORE, AFTER)), strict=True)
        for rows, block, ends in zip(row_blocks(self.shapes[name]), self._base_blocks(name), values, strict=True):
            for (patch, entry), difference, before, after in zip(held, found, ends[::2], ends[1::2], strict=True):
                difference.add(entry.part_of_block(block, *rows), before, after)
                block = _put(patch, entry, block, after, rows, lossy=difference.exists)  # the difference is told later
        numbers = [number for number, patch in enumerate(self.patches) if name in patch.by_name]
        return [one for one in zip(numbers, found, strict=True) if one[1].exists]

    def _told(self, patch: Patch, found: Sequence[Difference]) -> str:
        begins = "ends" if patch.inverted else "begins"
        if all(one.is_after for one in found) and len(found) == len(patch.entries):
            done = "reverted" if patch.inverted else "applied"
            hint = f"They hold what the patch would bring: it has been {done} before."
        else:
            hint = (
                "Give the patches of the stream in its order: from the one that follows the state of the model "
                "(reverting: from the one to be undone last up to the newest that the model has)."
            )
        return (
            f"{self.source.name}: not in the state that {patch.path} (task '{patch.task}') {begins} with; "
            f"{len(found)} of its {len(patch.entries)} tensors differ:\n{listing([one.told for one in found])}\n{hint}"
        )

    def _entries_of(self, name: str) -> list[tuple[Patch, PatchEntry]]:
        return [(patch, patch.by_name[name]) for patch in self.patches if name in patch.by_name]

    def _base_blocks(self, name: str) -> Iterator[Tensor]:
        inner = self.shapes[name][1:]
        return (block.view(-1, *inner) for block in self.base.chunks(name))

    def require_readable(self, names: Iterable[str]) -> None:
        """Read the first rows of tensors; a ModelError names those that cannot be put into a patch."""
        problems = []
        for name in names:
            try:
                next(self.base.chunks(name))
            except ModelError as error:
                problems.append(str(error))
        if problems:
            raise ModelError("tensors that no patch can hold:\n" + listing(problems))


def require_same_names(base: ModelState, other: ModelState) -> None:
    """Refuse two models with other names or shapes: a ModelError names all that differ."""
    ours, theirs = base.shapes, other.shapes
    problems = [f"lacks {name}" for name in ours if name not in theirs]
    problems += [f"has {name}, which the base has not" for name in theirs if name not in ours]
    problems += [
        f"{name} is {list(theirs[name])}, in the base {list(shape)}"
        for name, shape in ours.items()
        if theirs.get(name, shape) != shape
    ]
    if problems:
        raise ModelError(
            f"{other.source.name}: not of the names and shapes of {base.source.name}:\n{listing(problems)}"
        )


def write_model(
    state: ModelState, directory: Path, reporter: Reporter, *, replace: bool = False,
    texts: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a state as a directory that `from_pretrained` loads, whole or not at all; one block of rows is in memory.

    Args:
        replace: what is in the directory goes when the new model is whole.
        texts: further files, name → content.

    Raises:
        StateError: a patch does not begin where the one before ended.
    """
    specs = specs_of(state.base, {name: state.dtype(name) for name in state.shapes})
    state.check(reporter)
    with reporter.task("writing the model", len(specs)) as advance:

        def values() -> Iterator[tuple[str, Iterator[Tensor]]]:
            for name in specs:
                yield name, state.chunks(name)
                advance()

        write_model_directory(
            state.source, state.config, specs, values(), directory, model=state.base.meta_model, texts=texts,
            replace=replace,
        )  # fmt: skip


def patch_entries(state: ModelState, mask: Mask, save_dtype: str = "stored") -> tuple[PatchEntry, ...]:
    """The entries of the patch of a stage that begins with a state, in the order of the model; reads headers only.

    Args:
        save_dtype: `stored`, the type in which the state has each tensor, or `float32`, or wider where it is wider.
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
    """Write the patch of a stage that began with a state, a tensor at a time.

    Args:
        trained: what is trained of each tensor of the mask, in float32, once, in any order (of a slice its rows or
            columns, one after the other).

    Raises:
        NumericalError: values that are not finite, or that the stored type cannot hold.
        TraceTransferError: other tensors come than those of the mask.
    """
    entries = patch_entries(state, mask, save_dtype)

    def changes() -> Iterator[tuple[PatchEntry, Tensor, Tensor]]:
        waiting = {entry.name: entry for entry in entries}
        for name, value in trained:
            if name not in waiting:
                raise TraceTransferError(f"{name}: trained, but not of the mask, or handed over twice")
            entry = waiting.pop(name)
            yield entry, entry.part_of(state.value(name)), as_stored(entry, value)
        if waiting:
            raise TraceTransferError(f"trained tensors that were not handed over: {', '.join(list(waiting)[:5])}")

    return write_patch(
        path, task=task, method=method, names_sha256=state.names_sha256, entries=entries, values=changes()
    )


def as_stored(entry: PatchEntry, value: Tensor) -> Tensor:
    """A trained value in the type of its entry; a NumericalError if it is not finite, or that cannot hold it."""
    after = value.to(entry.after_dtype)
    if not all_finite(value):
        raise NumericalError(f"{entry.name}: NaN or Inf in the trained values; no patch can hold them")
    if not all_finite(after):
        raise NumericalError(
            f"{entry.name}: trained values of up to {float(value.abs().max()):g} do not fit "
            f"{dtype_name(entry.after_dtype)}, in which the base stores it; save them in float32"
        )
    return after


class PatchedModel(BaseModel):
    """A state as it is stored, so that the stage begins with what `base + patches` gives anyone."""

    state: ModelState

    def __init__(self, state: ModelState) -> None:
        super().__init__(state.source)
        object.__setattr__(self, "state", state)

    @property
    def identity(self) -> Mapping[str, str]:
        return {**super().identity, "fingerprint": self.state.fingerprint}

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        model = super().load(dtype)
        with torch.no_grad():
            for name in self.state.patched:
                model.get_parameter(name).copy_(self.state.value(name))
                require_finite(f"{self.state.source.name} as {dtype_name(dtype)}", {name: model.get_parameter(name)})
        return model

    def values(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        wanted, patched = list(names), set(self.state.patched)
        others = super().values((name for name in wanted if name not in patched), dtype)
        for name in wanted:
            value = self.state.value(name) if name in patched else next(others)[1]
            yield name, value.to(dtype)
