"""What a training keeps on the disk while it runs: `loss.csv`, and checkpoints to end with the same bits after a stop.

    DIRECTORY/loss.csv                  each step, for people
    DIRECTORY/checkpoint/step-00000120/
        checkpoint.json                 format, version, what is trained on what, how many steps are done
        loss.csv                        those steps
        eval.csv                        evaluations on held-out examples, if there were any
        00000.safetensors, …            per tensor NAME: NAME/master and the optimizer's state, as NAME/exp_avg

Of a tensor with some trained rows or columns, a checkpoint holds those rows or columns.

A checkpoint is written under another name and renamed; after that the oldest are renamed and removed, but for the one
that the newest calls the best. So every checkpoint that has its name is whole, whatever kills the run. Nothing is
pickled.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from trace_transfer.engine import held_out
from trace_transfer.engine.held_out import Evaluation
from trace_transfer.errors import TrainingError, listing
from trace_transfer.files import PART, DiskFullError, is_disk_full, new_directory, write_text
from trace_transfer.models.tensors import write_tensors
from trace_transfer.records import library_versions, read_fields
from trace_transfer.text_formats import read_text

FILE = "loss.csv"


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        step: counted from 1.
        loss: mean cross-entropy of the supervised tokens of the global batch before the step, in nats.
        grad_norm: of the whole gradient, before it is clipped.
        tokens: read in this step, padding not counted.
        supervised: tokens that were learned from.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    supervised: int


HEADER = tuple(field.name for field in fields(Step))


def to_csv(steps: Iterable[Step], header: bool = True) -> str:
    """Steps as CSV; numbers are written so that reading gives the same ones back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([*([HEADER] if header else []), *map(astuple, steps)])
    return text.getvalue()


def from_csv(text: str) -> list[Step]:
    """The steps that `to_csv` wrote.

    Raises:
        ValueError: it is something else, or a step is missing between two; tells the line.
    """
    head, *lines = text.split("\n")  # no value needs quotes
    if tuple(head.split(",")) != HEADER:
        raise ValueError(f"line 1: expected the columns {', '.join(HEADER)}")
    if lines[-1:] != [""]:
        raise ValueError(f"line {len(lines) + 1}: is cut short")
    return [_step(line, number) for number, line in enumerate(lines[:-1], start=1)]


def _step(line: str, number: int) -> Step:
    kinds, values = (int, float, float, float, int, int), line.split(",")
    try:
        step = Step(*(kind(value) for kind, value in zip(kinds, values, strict=True)))
    except ValueError as error:
        raise ValueError(f"line {number + 1}: {line!r:.80} is no step; expected {', '.join(HEADER)}") from error
    if step.step != number or not all(map(math.isfinite, astuple(step))):
        raise ValueError(f"line {number + 1}: {line!r:.80}, expected step {number}, and finite numbers")
    return step


def read_csv(file: Path, num_steps: int | None = None) -> list[Step]:
    """The steps of a `loss.csv`.

    Args:
        num_steps: how many there must be, where that is known.

    Raises:
        TrainingError: it cannot be read, is damaged, or has fewer or more; tells the line.
    """
    try:
        steps = from_csv(read_text(file, TrainingError))
    except ValueError as error:
        raise TrainingError(f"{file}: {error}") from error
    if num_steps is not None and len(steps) != num_steps:
        raise TrainingError(f"{file}: has {len(steps)} steps, expected {num_steps}")
    return steps


class Log:
    """`loss.csv` while it grows. What a killed run wrote after its last checkpoint is taken back on starting."""

    def __init__(self, directory: Path, steps: Iterable[Step]) -> None:
        self.steps = list(steps)
        self.path = directory / FILE
        write_text(self.path, to_csv(self.steps))

    def add(self, step: Step) -> None:
        self.steps.append(step)
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(to_csv([step], header=False))
        except OSError as error:
            raise TrainingError(
                f"{self.path}: cannot be written: {error.strerror}; make room and run it again to go on from the last "
                "checkpoint"
            ) from error


FORMAT, VERSION = "trace-transfer/training-checkpoint", 1
NEW = {"model.config_sha256"}  # compared with the checkpoints that have it; those of earlier versions have not
FOLDER, RECORD = "checkpoint", "checkpoint.json"
SHARD_BYTES = 1 << 28
PAST = {"prefix", "settings.cache_prefix"}  # of earlier versions, and of no influence on results

Identity = Mapping[str, Any]
States = Iterable[tuple[str, Mapping[str, Tensor]]]


class _Record(BaseModel):
    """`checkpoint.json`, of what is needed."""

    format: Literal["trace-transfer/training-checkpoint"]
    version: Literal[1]
    identity: dict[str, Any]
    step: int = Field(ge=0, strict=True)
    seconds: float = Field(ge=0)
    best: int | None = None


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the disk."""

    path: Path
    identity: Identity
    steps: tuple[Step, ...]
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()

    def read(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every trained tensor that has it, one at a time: `master`, `exp_avg` …"""
        from safetensors import safe_open

        for file in self.shards:
            with safe_open(file, framework="pt") as shard:
                for key in shard.keys():  # noqa: SIM118 (not a dict)
                    name, _, found = key.rpartition("/")
                    if found == kind:
                        yield name, shard.get_tensor(key)

    @property
    def shards(self) -> list[Path]:
        return sorted(self.path.glob("*.safetensors"))

    def require_whole(self, kinds: Mapping[str, Sequence[str]]) -> None:
        """Refuse a checkpoint that lacks values of a trained tensor: it would begin again from the base's.

        Args:
            kinds: name → what there must be of it.

        Raises:
            TrainingError: what it lacks, and what nobody trains; or a shard that cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        found: set[str] = set()
        for file in self.shards:
            try:
                with safe_open(file, framework="pt") as shard:
                    found.update(shard.keys())
            except (SafetensorError, OSError) as error:
                raise TrainingError(
                    f"{file}: damaged ({error}); remove {self.path} to go on from the checkpoint before it, if there "
                    "is one, or to begin again"
                ) from error
        expected = {f"{name}/{kind}" for name, several in kinds.items() for kind in several}
        if found != expected:
            problems = [f"{key}: is not there" for key in sorted(expected - found)]
            problems += [f"{key}: is of nothing that is trained" for key in sorted(found - expected)]
            raise TrainingError(
                f"{self.path}: not the checkpoint of this training; remove it to go on from the one before it, if "
                "there is one, or to begin again:\n" + listing(problems)
            )


def find(directory: Path) -> Saved | None:
    """The newest checkpoint of a training, or None.

    Raises:
        TrainingError: it cannot be read.
    """
    paths = _paths(directory)
    if not paths:
        return None
    path = paths[-1]
    try:
        record = read_fields(path / RECORD, _Record, TrainingError)
        if record.best and not _place(directory, record.best).is_dir():
            raise TrainingError(f"{_place(directory, record.best)}, the best so far, is not there")
        steps, evaluations = read_csv(path / FILE, record.step), held_out.read_csv(path / held_out.FILE)
        return Saved(path, record.identity, tuple(steps), record.seconds, evaluations)
    except TrainingError as error:
        reason = str(error).removeprefix(f"{path}/")
        raise TrainingError(f"{path}: not a checkpoint of this program ({reason}); remove it to begin again") from error


def require_same(saved: Saved, identity: Identity) -> None:
    """Refuse to go on from a checkpoint of another training.

    Raises:
        TrainingError: naming everything that differs.
    """
    found, expected = _flat(saved.identity), _flat(json.loads(json.dumps(identity)))
    problems = [
        f"{key}: {found.get(key)!r} in the checkpoint, {expected.get(key)!r} now"
        for key in sorted((found.keys() | expected.keys()) - PAST - (NEW - found.keys()))
        if found.get(key) != expected.get(key)
    ]
    if problems:
        raise TrainingError(
            f"{saved.path}: a training of {len(saved.steps)} steps was stopped here, but it differs from this one:\n"
            + listing(problems)
            + f"\nGive what it was begun with, or remove {saved.path.parent} to begin again"
        )


def write(
    directory: Path, identity: Identity, steps: Sequence[Step], seconds: float, states: States, keep: int = 1,
    evaluations: Sequence[Evaluation] = (), best: int | None = None,
) -> Path:  # fmt: skip
    """Write a checkpoint and remove the oldest but for the newest `keep`.

    Args:
        best: the step of one that stays; maybe this.

    Raises:
        TrainingError: it cannot be written (a full disk); the one before is as it was.
    """
    folder = directory / FOLDER
    before = _paths(directory)
    final = _place(directory, len(steps))
    record = {
        "format": FORMAT, "version": VERSION, "identity": identity, "step": len(steps), "seconds": seconds,
        **({"best": best} if best else {}), "libraries": library_versions(),
    }  # fmt: skip
    try:
        remove_leftovers(directory, max(keep, 1))
        with new_directory(final) as temporary:
            _write_shards(temporary, states)
            write_text(temporary / FILE, to_csv(steps))
            if evaluations:
                write_text(temporary / held_out.FILE, held_out.to_csv(evaluations))
            write_text(temporary / RECORD, json.dumps(record, indent=2) + "\n")
    except Exception as error:
        if reason := _reason(error):
            kept = f"{before[-1].name} is good" if before else "there is none before it"
            raise TrainingError(
                f"{folder}: the checkpoint of step {len(steps)} cannot be written: {reason}. Of the last checkpoint: "
                f"{kept}; make room and run it again to go on from there"
            ) from error
        raise
    _remove_oldest(directory, keep)
    return final


def remove(directory: Path) -> None:
    """Remove all checkpoints of a training that is done; a kill leaves all of them or none that looks whole."""
    done = directory / f".{FOLDER}{PART}"
    with suppress(FileNotFoundError):
        (directory / FOLDER).rename(done)
    for gone in (done, directory / "prefix"):  # the second of earlier versions
        shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(directory: Path, keep: int = 1) -> None:
    """Remove what a killed run left half-written or half-removed, and all checkpoints but the newest `keep`."""
    for leftover in (*(directory / FOLDER).glob(f".step-*{PART}"), directory / f".{FOLDER}{PART}"):
        shutil.rmtree(leftover, ignore_errors=True)
    _remove_oldest(directory, keep)


def trained_at(directory: Path, step: int) -> Iterator[tuple[str, Tensor]]:
    """Name and value of all that was trained, as it was after a step of which there is a checkpoint."""
    return Saved(_place(directory, step), {}, (), 0.0).read("master")


def _remove_oldest(directory: Path, keep: int) -> None:
    paths = _paths(directory)
    oldest = paths[:-keep]
    if not oldest:
        return
    try:
        best = read_fields(paths[-1] / RECORD, _Record, TrainingError).best
    except TrainingError:
        return  # told when it is read
    for path in oldest:
        if best and path == _place(directory, best):
            continue
        hidden = path.with_name(f".{path.name}{PART}")  # half removed it must not look whole
        with suppress(OSError):
            path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _write_shards(directory: Path, states: States) -> None:
    tensors: dict[str, Tensor] = {}
    num_bytes = num_shards = 0
    for name, kinds in states:
        for kind, tensor in kinds.items():
            tensors[f"{name}/{kind}"] = tensor
            num_bytes += tensor.nbytes
        if num_bytes >= SHARD_BYTES:
            _write_shard(directory, num_shards, tensors)
            tensors, num_bytes, num_shards = {}, 0, num_shards + 1
    if tensors:
        _write_shard(directory, num_shards, tensors)


def _write_shard(directory: Path, number: int, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(directory / f"{number:05}.safetensors", tensors, {"format": FORMAT, "version": str(VERSION)})


def _place(directory: Path, step: int) -> Path:
    return directory / FOLDER / f"step-{step:08}"


def _paths(directory: Path) -> list[Path]:
    return sorted((directory / FOLDER).glob("step-*"))


def _reason(error: BaseException) -> str | None:
    """What the system says, if it was the writing that failed."""
    if isinstance(error, DiskFullError) or is_disk_full(error):
        return "the disk is full"
    return error.strerror or str(error) if isinstance(error, OSError) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return found
