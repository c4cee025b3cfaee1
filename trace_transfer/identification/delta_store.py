"""Deltas on disk: one directory of safetensors shards per warm start, written and read a parameter at a time.

A delta is warm-started minus base, under the parameter's name at run time, in float32 or bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from trace_transfer.errors import ModelError, NumericalError, listing
from trace_transfer.files import sha256_file, sha256_text, write_tensors
from trace_transfer.identification.records import WarmStartFile
from trace_transfer.models.tensors import all_finite, read_rows, require_finite
from trace_transfer.records import read_artefact

RECORD = "warm_start.json"
SHARD_BYTES = 1 << 30
METADATA = {"format": "trace-transfer/delta", "version": "1"}


@dataclass
class ShardWriter:
    """Writes tensors as they come, in numbered safetensors files; at most one shard is in memory.

    Attributes:
        prefix: of the files' names: `delta` gives `delta-00001.safetensors`.
    """

    directory: Path
    prefix: str = "delta"
    dtype: torch.dtype = torch.float32
    metadata: Mapping[str, str] = field(default_factory=lambda: METADATA)
    shard_bytes: int = SHARD_BYTES
    shards: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    _waiting: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor) -> None:
        """Raises `NumericalError` where a value is not finite."""
        kept = tensor.to(self.dtype)
        if not all_finite(kept):
            raise NumericalError(f"{self.directory}: NaN or Inf in {name}; nothing of it was kept")
        if self._waiting and sum(t.nbytes for t in self._waiting.values()) + kept.nbytes > self.shard_bytes:
            self._write()
        self._waiting[name] = kept

    def finish(self) -> dict[str, str]:
        """Write the rest; returns each file with its SHA-256 (`places` has each tensor with its file)."""
        if self._waiting:
            self._write()
        return self.shards

    def _write(self) -> None:
        file = self.directory / f"{self.prefix}-{len(self.shards) + 1:05d}.safetensors"
        write_tensors(file, self._waiting, self.metadata)
        self.shards[file.name] = sha256_file(file)
        self.places |= dict.fromkeys(self._waiting, file.name)
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
            ModelError: shards are missing, damaged or do not hold the parameters of the model.
        """
        store = cls(directory, read_artefact(directory / RECORD, WarmStartFile))
        if len(store._files) != store.record.model.num_parameters:
            raise ModelError(
                f"{directory}: holds deltas of {len(store._files)} parameters, expected "
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
