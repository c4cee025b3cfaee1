"""Hidden states on the disk: what enters the lowest trained layer, for every text of a training, computed once.

    DIRECTORY/prefix/
        record.json                     what was computed of what
        00000.safetensors, …            `hidden_nd`: the texts of some micro-batches, one behind the other

Which texts are computed together and lie in which file follows from the data alone, not from the number of ranks, the
epoch or an interruption: so do the bits. A file that is there is whole. A state depends on the tokens up to its own and
on nothing else of an example, so that texts are known by their tokens and equal ones are kept once.

Shapes: b texts of a batch, t tokens of its longest, n tokens of all texts of a file, d hidden size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trace_transfer.errors import UserError
from trace_transfer.examples import Example
from trace_transfer.files import PART, prepare_directory, remove_leftovers, write_tensors, write_text
from trace_transfer.text_formats import read_json
from trace_transfer.training.errors import TrainingError

FORMAT, VERSION = "trace-transfer/prefix", 1
FOLDER, RECORD, KEY = "prefix", "record.json", "hidden_nd"
SHARD_BYTES = 1 << 25

MicroBatch = tuple[Example, ...]
Place = tuple[int, int]


def remove_cache(directory: Path) -> None:
    """Remove a training's cache; a kill leaves it whole or nothing that looks so."""
    done = directory / f".{FOLDER}{PART}"
    shutil.rmtree(done, ignore_errors=True)
    with suppress(FileNotFoundError):
        (directory / FOLDER).rename(done)
    shutil.rmtree(done, ignore_errors=True)


def prefix_bytes(examples: Sequence[Example], width: int, dtype: torch.dtype) -> int:
    """What a cache takes on the disk, but for a hundred bytes per file; known before anything is computed."""
    return sum(map(len, {example.input_ids for example in examples})) * width * dtype.itemsize


@dataclass(frozen=True)
class PrefixCache:
    """The input of layer `boundary` for every text of a training.

    Attributes:
        directory: of the training; the cache is a folder in it that all ranks see.
        identity: whose states these are: a starting point's fingerprint, with whatever was put on it since. Another
            identity, boundary, type, other texts or another batching of them: another cache.
        width: the hidden size.
        dtype: of the states as the model computes them; they are kept as they are.
        micro_batch_size: texts computed together.
        shard_bytes: a file is closed once it has that many.
    """

    directory: Path
    identity: Mapping[str, Any]
    examples: Sequence[Example]
    boundary: int
    width: int
    dtype: torch.dtype
    micro_batch_size: int
    shard_bytes: int = SHARD_BYTES
    _starts: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def folder(self) -> Path:
        return self.directory / FOLDER

    @property
    def num_bytes(self) -> int:
        """Of the states of all texts."""
        return prefix_bytes(self.examples, self.width, self.dtype)

    @cached_property
    def shards(self) -> tuple[tuple[MicroBatch, ...], ...]:
        """For each file its micro-batches, of texts of like length, the longest first."""
        texts: dict[tuple[int, ...], Example] = {}
        for example in self.examples:
            texts.setdefault(example.input_ids, example)
        ordered = sorted(texts.values(), key=lambda example: -len(example.input_ids))  # stable
        shards: list[tuple[MicroBatch, ...]] = []
        waiting: list[MicroBatch] = []
        for start in range(0, len(ordered), self.micro_batch_size):
            waiting.append(tuple(ordered[start : start + self.micro_batch_size]))
            if self._bytes(_num_tokens(waiting)) >= self.shard_bytes:
                shards.append(tuple(waiting))
                waiting = []
        return (*shards, tuple(waiting)) if waiting else tuple(shards)

    def begin(self) -> None:
        """Make the folder, or take over what a run with the same identity left there; for one rank alone.

        Raises:
            TrainingError: there is no room for what is missing.
            UserError: the folder cannot be written.
        """
        if not self._is_mine():
            self.remove()
        prepare_directory(self.folder, "prefix cache")
        remove_leftovers(self.folder)
        needed = sum(self._bytes(_num_tokens(self.shards[shard])) for shard in self.missing())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise TrainingError(
                f"{self.folder}: the hidden states below layer {self.boundary} take {needed:,} bytes more, and "
                f"{free:,} are free; make room, or train with --cache-prefix off"
            )
        write_text(self.folder / RECORD, json.dumps(self._record, indent=2) + "\n")

    def missing(self) -> list[int]:
        """Numbers of the files that are not there, or not whole."""
        return [shard for shard in range(len(self.shards)) if self._start(shard) is None]

    def write(self, shard: int, states: Sequence[Tensor]) -> None:
        """Write a file.

        Args:
            states: [length, d] of each of its texts, in their order.

        Raises:
            DiskFullError: nothing of it was left.
        """
        hidden_nd = torch.cat(list(states))
        expected = (_num_tokens(self.shards[shard]), self.width)
        if tuple(hidden_nd.shape) != expected or hidden_nd.dtype != self.dtype:
            raise TrainingError(
                f"{self._file(shard)}: hidden states of {list(hidden_nd.shape)} in {hidden_nd.dtype}, expected "
                f"{list(expected)} in {self.dtype}; this model needs --cache-prefix off"
            )
        write_tensors(self._file(shard), {KEY: hidden_nd}, {"format": FORMAT, "version": str(VERSION)})

    def read(self, examples: Sequence[Example]) -> Tensor:
        """The states of some examples on the CPU, [b, t, d], padded on the right with 0 as `examples.collate` pads.

        Raises:
            TrainingError: they are not in the cache, or a file is gone or damaged.
        """
        longest = max(len(example.input_ids) for example in examples)
        hidden_btd = torch.zeros(len(examples), longest, self.width, dtype=self.dtype)
        bytes_btw = hidden_btd.view(torch.uint8).numpy()
        for row, example in enumerate(examples):
            shard, offset = self._place(example)
            wanted = bytes_btw[row, : len(example.input_ids)]
            try:
                with self._file(shard).open("rb") as stream:
                    stream.seek(self._known_start(shard) + self._bytes(offset))
                    whole = stream.readinto(wanted.data) == wanted.nbytes
            except OSError as error:
                raise self._damaged(shard, error.strerror or str(error)) from error
            if not whole:
                raise self._damaged(shard, "it is cut short")
        return hidden_btd

    def remove(self) -> None:
        """Remove all of it; a kill leaves it whole or nothing that looks so."""
        remove_cache(self.directory)
        self._starts.clear()

    @cached_property
    def _record(self) -> Mapping[str, Any]:
        states = {
            "boundary": self.boundary, "width": self.width, "dtype": str(self.dtype).removeprefix("torch."),
            "micro_batch_size": self.micro_batch_size, "num_shards": len(self.shards), "num_texts": len(self._places),
            "num_tokens": sum(map(_num_tokens, self.shards)), "texts_sha256": self._texts_sha256,
        }  # fmt: skip
        whole = {"format": FORMAT, "version": VERSION, "identity": dict(self.identity), "states": states}
        read: Mapping[str, Any] = json.loads(json.dumps(whole))  # as it comes back from the disk
        return read

    @property
    def _texts_sha256(self) -> str:
        digest = hashlib.sha256()
        for ids in self._places:
            digest.update(array("q", (len(ids), *ids)).tobytes())
        return digest.hexdigest()

    @cached_property
    def _places(self) -> Mapping[tuple[int, ...], Place]:
        """Tokens of each text → its file, and how many tokens stand before it there."""
        places: dict[tuple[int, ...], Place] = {}
        for shard, micro_batches in enumerate(self.shards):
            offset = 0
            for example in (example for micro_batch in micro_batches for example in micro_batch):
                places[example.input_ids] = (shard, offset)
                offset += len(example.input_ids)
        return places

    def _place(self, example: Example) -> Place:
        try:
            return self._places[example.input_ids]
        except KeyError:
            raise TrainingError(f"{self.folder}: has no hidden states of {example.id}; it is of other data") from None

    def _is_mine(self) -> bool:
        try:
            return bool(read_json(self.folder / RECORD) == self._record)
        except UserError:
            return False

    def _known_start(self, shard: int) -> int:
        if shard not in self._starts:
            start = self._start(shard)
            if start is None:
                raise self._damaged(shard, "it is missing or cut short")
            self._starts[shard] = start
        return self._starts[shard]

    def _start(self, shard: int) -> int | None:
        """Where the states begin in a file; None if it is missing or its size is not the one that it must have."""
        with suppress(FileNotFoundError), self._file(shard).open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            if os.fstat(stream.fileno()).st_size == start + self._bytes(_num_tokens(self.shards[shard])):
                return start
        return None

    def _file(self, shard: int) -> Path:
        return self.folder / f"{shard:05}.safetensors"

    def _bytes(self, num_tokens: int) -> int:
        return num_tokens * self.width * self.dtype.itemsize

    def _damaged(self, shard: int, reason: str) -> TrainingError:
        return TrainingError(
            f"{self._file(shard)}: hidden states cannot be read: {reason}. Run the same command again: it computes "
            "anew what is not whole"
        )


def _num_tokens(micro_batches: Sequence[MicroBatch]) -> int:
    return sum(len(example.input_ids) for micro_batch in micro_batches for example in micro_batch)
