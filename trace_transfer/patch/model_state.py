"""The states of a stream: a base model and the patches of its first stages, read a tensor or some rows at a time.

Each tensor is stored in the type in which the base has it on disk (float32 for a GGUF file), or in the type of the last
patch that holds it, so that `base + patches` is exact. A patch is recorded against a state (`record_patch`), a model is
written from one (`write_model`), and the next stage of training starts from one (`PatchedModel`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.slices import with_part
from trace_transfer.errors import ArtefactError, ModelError, NumericalError, UserError, listing
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


def _put(patch: Patch, entry: PatchEntry, block: Tensor, values: Tensor, rows: tuple[int, int]) -> Tensor:
    """A block of rows with a patch's values in it, in their type; a StateError if that does not hold the others'."""
    if entry.part is None:
        return values
    wide = torch.promote_types(block.dtype, values.dtype)
    whole = with_part(block.to(wide), entry.part, index_within(entry.part, entry.shape, *rows), values.to(wide))
    found = converted(whole, values.dtype)
    if found is None:
        raise StateError(
            f"{patch.path}: stores {entry.name} as {dtype_name(values.dtype)}, which does not hold the values that its "
            "other rows have in this model"
        )
    return found


@dataclass(frozen=True)
class ModelState:
    """A base and patches, in the order in which they are applied. Opening it reads headers only; see `check`."""

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
        """Changes when a value changes."""
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
        value, end = torch.empty(numel(self.shapes[name]), dtype=self.dtype(name)), 0
        for chunk in self.chunks(name):
            start, end = end, end + len(chunk)
            value[start:end] = chunk
        return value.view(self.shapes[name])

    def chunks(self, name: str) -> Iterator[Tensor]:
        """One tensor, flattened, some rows at a time, cut where `Checkpoint.chunks` cuts; a StateError if the type of a
        patch of some rows does not hold the values of the others."""
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
        """Read all that patches hold; a StateError for the first that begins with other bits than the state before."""
        if not self.patched:
            return
        differences: list[list[str]] = [[] for _ in self.patches]
        with reporter.task("checking the state of the model", len(self.patched)) as advance:
            for name in self.patched:
                for number, told in self._differences(name):
                    differences[number].append(told)
                advance()
        for patch, found in zip(self.patches, differences, strict=True):
            if found:
                begins, applied = ("ends", "reverted") if patch.inverted else ("begins", "applied")
                raise StateError(
                    f"{self.source.name}: not in the state that {patch.path} (task '{patch.task}') {begins} with; "
                    f"{len(found)} of its {len(patch.entries)} tensors differ:\n{listing(found)}\n"
                    "Give the patches of the stream in its order: from the one that follows the state of the model "
                    "(reverting: from the one to be undone last up to the newest that the model has), none that was "
                    f"{applied} before."
                )

    def _differences(self, name: str) -> Iterator[tuple[int, str]]:
        """Numbers of the patches that begin with another value of a tensor, and how much of it is another.

        Of each block only the first such patch is found: what follows it begins with what it would have made."""
        held, counts, dtypes = self._entries_of(name), Counter[int](), dict[int, torch.dtype]()
        values = zip(*(patch.blocks(name, kind) for patch, _ in held for kind in (BEFORE, AFTER)), strict=True)
        for rows, block, ends in zip(row_blocks(self.shapes[name]), self._base_blocks(name), values, strict=True):
            for place, (patch, entry) in enumerate(held):
                found, (before, after) = entry.part_of_block(block, *rows), ends[2 * place : 2 * place + 2]
                count = int(differing(found, before).sum())
                if count or found.dtype != before.dtype:
                    counts[place] += count
                    dtypes[place] = found.dtype
                    break
                block = _put(patch, entry, block, after, rows)
        numbers = [number for number, patch in enumerate(self.patches) if name in patch.by_name]
        for place, count in counts.items():
            there, expected = dtypes[place], held[place][1].before_dtype
            types = "" if there == expected else f" ({dtype_name(there)} there, {dtype_name(expected)} in the patch)"
            yield numbers[place], f"{name}: {count:,} of {held[place][1].num_elements:,} parameters{types}"

    def _entries_of(self, name: str) -> list[tuple[Patch, PatchEntry]]:
        return [(patch, patch.by_name[name]) for patch in self.patches if name in patch.by_name]

    def _base_blocks(self, name: str) -> Iterator[Tensor]:
        return (block.view(-1, *self.shapes[name][1:]) for block in self.base.chunks(name))

    def require_readable(self, names: Iterable[str]) -> None:
        """Read the first rows of tensors; a ModelError for one that cannot be put into a patch."""
        for name in names:
            next(self.base.chunks(name))


def require_same_names(base: ModelState, other: ModelState) -> None:
    """Refuse two models with other names or shapes: a ModelError names all that differ."""
    ours, theirs = ({name: list(shape) for name, shape in one.shapes.items()} for one in (base, other))
    if problems := [
        f"{name}: {theirs.get(name, 'not there')}, in the base {ours.get(name, 'not there')}"
        for name in ours | theirs
        if ours.get(name) != theirs.get(name)
    ]:
        raise ModelError(
            f"{other.source.name}: not of the names and shapes of {base.source.name}:\n{listing(problems)}"
        )


def write_model(
    state: ModelState, directory: Path, reporter: Reporter, *, replace: bool = False,
    texts: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Write a state as a directory that `from_pretrained` loads, whole or not at all; one block of rows is in memory.
    With `replace`, what is in the directory goes when the new model is whole; `texts` are further files by name."""
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


def record_patch(
    path: Path, state: ModelState, mask: Mask, trained: Iterable[tuple[str, Tensor]], *, task: str, method: str,
    save_dtype: str = "stored",
) -> Patch:  # fmt: skip
    """Write the patch of a stage that began with a state, a tensor at a time; raises as `as_stored`.

    Args:
        save_dtype: `stored`, the type in which the state has each tensor, or `float32`, or wider where it is wider.
        trained: what is trained of each tensor of the mask, in float32, once, in any order (of a slice its rows or
            columns, one after the other).
    """
    entries = {}
    for name, shape in state.shapes.items():
        if mask.trains(name):
            before = state.dtype(name)
            after = torch.promote_types(before, torch.float32) if save_dtype == "float32" else before
            entries[name] = PatchEntry(name, shape, mask.parts[name], before, after)
    values = (
        (entries[name], entries[name].part_of(state.value(name)), as_stored(entries[name], value))
        for name, value in trained
    )
    return write_patch(
        path, task=task, method=method, names_sha256=state.names_sha256, entries=list(entries.values()), values=values
    )


def as_stored(entry: PatchEntry, value: Tensor) -> Tensor:
    """A trained value in the type of its entry; a NumericalError if it is not finite, or that cannot hold it."""
    if not all_finite(value):
        raise NumericalError(f"{entry.name}: NaN or Inf in the trained values; no patch can hold them")
    if not all_finite(after := value.to(entry.after_dtype)):
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
            yield name, (self.state.value(name) if name in patched else next(others)[1]).to(dtype)
