"""What a training keeps on the disk while it runs: its tables, and checkpoints to end with the same bits after a stop.

    DIRECTORY/loss.csv                  each step, for people
    DIRECTORY/eval.csv                  each evaluation on held-out examples, a line for each task
    DIRECTORY/checkpoint/step-00000120/
        checkpoint.json                 format, version, what is trained on what, how many steps are done
        loss.csv, eval.csv              until then
        00000.safetensors, …            per tensor NAME: NAME/master and the optimizer's state, as NAME/exp_avg

Of a tensor with some trained rows or columns, a checkpoint holds those rows or columns.

A checkpoint is written under another name and renamed; after that the oldest are renamed and removed, but for the one
that the newest calls the best. So every checkpoint that has its name is whole, whatever kills the run. Nothing is
pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError
from torch import Tensor

from trace_transfer.engine.batches import Evaluation
from trace_transfer.errors import TrainingError, listing
from trace_transfer.files import PART, DiskFullError, new_directory, write_text
from trace_transfer.models.tensors import write_tensors
from trace_transfer.records import library_versions, read_fields
from trace_transfer.settings import flat, side_by_side
from trace_transfer.text_formats import read_text

LOSSES, EVALUATIONS = "loss.csv", "eval.csv"
FORMAT, VERSION = "trace-transfer/training-checkpoint", 1
FOLDER, RECORD = "checkpoint", "checkpoint.json"
SHARD_BYTES = 1 << 28

Identity = Mapping[str, Any]
States = Iterable[tuple[str, Mapping[str, Tensor]]]


class Step(NamedTuple):
    """One optimizer step, counted from 1."""

    step: int
    loss: FiniteFloat  # mean cross-entropy of the supervised tokens of the global batch before the step, in nats
    learning_rate: FiniteFloat
    grad_norm: FiniteFloat  # of the whole gradient, before it is clipped
    tokens: int  # read in this step, padding not counted; of those `supervised` were learned from
    supervised: int


class _Row(NamedTuple):
    step: int
    task: str
    loss: FiniteFloat
    supervised: int


def to_csv(steps: Iterable[Step]) -> str:
    return _csv((Step._fields, *steps))


def evaluations_csv(evaluations: Iterable[Evaluation]) -> str:
    rows = ((one.step, task, loss, one.supervised[task]) for one in evaluations for task, loss in one.losses.items())
    return _csv((_Row._fields, *rows))


def read_csv(file: Path, num_steps: int | None = None) -> list[Step]:
    """The steps of a `loss.csv`; a TrainingError unless they are numbered from 1 to `num_steps`, if that is given."""
    steps: list[Step] = _rows(file, Step)
    wanted = len(steps) if num_steps is None else num_steps
    if len(steps) != wanted or any(step.step != number for number, step in enumerate(steps, start=1)):
        raise TrainingError(f"{file}: has {len(steps)} steps, expected {wanted}, one after the other")
    return steps


def read_evaluations(file: Path) -> tuple[Evaluation, ...]:
    """The evaluations of an `eval.csv`; none where there is no such file."""
    found, lines = [], _rows(file, _Row) if file.is_file() else []
    for step, several in groupby(lines, key=lambda row: row.step):
        rows = list(several)
        found.append(Evaluation(step, {r.task: r.loss for r in rows}, {r.task: r.supervised for r in rows}))
    return tuple(found)


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)  # no value needs quotes


def _rows(file: Path, kind: Any) -> list[Any]:
    """The lines of a table, each as a tuple of that kind; its fields are the columns."""
    head, *lines = read_text(file, TrainingError).split("\n")
    with suppress(ValidationError):
        rows: list[Any] = TypeAdapter(list[kind]).validate_python([line.split(",") for line in lines[:-1]])
        if head == ",".join(kind._fields) and lines[-1:] == [""]:
            return rows
    raise TrainingError(f"{file}: damaged; expected whole lines of {', '.join(kind._fields)}")


def add_step(directory: Path, step: Step) -> None:
    with (directory / LOSSES).open("a", encoding="utf-8") as stream:
        stream.write(_csv([step]))


class _Record(BaseModel):
    format: Literal["trace-transfer/training-checkpoint"]
    version: Literal[1]
    identity: dict[str, Any]
    step: int = Field(ge=0, strict=True)
    seconds: float = Field(ge=0)
    best: int | None = None


@dataclass(frozen=True)
class Saved:
    path: Path
    identity: Identity
    steps: tuple[Step, ...]
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()

    def read(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every trained tensor that has it, one at a time: `master`, `exp_avg` …"""
        kind = f"/{kind}"
        return ((key.removesuffix(kind), shard.get_tensor(key)) for shard, key in self._keys() if key.endswith(kind))

    def _keys(self) -> Iterator[tuple[Any, str]]:
        from safetensors import SafetensorError, safe_open

        for file in sorted(self.path.glob("*.safetensors")):
            try:
                opened = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                told = f"remove {self.path} to go on from the one before it, if any"
                raise TrainingError(f"{file}: damaged ({error}); {told}") from error
            with opened as shard:
                yield from ((shard, key) for key in shard.keys())  # noqa: SIM118 (not a dict)

    def require_whole(self, kinds: Mapping[str, Sequence[str]]) -> None:
        """Refuse a checkpoint that lacks these kinds of values of a tensor: it would begin again from the base's."""
        found = {key for _, key in self._keys()}
        if wrong := found ^ {f"{name}/{kind}" for name, several in kinds.items() for kind in several}:
            told = "lacks values, or has others than are trained; remove it to go on from the one before it, if any"
            raise TrainingError(f"{self.path}: {told}:\n{listing(sorted(wrong))}")

    def require_same(self, identity: Identity) -> None:
        pairs = side_by_side(flat(self.identity), flat(json.loads(json.dumps(identity))))
        if problems := [f"{key}: {then!r} in the checkpoint, {now!r} now" for key, then, now in pairs if then != now]:
            raise TrainingError(
                f"{self.path}: a training of {len(self.steps)} steps was stopped here, but it differs from this one:\n"
                + listing(problems)
                + f"\nGive what it was begun with, or remove {self.path.parent} to begin again"
            )


def find(directory: Path) -> Saved | None:
    if not (paths := _paths(directory)):
        return None
    path = paths[-1]
    try:
        record = read_fields(path / RECORD, _Record, TrainingError)
        if record.best and not _place(directory, record.best).is_dir():
            raise TrainingError(f"{_place(directory, record.best)}, the best so far, is not there")
        steps, evaluations = read_csv(path / LOSSES, record.step), read_evaluations(path / EVALUATIONS)
        return Saved(path, record.identity, tuple(steps), record.seconds, evaluations)
    except TrainingError as error:
        reason = str(error).removeprefix(f"{path}/")
        raise TrainingError(f"{path}: not a checkpoint of this program ({reason}); remove it to begin again") from error


def write(
    directory: Path, identity: Identity, steps: Sequence[Step], seconds: float, states: States, keep: int = 1,
    evaluations: Sequence[Evaluation] = (), best: int | None = None,
) -> Path:  # fmt: skip
    """Write a checkpoint and remove the oldest but for the newest `keep` and that of the step `best`. If it cannot be
    written (TrainingError: a full disk), the one before is as it was."""
    final, before = _place(directory, len(steps)), _paths(directory)
    record = {
        "format": FORMAT, "version": VERSION, "identity": identity, "step": len(steps), "seconds": seconds,
        **({"best": best} if best else {}), "libraries": library_versions(),
    }  # fmt: skip
    try:
        remove_leftovers(directory)
        with new_directory(final) as temporary:
            for number, tensors in enumerate(_shards(states)):
                shard = temporary / f"{number:05}.safetensors"
                write_tensors(shard, tensors, {"format": FORMAT, "version": str(VERSION)})
            write_text(temporary / LOSSES, to_csv(steps))
            if evaluations:
                write_text(temporary / EVALUATIONS, evaluations_csv(evaluations))
            write_text(temporary / RECORD, json.dumps(record, indent=2) + "\n")
    except (OSError, DiskFullError) as error:
        kept = f"{before[-1].name} is good" if before else "there is none before it"
        raise TrainingError(
            f"{directory / FOLDER}: the checkpoint of step {len(steps)} cannot be written: {error}. Of the last "
            f"checkpoint: {kept}; make room and run it again to go on from there"
        ) from error
    for path in _paths(directory)[: -max(keep, 1)]:
        if not best or path != _place(directory, best):
            hidden = path.with_name(f".{path.name}{PART}")  # half removed it must not look whole
            with suppress(OSError):
                path.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
    return final


def remove(directory: Path) -> None:
    """Remove all checkpoints; a kill leaves all of them or none that looks whole."""
    done = directory / f".{FOLDER}{PART}"
    with suppress(FileNotFoundError):
        (directory / FOLDER).rename(done)
    shutil.rmtree(done, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    for leftover in (*(directory / FOLDER).glob(f".step-*{PART}"), directory / f".{FOLDER}{PART}"):
        shutil.rmtree(leftover, ignore_errors=True)


def trained_at(directory: Path, step: int) -> Iterator[tuple[str, Tensor]]:
    return Saved(_place(directory, step), {}, (), 0.0).read("master")


def _shards(states: States) -> Iterator[dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    for name, kinds in states:
        tensors |= {f"{name}/{kind}": tensor for kind, tensor in kinds.items()}
        if sum(tensor.nbytes for tensor in tensors.values()) >= SHARD_BYTES:
            yield tensors
            tensors = {}
    if tensors:
        yield tensors


def _place(directory: Path, step: int) -> Path:
    return directory / FOLDER / f"step-{step:08}"


def _paths(directory: Path) -> list[Path]:
    return sorted((directory / FOLDER).glob("step-*"))
