"""Warm starts: one epoch of full fine-tuning from the base for each task, of which the delta is kept.

Reads: a base model, the examples of each task. Writes a directory for each warm start: the delta in safetensors shards,
`loss.csv`, and last `warm_start.json`, which says that all is there. Until then `checkpoint/` holds what is needed to
go on after an interruption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trace_transfer.data.examples import TaskData
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.loop import TrainResult, train
from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import prepare_directory, remove_leftovers, write_text
from trace_transfer.identification.delta_store import RECORD, DeltaStore, ShardWriter, fingerprint_of
from trace_transfer.identification.records import DataRecord, WarmStartFile
from trace_transfer.identification.task_data import label_of, parts_of
from trace_transfer.identification.warm_start_settings import WarmStartSettings
from trace_transfer.launching import is_first_rank
from trace_transfer.models.checkpoints import Checkpoint, OpenedBase, open_checkpoint, specs_of
from trace_transfer.models.content import difference
from trace_transfer.models.model_directory import ModelWriter
from trace_transfer.models.sources import build_meta_model, numel
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions, read_artefact, to_json
from trace_transfer.settings import side_by_side

FOLDER = "warm_start"
MODEL = "model"


@dataclass(frozen=True)
class WarmStart:
    """One warm start to be made: a task's examples, or one half of them, and where its delta goes."""

    data: TaskData
    order: int
    replicate: int | None
    directory: Path

    @property
    def label(self) -> str:
        return label_of(self.data.task, self.replicate)


@dataclass(frozen=True)
class WarmStartPlan:
    """All warm starts of a run, and which of them are finished."""

    base: OpenModel
    weights: Checkpoint
    settings: WarmStartSettings
    starts: tuple[WarmStart, ...]
    finished: frozenset[str]


def place_of(out: Path, task: str, replicate: int | None) -> Path:
    """Where a warm start lies."""
    return out / FOLDER / task / (str(replicate) if replicate is not None else "")


def plan_warm_starts(
    base: OpenModel, tasks: Sequence[TaskData], settings: WarmStartSettings, out: Path
) -> WarmStartPlan:
    """Lay out all warm starts and look which are finished; reads headers only, writes nothing.

    Raises:
        UserError: `out` holds warm starts made otherwise: tells what differs.
    """
    starts = tuple(
        WarmStart(data, order, replicate, place_of(out, data.task, replicate))
        for order, task in enumerate(tasks)
        for replicate, data in parts_of(task, settings.replicates, settings.train.seed)
    )
    weights = open_checkpoint(base.source)
    problems, finished = [], set()
    for start in starts:
        if not (start.directory / RECORD).is_file():
            continue
        record: WarmStartFile = read_artefact(start.directory / RECORD, WarmStartFile)
        differences = _differences(record, start, base, weights, settings)
        problems += [f"{start.label}: {one}" for one in differences]
        if not differences:
            finished.add(start.label)
    if problems:
        raise UserError(
            f"{out / FOLDER}: holds warm starts that were made otherwise; name another --out, or remove them:\n"
            + listing(problems)
        )
    return WarmStartPlan(base, weights, settings, starts, frozenset(finished))


def _differences(
    record: WarmStartFile, start: WarmStart, base: OpenModel, weights: Checkpoint, settings: WarmStartSettings
) -> list[str]:
    """What a finished warm start was made with, where that is not what is asked for now."""
    pairs: list[tuple[str, object, object]] = [
        ("model", record.model.names_sha256[:12], base.identity.names_sha256[:12]),
        ("data", record.data.sha256[:12], start.data.sha256[:12]),
        ("delta_dtype", record.delta_dtype, settings.delta_dtype),
    ]
    pairs += side_by_side(record.settings, settings.recorded())
    told = [f"{name} {then} there, {now} now" for name, then, now in pairs if then != now]
    if record.base_fingerprint != weights.fingerprint:
        told.insert(0, difference(f"weights of {base.source.name}", record.base_fingerprint, weights.fingerprint))
    return told


def run_warm_starts(plan: WarmStartPlan, reporter: Reporter) -> tuple[DeltaStore, ...]:
    """Make those that are not finished, one after another, each from the base. The first of several processes gets the
    deltas, the others nothing.

    Raises:
        UserError: a loss that is not finite (with step and examples), a full disk; what was finished stays.
    """
    for start in plan.starts:
        if start.label in plan.finished:
            reporter.note(f"{start.label}: warm-started before, {start.directory}")
        else:
            for note in start.data.notes if is_first_rank() else ():
                reporter.note(f"{start.label}: {note}")
            _warm_start(plan, start, reporter)
    if not is_first_rank():
        return ()  # the first one may still be writing
    return tuple(DeltaStore.open(start.directory) for start in plan.starts)


def _warm_start(plan: WarmStartPlan, start: WarmStart, reporter: Reporter) -> None:
    directory = prepare_directory(start.directory)
    if is_first_rank():
        remove_leftovers(directory)
    base, writer = _BaseValues(plan), ShardWriter(directory, dtype=getattr(torch, plan.settings.delta_dtype))
    with ExitStack() as stack:
        models = None
        if plan.settings.keep_models:
            opened = OpenedBase(plan.base.source)
            models = stack.enter_context(_model_writer(opened, directory / MODEL))

        def keep(values: Iterator[tuple[str, Tensor]]) -> None:
            for name, value in values:
                writer.add(name, value - base.value(name))
                if models is not None:
                    models.add(name, value)
            writer.finish()  # the last checkpoint goes when this returns: then all must be on the disk
            if models is not None:
                for name in opened.buffers:
                    models.add_blocks(name, opened.chunks(name))
                models.finish()

        result = train(
            BaseModel(plan.base.source), start.data, plan.settings.train, directory=directory, finish=keep,
            reporter=reporter, label=start.label,
        )  # fmt: skip
    if is_first_rank():
        _finish(plan, start, writer.finish(), result)


def _model_writer(base: OpenedBase, directory: Path) -> ModelWriter:
    """For a warm-started model as a directory that `from_pretrained` loads, in float32."""
    specs = specs_of(base, dict.fromkeys(base.inventory.shapes, torch.float32))
    return ModelWriter(base.source, base.config, specs, directory, model=base.meta_model, replace=True)


@dataclass
class _BaseValues:
    """The base's parameters, read again one at a time: a second copy is never whole in memory."""

    plan: WarmStartPlan

    def __post_init__(self) -> None:
        self.model = build_meta_model(self.plan.base.config)
        self.shapes = self.plan.base.anatomy.inventory.shapes

    def value(self, name: str) -> Tensor:
        shape = self.shapes[name]
        value = torch.empty(numel(shape))
        start = 0
        for chunk in self.plan.weights.chunks(self.model, name, shape):
            value[start : start + len(chunk)] = chunk
            start += len(chunk)
        return value.view(shape)


def _finish(plan: WarmStartPlan, start: WarmStart, shards: dict[str, str], result: TrainResult) -> None:
    data = start.data
    record = WarmStartFile(
        task=data.task,
        order=start.order,
        replicate=start.replicate,
        model=plan.base.identity,
        base_fingerprint=plan.weights.fingerprint,
        data=DataRecord(
            sha256=data.sha256,
            num_records=data.num_records,
            num_examples=len(data.examples),
            num_cut=data.num_cut,
            num_left_out=data.num_left_out,
            num_tokens=sum(len(example.input_ids) for example in data.examples),
            num_supervised=sum(example.num_supervised for example in data.examples),
            template=data.template,
            max_length=plan.settings.max_length,
        ),
        settings=plan.settings.recorded(),
        delta_dtype=plan.settings.delta_dtype,
        shards=shards,
        fingerprint=fingerprint_of(shards),
        num_steps=result.steps,
        losses=result.losses,
        libraries=library_versions(),
    )
    write_text(start.directory / RECORD, to_json(record))


def finished_stores(out: Path) -> tuple[DeltaStore, ...]:
    """The finished warm starts in a run's directory, in the order of `tasks.yaml`.

    Raises:
        ArtefactError: there are none.
    """
    found = [*(out / FOLDER).glob(f"*/{RECORD}"), *(out / FOLDER).glob(f"*/*/{RECORD}")]
    if not found:
        raise ArtefactError(
            f"{out}: holds no finished warm start ({FOLDER}/TASK/{RECORD}); run trace-transfer warm-start first, or "
            "give fine-tuned models with --tuned"
        )
    stores = [DeltaStore.open(file.parent) for file in found]
    return tuple(sorted(stores, key=lambda s: (s.record.order, s.record.task, s.record.replicate or 0)))
