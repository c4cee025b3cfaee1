"""Deltas: tuned minus base. As warm starts leave them on disk, and reduced to what scores need of them.

On disk: one directory of safetensors shards per warm start, each delta under its tensor's name at run time. Reduced, in
one read of every shard: norms, cosines (through a K x K Gram matrix) and the number of parameters that did not move,
tensor by tensor; Gram matrices of heads and neurons. Writes `deltas.json`, and `deltas.units.safetensors` beside it.

Shapes: P tensors, K deltas, E parameters of a chunk, S slices of it, U units of a tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
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
from trace_transfer.identification.records import DeltaFile, DeltaTensor, Kept, TunedModel, WarmStartFile, made_once
from trace_transfer.identification.scores import cosines_of
from trace_transfer.models.checkpoints import Checkpoint, SafetensorsCheckpoint, open_checkpoint
from trace_transfer.models.content import difference
from trace_transfer.models.running import one_thread
from trace_transfer.models.sources import build_meta_model
from trace_transfer.models.tensors import all_finite, read_rows, read_tensor, write_tensors
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
    """Writes deltas as they come, in numbered files with their SHA-256; at most one shard is in memory."""

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
        if self._waiting:
            file = self.directory / f"delta-{len(self.shards) + 1:05d}.safetensors"
            write_tensors(file, self._waiting, METADATA)
            self.shards[file.name] = sha256_file(file)
            self._waiting = {}

    @property
    def fingerprint(self) -> str:
        return sha256_text("\n".join(f"{name} {sha256}" for name, sha256 in sorted(self.shards.items())))


@dataclass(frozen=True)
class DeltaStore:
    """The deltas of one finished warm start, read as a checkpoint's weights are; `files` has each tensor's shard."""

    directory: Path
    record: WarmStartFile
    files: Mapping[str, Path]

    @classmethod
    def open(cls, directory: Path) -> DeltaStore:
        from safetensors import SafetensorError, safe_open

        record: WarmStartFile = read_artefact(directory / RECORD, WarmStartFile)
        files: dict[str, Path] = {}
        for file in (directory / name for name in record.shards):
            try:
                with safe_open(file, framework="pt") as shard:
                    files |= dict.fromkeys(shard.keys(), file)
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{file}: missing, cut short or damaged ({error}); remove {directory} and run the warm start again"
                ) from error
        return cls(directory, record, files)

    def chunks(self, model: PreTrainedModel, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """One delta, flattened, some rows at a time, cut where the base's chunks are."""
        if name not in self.files:
            raise ModelError(f"{self.directory}: lacks the delta of {name}")
        return read_rows(self.files[name], name, shape, str(self.directory))

    def tensor(self, name: str) -> Tensor:
        return read_tensor(self.files[name], name)


# ---- reduced

SIXTEEN_BIT = {torch.bfloat16, torch.float16}
SLICE = 1024  # elements that are summed in float32; sums of slices are added in float64
TINY = 1e-30  # below it squares in float32 lose digits, or vanish
MOST_THREADS = 8  # some wait for the disk while the others compute


@dataclass(frozen=True)
class DeltaSource:
    """Whose delta, and where it comes from: a store, or the weights of a tuned model that is `opened`."""

    tuned: TunedModel
    weights: SafetensorsCheckpoint | DeltaStore
    opened: OpenModel | None = None


@dataclass(frozen=True)
class DeltaPlan:
    base: OpenModel
    base_weights: Checkpoint
    sources: tuple[DeltaSource, ...]


def plan_deltas(base: OpenModel, tuned: Mapping[str, OpenModel], stores: Sequence[DeltaStore] = ()) -> DeltaPlan:
    if not tuned and not stores:
        raise UserError("no fine-tuned model was given: name at least one, as --tuned TASK=MODEL")
    if problems := [problem for task, model in tuned.items() for problem in _misfits(base, task, model)]:
        raise ModelError(f"fine-tuned models that are not of {base.source.name}:\n" + listing(problems))
    base_weights = _open_safetensors(base) if tuned else open_checkpoint(base.source)
    sources = [_stored(base, base_weights, store) for store in stores]
    for task, model in tuned.items():
        weights = _open_safetensors(model)
        sixteen_bit = bool(weights.dtypes & SIXTEEN_BIT)
        record = TunedModel(task=task, id=model.source.repo, fingerprint=weights.fingerprint, sixteen_bit=sixteen_bit)
        sources.append(DeltaSource(record, weights, model))
    return DeltaPlan(base, base_weights, tuple(sources))


def _open_safetensors(model: OpenModel) -> SafetensorsCheckpoint:
    checkpoint = open_checkpoint(model.source)
    if not isinstance(checkpoint, SafetensorsCheckpoint):
        raise UserError(f"{model.source.name}: a GGUF file is coarser than updates are; give the safetensors directory")
    return checkpoint


def _misfits(base: OpenModel, task: str, model: OpenModel) -> list[str]:
    shapes, theirs = base.anatomy.inventory.shapes, model.anatomy.inventory.shapes
    there, here = model.anatomy, base.anatomy
    if (there.family, there.num_layers) != (here.family, here.num_layers):  # its names would say no more
        return [
            f"{task}: {model.source.name} looks like another model: {there.family} with {there.num_layers} layers "
            f"({len(theirs)} tensors), the base is {here.family} with {here.num_layers} ({len(shapes)})"
        ]
    return [
        f"{task}: {name} is {theirs.get(name, 'missing')}, in the base {shapes.get(name, 'missing')}"
        for name in {**shapes, **theirs}
        if theirs.get(name) != shapes.get(name)
    ]


def _stored(base: OpenModel, base_weights: Checkpoint, store: DeltaStore) -> DeltaSource:
    record = store.record
    if record.model.names_sha256 != base.identity.names_sha256 or record.base_fingerprint != base_weights.fingerprint:
        why = difference(f"weights of {base.source.name}", record.base_fingerprint, base_weights.fingerprint)
        raise ModelError(f"{store.directory}: a warm start of {record.model.id}, and {why}")
    tuned = TunedModel(
        task=record.task, replicate=record.replicate, id=record.model.id, fingerprint=record.fingerprint,
        sixteen_bit=record.delta_dtype == "bfloat16",
    )  # fmt: skip
    return DeltaSource(tuned, store)


# For each tensor with units their Gram matrices, the base last: float64 [U, K + 1, K + 1].
Deltas = Kept[DeltaFile]


def deltas_of(plan: DeltaPlan, splits: Mapping[str, Split] | None, out: Path, reporter: Reporter) -> Deltas:
    """`read_deltas`, kept in `out`, or what an earlier run on the same weights left there."""
    expected = [(one.tuned.label, one.tuned.fingerprint) for one in plan.sources]

    def same(found: DeltaFile) -> bool:
        fingerprints = [(one.label, one.fingerprint) for one in found.tuned]
        return (found.base_fingerprint, fingerprints) == (plan.base_weights.fingerprint, expected)

    make = partial(read_deltas, plan, reporter, splits)
    return made_once(out / DELTAS, DeltaFile, splits is not None, same, make, reporter)


def read_deltas(plan: DeltaPlan, reporter: Reporter, splits: Mapping[str, Split] | None = None) -> Deltas:
    """Norms and cosines of all tensors' deltas, and Gram matrices of the units of those in `splits`."""
    model, shapes = build_meta_model(plan.base.config), plan.base.anatomy.inventory.shapes
    tensors: list[DeltaTensor] = []
    units: dict[str, Tensor] = {}
    with (
        reporter.task("comparing with the base", len(shapes)) as advance,
        one_thread(),  # of each tensor: they are read side by side
        ThreadPoolExecutor(min(MOST_THREADS, max(2, os.cpu_count() or 1))) as threads,
    ):
        read = threads.map(lambda name: _read_one(plan, model, name, (splits or {}).get(name)), shapes)
        for tensor, of_units in read:
            tensors.append(tensor)
            if of_units is not None:
                units[tensor.name] = of_units
            advance()
    file = DeltaFile(
        model=plan.base.identity, base_fingerprint=plan.base_weights.fingerprint,
        tuned=tuple(source.tuned for source in plan.sources), parameters=tuple(tensors), units=splits is not None,
        libraries=library_versions(),
    )  # fmt: skip
    return Deltas(file, units)


def _read_one(
    plan: DeltaPlan, model: PreTrainedModel, name: str, split: Split | None
) -> tuple[DeltaTensor, Tensor | None]:
    """One tensor's deltas, reduced; norms and cosines instead of inner products: what people read, and as exact."""
    shape, num = plan.base.anatomy.inventory.shapes[name], len(plan.sources)
    all_weights = (plan.base_weights, *(source.weights for source in plan.sources))
    is_delta_K = [isinstance(weights, DeltaStore) for weights in all_weights[1:]]
    gram_KK = torch.zeros(num, num, dtype=torch.float64)
    unchanged_K, base_square = np.zeros(num, dtype=int), 0.0
    units: list[Tensor] = []
    for chunks in zip(*(weights.chunks(model, name, shape) for weights in all_weights), strict=True):
        base_E, delta_KE = chunks[0].float(), torch.empty(num, len(chunks[0]))
        for row_E, values_E, is_delta in zip(delta_KE, chunks[1:], is_delta_K, strict=True):
            row_E.copy_(values_E)  # widened before it is subtracted, which loses nothing but the last bit
            if not is_delta:
                row_E.sub_(base_E)
        unchanged_K += [len(base_E) - np.count_nonzero(moved_E) for moved_E in delta_KE.numpy() != 0]
        gram_KK += gram_of(delta_KE)
        base_square += float(gram_of(base_E[None]))
        if split is not None:
            _add_units(units, torch.cat([delta_KE, base_E[None]]), split, shape)
    pairs = cosines_of(gram_KK.numpy()[None])[0][np.tril_indices(num, -1)]
    tensor = DeltaTensor(
        name=name, shape=shape, base_norm=float(np.sqrt(base_square)),
        norms=tuple(np.sqrt(np.diagonal(gram_KK)).tolist()),
        cosines=tuple(None if np.isnan(value) else float(value) for value in pairs),
        unchanged=tuple(unchanged_K.tolist()),
    )  # fmt: skip
    return tensor, None if split is None else torch.cat(units).unflatten(0, (-1, split.size)).sum(dim=1)


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


def _add_units(parts: list[Tensor], rows_NE: Tensor, split: Split, shape: tuple[int, ...]) -> None:
    """Gram matrices of the rows or columns of a chunk (some whole rows): of rows more, of columns added up."""
    rows_NRC = rows_NE.double().unflatten(1, (-1, prod(shape[1:])))  # of experts (three dimensions) C is all
    along = rows_NRC.permute(1, 0, 2) if split.dim == 0 else rows_NRC.permute(2, 0, 1)
    grams = along @ along.transpose(1, 2)  # of each row [R, N, N], or of each column [C, N, N]
    if split.dim == 0 or not parts:
        parts.append(grams)
    else:
        parts[0] = grams + parts[0]


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
