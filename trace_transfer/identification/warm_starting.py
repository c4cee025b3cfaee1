"""Warm starts: one epoch of full fine-tuning from the base for each task; the delta is kept.

Reads: a base model, the examples of each task. Writes a directory for each warm start: the delta in safetensors shards,
`loss.csv`, and last `warm_start.json`, which says that all is there. Until then `checkpoint/` holds what is needed to
go on after an interruption.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trace_transfer.data.encoding import halves, read_tasks
from trace_transfer.data.examples import TaskData
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.loop import TrainResult, require_usable, train
from trace_transfer.engine.optimizers import require_known
from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import prepare_directory, remove_leftovers, write_text
from trace_transfer.identification.deltas import RECORD, DeltaStore, ShardWriter, fingerprint_of
from trace_transfer.identification.records import DataRecord, WarmStartFile, label_of
from trace_transfer.identification.settings import WarmStartSettings
from trace_transfer.launching import is_first_rank, place_among_ranks
from trace_transfer.models.checkpoints import Checkpoint, OpenedBase, open_checkpoint, specs_of
from trace_transfer.models.content import difference
from trace_transfer.models.model_directory import ModelWriter
from trace_transfer.models.sources import build_meta_model, numel
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions, read_artefact, to_json
from trace_transfer.settings import side_by_side
from trace_transfer.stopping import StopSignal, stop_on_sigterm

FOLDER, MODEL = "warm_start", "model"
BYTES = {"float32": 4, "bfloat16": 2}


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
    out: Path


def parts_of(task: TaskData, num_replicates: int, seed: int) -> Iterator[tuple[int | None, TaskData]]:
    """The whole task as replicate None, or its two halves as replicates 1 and 2."""
    if num_replicates == 1:
        yield None, task
    else:
        yield from enumerate(halves(task, seed), start=1)


def plan_warm_starts(
    base: OpenModel, tasks: Sequence[TaskData], settings: WarmStartSettings, out: Path
) -> WarmStartPlan:
    """Lay out all warm starts and look which are finished; reads headers only, writes nothing.

    Raises:
        UserError: settings that cannot be used; `out` holds warm starts made otherwise: tells what differs.
    """
    require_usable(settings.train, place_among_ranks().size)
    require_known(settings.train, base.anatomy)
    starts = tuple(
        WarmStart(data, order, replicate, out / FOLDER / label_of(data.task, replicate))
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
    return WarmStartPlan(base, weights, settings, starts, frozenset(finished), out)


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
    if record.config_sha256 not in (None, weights.config_sha256):  # None of earlier versions
        told.insert(0, difference(f"config of {base.source.name}", record.config_sha256, weights.config_sha256))
    return told


def run_warm_starts(plan: WarmStartPlan, reporter: Reporter) -> tuple[DeltaStore, ...]:
    """Make those that are not finished, one after another, each from the base. The first of several processes gets the
    deltas, the others nothing.

    Raises:
        UserError: a loss that is not finite (with step and examples), or too little room on the disk; what was finished
            stays.
        StopRequested: SIGTERM came; the training at work has saved where it is.
    """
    if plan.starts:
        _require_space(plan)
    with stop_on_sigterm() as stop:
        for start in plan.starts:
            if start.label in plan.finished:
                reporter.note(f"{start.label}: warm-started before, {start.directory}")
            else:
                for note in start.data.notes if is_first_rank() else ():
                    reporter.note(f"{start.label}: {note}")
                _warm_start(plan, start, reporter, stop)
    if not is_first_rank():
        return ()  # the first one may still be writing
    return tuple(DeltaStore.open(start.directory) for start in plan.starts)


def _require_space(plan: WarmStartPlan) -> None:
    """Refuse to begin what the disk cannot hold."""
    width = BYTES[plan.settings.delta_dtype]
    missing = len(plan.starts) - len(plan.finished)
    needed = missing * width * plan.base.identity.num_elements
    free = shutil.disk_usage(plan.out).free
    if free < needed:
        raise UserError(
            f"{plan.out}: {free:,} bytes are free, but the deltas of {missing} warm starts need {needed:,}; make room, "
            "or name another --out" + (" (--delta-dtype bfloat16 needs half)" if width == 4 else "")
        )


def _warm_start(plan: WarmStartPlan, start: WarmStart, reporter: Reporter, stop: StopSignal) -> None:
    directory = prepare_directory(start.directory)
    if is_first_rank():
        remove_leftovers(directory)
    base, writer = _base_values(plan), ShardWriter(directory, getattr(torch, plan.settings.delta_dtype))
    with ExitStack() as stack:
        models = None
        if plan.settings.keep_models:
            opened = OpenedBase(plan.base.source)
            specs = specs_of(opened, dict.fromkeys(opened.inventory.shapes, torch.float32))
            models = stack.enter_context(
                ModelWriter(
                    opened.source, opened.config, specs, directory / MODEL, model=opened.meta_model, replace=True
                )
            )

        def keep(values: Iterator[tuple[str, Tensor]]) -> None:
            for name, value in values:
                writer.add(name, value - base(name))
                if models is not None:
                    models.add(name, value)
            writer.flush()  # the last checkpoint goes when this returns: then all must be on the disk
            if models is not None:
                for name in opened.buffers:
                    models.add_blocks(name, opened.chunks(name))
                models.finish()

        result = train(
            BaseModel(plan.base.source), start.data, plan.settings.train, directory=directory, finish=keep, stop=stop,
            describe=plan.base.anatomy.describe, reporter=reporter, label=start.label,
        )  # fmt: skip
    if is_first_rank():
        _finish(plan, start, writer.shards, result)


def _base_values(plan: WarmStartPlan) -> Callable[[str], Tensor]:
    """Reads the base's tensors again one at a time: a second copy is never whole in memory."""
    model = build_meta_model(plan.base.config)

    def value(name: str) -> Tensor:
        shape = plan.base.anatomy.inventory.shapes[name]
        flat, start = torch.empty(numel(shape)), 0
        for chunk in plan.weights.chunks(model, name, shape):
            flat[start : start + len(chunk)] = chunk
            start += len(chunk)
        return flat.view(shape)

    return value


def _finish(plan: WarmStartPlan, start: WarmStart, shards: dict[str, str], result: TrainResult) -> None:
    data = start.data
    record = WarmStartFile(
        task=data.task,
        order=start.order,
        replicate=start.replicate,
        model=plan.base.identity,
        base_fingerprint=plan.weights.fingerprint,
        config_sha256=plan.weights.config_sha256,
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


def data_of_stores(base: OpenModel, stores: Sequence[DeltaStore], tasks: str | Path) -> dict[str, TaskData]:
    """The examples that warm starts were made with, encoded again; label (`math`, `math/1`) → examples.

    Raises:
        UserError: they are others now.
    """
    made_with = stores[0].record.settings
    whole = read_tasks(base, tasks, made_with["max_length"], made_with["too_long"], made_with["seed"])
    parts = {
        label_of(task.task, replicate): data
        for task in whole
        for replicate, data in parts_of(task, made_with["replicates"], made_with["seed"])
    }
    problems = []
    for record in (store.record for store in stores):
        label = label_of(record.task, record.replicate)
        if label not in parts:
            problems.append(f"{label}: not in {tasks}")
        elif parts[label].sha256 != record.data.sha256:
            problems.append(f"{label}: other examples in {tasks} than it was warm-started with")
    if problems:
        raise UserError("tasks and warm starts do not belong together:\n" + listing(problems))
    return parts
