"""Deltas: tuned minus base. As warm starts leave them on disk, and reduced to what scores need of them.

On disk: one directory of safetensors shards per warm start, written and read a tensor at a time, each delta under its
tensor's name at run time, in float32 or bfloat16.

Reduced: norms, cosines (through a K x K Gram matrix) and the number of parameters that did not move, tensor by tensor;
and the same Gram matrices of heads and neurons, where they are asked for. One read of every shard, memory for a few
chunks. Writes `deltas.json`, and `deltas.units.safetensors` beside it.

Shapes: P tensors, K deltas, E parameters of a chunk, S slices of it, U units of a tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trace_transfer.errors import ModelError, NumericalError, UserError, listing
from trace_transfer.families.anatomy import Split
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import sha256_file, sha256_text
from trace_transfer.identification.records import (
    DeltaFile,
    DeltaTensor,
    TunedModel,
    WarmStartFile,
    keep_result,
    kept_result,
)
from trace_transfer.identification.scores import cosines_of
from trace_transfer.models.checkpoints import Checkpoint, SafetensorsCheckpoint, open_checkpoint
from trace_transfer.models.content import difference
from trace_transfer.models.sources import build_meta_model
from trace_transfer.models.tensors import all_finite, read_rows, require_finite, write_tensors
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions, read_artefact

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORD = "warm_start.json"
SHARD_BYTES = 1 << 30
METADATA = {"format": "trace-transfer/delta", "version": "1"}
DELTAS = "deltas.json"


@dataclass
class ShardWriter:
    """Writes deltas as they come, in numbered safetensors files; at most one shard is in memory.

    Attributes:
        shards: each file with its SHA-256.
    """

    directory: Path
    dtype: torch.dtype = torch.float32
    shards: dict[str, str] = field(default_factory=dict)
    _waiting: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor) -> None:
        """Raises `NumericalError` where a value is not finite."""
        kept = tensor.to(self.dtype)
        if not all_finite(kept):
            raise NumericalError(f"{self.directory}: NaN or Inf in {name}; nothing of it was kept")
        if sum(t.nbytes for t in self._waiting.values()) + kept.nbytes > SHARD_BYTES:
            self.flush()
        self._waiting[name] = kept

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            file = self.directory / f"delta-{len(self.shards) + 1:05d}.safetensors"
            write_tensors(file, self._waiting, METADATA)
            self.shards[file.name] = sha256_file(file)
            self._waiting = {}


def fingerprint_of(shards: Mapping[str, str]) -> str:
    """One sum for all shards."""
    return sha256_text("\n".join(f"{name} {sha256}" for name, sha256 in sorted(shards.items())))


@dataclass(frozen=True)
class DeltaStore:
    """The deltas of one finished warm start."""

    directory: Path
    record: WarmStartFile

    @classmethod
    def open(cls, directory: Path) -> DeltaStore:
        """Open a warm start's directory, headers only.

        Raises:
            ArtefactError: its `warm_start.json` is missing or damaged.
            ModelError: shards are missing, damaged or do not hold the tensors of the model.
        """
        store = cls(directory, read_artefact(directory / RECORD, WarmStartFile))
        if len(store._files) != store.record.model.num_parameters:
            raise ModelError(
                f"{directory}: holds deltas of {len(store._files)} tensors, expected "
                f"{store.record.model.num_parameters}; remove the directory and run the warm start again"
            )
        return store

    @cached_property
    def _files(self) -> Mapping[str, Path]:
        from safetensors import SafetensorError, safe_open

        found: dict[str, Path] = {}
        problems = []
        for name in self.record.shards:
            file = self.directory / name
            try:
                with safe_open(file, framework="pt") as shard:
                    found.update(dict.fromkeys(shard.keys(), file))
            except FileNotFoundError:
                problems.append(f"{name}: missing")
            except (SafetensorError, OSError) as error:
                problems.append(f"{name}: cut short or damaged ({error})")
        if problems:
            raise ModelError(
                f"{self.directory}: deltas that cannot be read; remove the directory and run the warm start again:\n"
                + listing(problems)
            )
        return found

    def chunks(self, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """One delta, flattened, some rows at a time, cut where `SafetensorsCheckpoint.chunks` cuts the base.

        Raises:
            ModelError: it is missing or of another shape.
        """
        if name not in self._files:
            raise ModelError(f"{self.directory}: lacks the delta of {name}")
        yield from read_rows(self._files[name], name, shape, str(self.directory))

    def tensor(self, name: str) -> Tensor:
        """One whole delta."""
        from safetensors import safe_open

        with safe_open(self._files[name], framework="pt") as shard:
            value: Tensor = shard.get_tensor(name)
        require_finite(str(self.directory), {name: value})
        return value


# ---- reduced

SIXTEEN_BIT = (torch.bfloat16, torch.float16)
SLICE = 1024  # elements that are summed in float32; sums of slices are added in float64
TINY = 1e-30  # below it squares in float32 lose digits, or vanish
MOST_THREADS = 8  # some wait for the disk while the others compute


@dataclass(frozen=True)
class DeltaSource:
    """Whose delta, and where it comes from: a store, or the weights of a tuned model, which is then `opened`."""

    tuned: TunedModel
    weights: SafetensorsCheckpoint | DeltaStore
    opened: OpenModel | None = None


@dataclass(frozen=True)
class DeltaPlan:
    """A base and the deltas to be compared, all opened, headers only."""

    base: OpenModel
    base_weights: Checkpoint
    sources: tuple[DeltaSource, ...]

    @property
    def fingerprints(self) -> tuple[tuple[str, str], ...]:
        """What must be the same for an earlier result to be used again."""
        return (("", self.base_weights.fingerprint), *((s.tuned.label, s.tuned.fingerprint) for s in self.sources))


def plan_deltas(base: OpenModel, tuned: Mapping[str, OpenModel], stores: Sequence[DeltaStore] = ()) -> DeltaPlan:
    """Open all weights and refuse what does not fit together.

    Args:
        tuned: task → tuned model.
        stores: deltas of finished warm starts.

    Raises:
        UserError: no delta at all, or a GGUF file (its quantisation is larger than the updates).
        ModelError: names or shapes of a tuned model, or the base of a warm start, are not those of the base; lists all.
    """
    if not tuned and not stores:
        raise UserError("no fine-tuned model was given: name at least one, as --tuned TASK=MODEL")
    problems = [problem for task, model in tuned.items() for problem in _misfits(base, task, model)]
    if problems:
        raise ModelError(f"fine-tuned models that are not of {base.source.name}:\n" + listing(problems))
    base_weights = open_checkpoint(base.source) if not tuned else open_safetensors(base)
    sources = [_stored(base, base_weights, store) for store in stores]
    for task, model in tuned.items():
        weights = open_safetensors(model)
        sixteen_bit = bool(weights.dtypes & set(SIXTEEN_BIT))
        record = TunedModel(task=task, id=model.source.repo, fingerprint=weights.fingerprint, sixteen_bit=sixteen_bit)
        sources.append(DeltaSource(record, weights, model))
    return DeltaPlan(base, base_weights, tuple(sources))


def open_safetensors(model: OpenModel) -> SafetensorsCheckpoint:
    """A model's weights, which must not be quantised.

    Raises:
        UserError: they are in a GGUF file.
    """
    checkpoint = open_checkpoint(model.source)
    if not isinstance(checkpoint, SafetensorsCheckpoint):
        raise UserError(
            f"{model.source.name}: a GGUF file; its quantisation is larger than the updates of fine-tuning. "
            "Give the safetensors directory"
        )
    return checkpoint


def _misfits(base: OpenModel, task: str, model: OpenModel) -> list[str]:
    shapes, theirs = base.anatomy.inventory.shapes, model.anatomy.inventory.shapes
    there, here = model.anatomy, base.anatomy
    if (there.family, there.num_layers) != (here.family, here.num_layers):  # its names would say no more
        return [
            f"{task}: {model.source.name} looks like another model: {there.family} with {there.num_layers} layers "
            f"({len(theirs)} tensors), the base is {here.family} with {here.num_layers} ({len(shapes)})"
        ]
    problems = [f"{task}: lacks {name}" for name in shapes if name not in theirs]
    problems += [f"{task}: has {name}, which the base has not" for name in theirs if name not in shapes]
    problems += [
        f"{task}: {name} is {list(theirs[name])}, in the base {list(shape)}"
        for name, shape in shapes.items()
        if name in theirs and theirs[name] != shape
    ]
    return problems


def _stored(base: OpenModel, base_weights: Checkpoint, store: DeltaStore) -> DeltaSource:
    record = store.record
    if record.model.names_sha256 != base.identity.names_sha256 or record.base_fingerprint != base_weights.fingerprint:
        why = difference(f"weights of {base.source.name}", record.base_fingerprint, base_weights.fingerprint)
        raise ModelError(f"{store.directory}: a warm start of {record.model.id}, and {why}")
    tuned = TunedModel(
        task=record.task,
        replicate=record.replicate,
        id=record.model.id,
        fingerprint=record.fingerprint,
        sixteen_bit=record.delta_dtype == "bfloat16",
    )
    return DeltaSource(tuned, store)


@dataclass(frozen=True)
class Deltas:
    """The file, and for each tensor with units their Gram matrices, the base last: float64 [U, K + 1, K + 1]."""

    file: DeltaFile
    units: Mapping[str, Tensor]


def deltas_of(plan: DeltaPlan, splits: Mapping[str, Split] | None, out: Path, reporter: Reporter) -> Deltas:
    """`read_deltas`, kept in `out`, or what an earlier run on the same weights left there.

    Raises:
        ModelError: as `read_deltas`.
    """
    known = kept_result(out / DELTAS, DeltaFile, splits is not None)
    if known is not None:
        found, units = known
        theirs = (("", found.base_fingerprint), *((one.label, one.fingerprint) for one in found.tuned))
        if theirs == plan.fingerprints and (found.units or splits is None):
            reporter.note(f"{out / DELTAS}: these deltas were compared before")
            return Deltas(found, units)
    deltas = read_deltas(plan, reporter, splits)
    keep_result(out / DELTAS, deltas.file, None if splits is None else deltas.units)
    return deltas


def read_deltas(plan: DeltaPlan, reporter: Reporter, splits: Mapping[str, Split] | None = None) -> Deltas:
    """Norms and cosines of all tensors' deltas, and Gram matrices of the units of those in `splits`.

    Raises:
        ModelError: a tensor is missing on disk, of another shape there, or not finite.
    """
    model = build_meta_model(plan.base.config)
    shapes = plan.base.anatomy.inventory.shapes
    plan.base_weights.prepare(model)
    for source in plan.sources:
        if isinstance(source.weights, SafetensorsCheckpoint):
            source.weights.prepare(model)
    tensors: list[DeltaTensor] = []
    units: dict[str, Tensor] = {}
    num_threads = min(MOST_THREADS, max(2, os.cpu_count() or 1))
    with (
        reporter.task("comparing with the base", len(shapes)) as advance,
        _one_thread_each(),
        ThreadPoolExecutor(num_threads) as threads,
    ):
        read = threads.map(lambda name: _read_one(plan, model, name, (splits or {}).get(name)), shapes)
        for (name, shape), sums in zip(shapes.items(), read, strict=True):
            if not np.isfinite(sums.gram_KK).all() or not np.isfinite(sums.base_square):
                tasks = ", ".join(source.tuned.label for source in plan.sources)
                raise ModelError(f"NaN or Inf in {name} of the base or of {tasks}")
            tensors.append(_tensor(name, shape, sums))
            if sums.units is not None:
                units[name] = sums.units
            advance()
    file = DeltaFile(
        model=plan.base.identity,
        base_fingerprint=plan.base_weights.fingerprint,
        tuned=tuple(source.tuned for source in plan.sources),
        parameters=tuple(tensors),
        units=splits is not None,
        libraries=library_versions(),
    )
    return Deltas(file, units)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Tensors are read side by side; torch's own threads would only be in their way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Sums:
    """What one tensor's deltas were reduced to: Gram matrix, those of its units, |base|², parameters not moved."""

    gram_KK: np.ndarray
    units: Tensor | None
    base_square: float
    unchanged: list[int]


def _read_one(plan: DeltaPlan, model: PreTrainedModel, name: str, split: Split | None) -> _Sums:
    shape = plan.base.anatomy.inventory.shapes[name]
    base_chunks = plan.base_weights.chunks(model, name, shape)
    others = [
        source.weights.chunks(name, shape)
        if isinstance(source.weights, DeltaStore)
        else source.weights.chunks(model, name, shape)
        for source in plan.sources
    ]
    is_delta = [isinstance(source.weights, DeltaStore) for source in plan.sources]
    num = len(plan.sources)
    gram_KK = torch.zeros(num, num, dtype=torch.float64)
    units = _UnitGrams(split, shape) if split is not None else None
    unchanged, base_square = [0] * num, 0.0
    for base_E, *values in zip(base_chunks, *others, strict=True):
        delta_KE = _differences(base_E, values, is_delta)
        moved_KE = delta_KE.numpy() != 0
        unchanged = [
            count + len(base_E) - int(np.count_nonzero(row)) for count, row in zip(unchanged, moved_KE, strict=True)
        ]
        gram_KK += gram_of(delta_KE)
        base_square += float(gram_of(base_E.to(delta_KE.dtype)[None]))
        if units is not None:
            units.add(torch.cat([delta_KE, base_E[None].to(delta_KE.dtype)]))
    return _Sums(gram_KK.numpy(), None if units is None else units.result(), base_square, unchanged)


def _differences(base_E: Tensor, values: Sequence[Tensor], is_delta: Sequence[bool]) -> Tensor:
    """Deltas of one chunk [K, E], in float32, or in float64 where something is stored in float64.

    bf16 next to float32 needs no care: each is widened before it is subtracted, which loses nothing but the last bit.
    """
    wide = torch.float64 if any(t.dtype == torch.float64 for t in (base_E, *values)) else torch.float32
    reference_E = base_E.to(wide)
    delta_KE = torch.empty(len(values), len(base_E), dtype=wide)
    for row_E, values_E, delta in zip(delta_KE, values, is_delta, strict=True):
        row_E.copy_(values_E)
        if not delta:
            row_E.sub_(reference_E)
    return delta_KE


def gram_of(rows_KE: Tensor) -> Tensor:
    """Inner products of K rows, float64 [K, K], to about 1e-8 of the norms: float32 within short slices, whose sums are
    added in float64. Rows so small that their squares would lose digits are multiplied in float64 from the start."""
    count = rows_KE.shape[1] // SLICE * SLICE
    slices_SKE = rows_KE[:, :count].unflatten(1, (-1, SLICE)).transpose(0, 1)
    gram_KK: Tensor = (slices_SKE @ slices_SKE.transpose(1, 2)).double().sum(dim=0)
    rest = rows_KE[:, count:].double()
    gram_KK += rest @ rest.T
    small = rows_KE[gram_KK.diagonal() < TINY]
    if len(small) and small.any():  # a delta of zeros is exact as it is
        exact = rows_KE.double()
        gram_KK = exact @ exact.T
    return gram_KK


@dataclass
class _UnitGrams:
    """Gram matrices of one tensor's units, added up chunk by chunk (a chunk is some whole rows)."""

    split: Split
    shape: tuple[int, ...]
    parts: list[Tensor] = field(default_factory=list)

    def add(self, rows_NE: Tensor) -> None:
        rows_NRC = rows_NE.double().unflatten(1, (-1, prod(self.shape[1:])))  # of experts (three dimensions) C is all
        along = rows_NRC.permute(1, 0, 2) if self.split.dim == 0 else rows_NRC.permute(2, 0, 1)
        grams = along @ along.transpose(1, 2)  # of each row [R, N, N], or of each column [C, N, N]
        if self.split.dim == 0:
            self.parts.append(grams)
        else:
            self.parts = [grams + self.parts[0]] if self.parts else [grams]

    def result(self) -> Tensor:
        units_UNN: Tensor = torch.cat(self.parts).unflatten(0, (-1, self.split.size)).sum(dim=1)
        return units_UNN


def _tensor(name: str, shape: tuple[int, ...], sums: _Sums) -> DeltaTensor:
    """Norms and cosines instead of inner products: what people read, and as exact."""
    pairs = cosines_of(sums.gram_KK[None])[0][np.tril_indices(len(sums.gram_KK), -1)]
    return DeltaTensor(
        name=name,
        shape=shape,
        base_norm=float(np.sqrt(sums.base_square)),
        norms=tuple(np.sqrt(np.diagonal(sums.gram_KK)).tolist()),
        cosines=tuple(None if np.isnan(value) else float(value) for value in pairs),
        unchanged=tuple(sums.unchanged),
    )


def grams_of(file: DeltaFile) -> NDArray[np.float64]:
    """The Gram matrices [P, K, K] back from norms and cosines; with a zero delta an inner product is 0."""
    K = len(file.tuned)
    norms_PK = np.array([one.norms for one in file.parameters]).reshape(-1, K)
    cosines_PKK = np.zeros((len(norms_PK), K, K))
    rows, columns = np.tril_indices(K, -1)
    pairs = [[value or 0.0 for value in one.cosines] for one in file.parameters]
    cosines_PKK[:, rows, columns] = np.array(pairs).reshape(len(norms_PK), len(rows))
    cosines_PKK += cosines_PKK.transpose(0, 2, 1) + np.eye(K)
    grams_PKK: NDArray[np.float64] = cosines_PKK * norms_PK[:, :, None] * norms_PK[:, None, :]
    return grams_PKK
