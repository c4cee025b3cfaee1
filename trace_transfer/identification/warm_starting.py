"""Warm starts: one epoch of full fine-tuning from the base for each task; the delta is kept.

Writes a directory for each: the delta in safetensors shards, `loss.csv`, and last `warm_start.json`, which says that
all is there. Until then `checkpoint/` holds what is needed to go on after an interruption.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trace_transfer.core_sets.masks import Mask
from trace_transfer.data.encoding import halves, read_tasks
from trace_transfer.data.examples import TaskData
from trace_transfer.engine.batches import HeldOut
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.loop import require_usable, train
from trace_transfer.engine.optimizers import require_known
from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import prepare_directory, remove_leftovers, write_text
from trace_transfer.identification.deltas import RECORD, DeltaStore, ShardWriter
from trace_transfer.identification.records import DataRecord, WarmStartFile, label_of
from trace_transfer.identification.settings import WarmStartSettings
from trace_transfer.launching import is_first_rank, place_among_ranks
from trace_transfer.models.checkpoints import OpenedBase, specs_of
from trace_transfer.models.model_directory import write_model_directory
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions, read_artefact, to_json
from trace_transfer.settings import side_by_side
from trace_transfer.stopping import StopSignal, stop_on_sigterm

FOLDER, MODEL = "warm_start", "model"


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
    base: OpenModel
    opened: OpenedBase
    settings: WarmStartSettings
    starts: tuple[WarmStart, ...]
    finished: frozenset[str]
    out: Path

    @property
    def num_missing(self) -> int:
        return len(self.starts) - len(self.finished)

    @property
    def num_bytes(self) -> int:
        dtype: torch.dtype = getattr(torch, self.settings.delta_dtype)
        return self.num_missing * dtype.itemsize * self.base.identity.num_elements


def parts_of(task: TaskData, num_replicates: int, seed: int) -> Iterator[tuple[int | None, TaskData]]:
    """The whole task as replicate None, or its two halves as replicates 1 and 2."""
    if num_replicates == 1:
        yield None, task
    else:
        yield from enumerate(halves(task, seed), start=1)


def plan_warm_starts(
    base: OpenModel, tasks: Sequence[TaskData], settings: WarmStartSettings, out: Path
) -> WarmStartPlan:
    """Lay out all warm starts; refuses settings that cannot be used, and an `out` with warm starts made otherwise."""
    require_usable(settings.train, place_among_ranks().size)
    require_known(settings.train, base.anatomy)
    starts = tuple(
        WarmStart(data, order, replicate, out / FOLDER / label_of(data.task, replicate))
        for order, task in enumerate(tasks)
        for replicate, data in parts_of(task, settings.replicates, settings.train.seed)
    )
    plan = WarmStartPlan(base, OpenedBase(base.source), settings, starts, frozenset(), out)
    differences = {
        start.label: _differences(read_artefact(start.directory / RECORD, WarmStartFile), start, plan)
        for start in starts
        if (start.directory / RECORD).is_file()
    }
    if problems := [f"{label}: {one}" for label, found in differences.items() for one in found]:
        told = f"{out / FOLDER}: holds warm starts that were made otherwise; name another --out, or remove them"
        raise UserError(f"{told}:\n{listing(problems)}")
    return replace(plan, finished=frozenset(differences))


def _differences(record: WarmStartFile, start: WarmStart, plan: WarmStartPlan) -> list[str]:
    name, weights, settings = plan.base.source.name, plan.opened.weights, plan.settings
    config = record.config_sha256 or weights.config_sha256  # None of earlier versions
    pairs: list[tuple[str, Any, Any]] = [
        (f"config of {name}", config[:12], weights.config_sha256[:12]),
        (f"weights of {name}", record.base_fingerprint[:12], weights.fingerprint[:12]),
        ("model", record.model.names_sha256[:12], plan.base.identity.names_sha256[:12]),
        ("data", record.data.sha256[:12], start.data.sha256[:12]),
        ("delta_dtype", record.delta_dtype, settings.delta_dtype),
        *side_by_side(record.settings, settings.recorded()),
    ]
    return [f"{what} {then} there, {now} now" for what, then, now in pairs if then != now]


def run_warm_starts(plan: WarmStartPlan, reporter: Reporter) -> tuple[DeltaStore, ...]:
    """Make those that are not finished, one after another, each from the base. The first of several processes gets the
    deltas, the others nothing. After an error or SIGTERM what was finished stays."""
    if plan.num_missing and (free := shutil.disk_usage(plan.out).free) < plan.num_bytes:
        raise UserError(
            f"{plan.out}: {free:,} bytes are free, but the deltas of {plan.num_missing} warm starts need "
            f"{plan.num_bytes:,}; make room, or name another --out"
        )
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


def _warm_start(plan: WarmStartPlan, start: WarmStart, reporter: Reporter, stop: StopSignal) -> None:
    directory, opened = prepare_directory(start.directory), plan.opened
    if is_first_rank():
        remove_leftovers(directory)
    writer = ShardWriter(directory, getattr(torch, plan.settings.delta_dtype))

    def kept(values: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Iterable[Tensor]]]:
        for name, value in values:
            # The base's tensors are read again one at a time: a second copy is never whole in memory.
            before = torch.cat([chunk.float() for chunk in opened.chunks(name)])
            writer.add(name, value - before.view(value.shape))
            yield name, (value.flatten(),)
        yield from ((name, opened.chunks(name)) for name in opened.buffers)

    def keep(values: Iterator[tuple[str, Tensor]]) -> None:
        if plan.settings.keep_models:
            specs = specs_of(opened, dict.fromkeys(opened.inventory.shapes, torch.float32))
            write_model_directory(
                opened.source, opened.config, specs, kept(values), directory / MODEL, model=opened.meta_model,
                replace=True,
            )  # fmt: skip
        else:
            deque(kept(values), maxlen=0)
        writer.flush()  # the last checkpoint goes when this returns: then all must be on the disk

    result = train(
        BaseModel(opened.source), start.data, plan.settings.train, Mask.everything(opened.inventory.shapes),
        HeldOut(()), directory=directory, finish=keep, stop=stop, describe=plan.base.anatomy.describe,
        reporter=reporter, label=start.label,
    )  # fmt: skip
    if not is_first_rank():
        return
    data, examples = start.data, start.data.examples
    of_data = DataRecord(
        sha256=data.sha256, num_records=data.num_records, num_examples=len(examples), num_cut=data.num_cut,
        num_left_out=data.num_left_out, num_tokens=sum(len(one.input_ids) for one in examples),
        num_supervised=sum(one.num_supervised for one in examples), template=data.template,
        max_length=plan.settings.max_length,
    )  # fmt: skip
    record = WarmStartFile(
        task=data.task, order=start.order, replicate=start.replicate, model=plan.base.identity,
        base_fingerprint=opened.weights.fingerprint, config_sha256=opened.weights.config_sha256, data=of_data,
        settings=plan.settings.recorded(), delta_dtype=plan.settings.delta_dtype, shards=writer.shards,
        fingerprint=writer.fingerprint, num_steps=len(result.steps), losses=result.losses, libraries=library_versions(),
    )  # fmt: skip
    write_text(start.directory / RECORD, to_json(record))


def finished_stores(out: Path) -> tuple[DeltaStore, ...]:
    found = [*(out / FOLDER).glob(f"*/{RECORD}"), *(out / FOLDER).glob(f"*/*/{RECORD}")]
    if not found:
        raise ArtefactError(f"{out}: holds no finished warm start; run warm-start first, or give models with --tuned")
    stores = [DeltaStore.open(file.parent) for file in found]
    return tuple(sorted(stores, key=lambda one: (one.record.order, one.record.task, one.record.replicate or 0)))


def data_of_stores(base: OpenModel, stores: Sequence[DeltaStore], tasks: str | Path) -> dict[str, TaskData]:
    """The examples that warm starts were made with, encoded again; label (`math`, `math/1`) → examples."""
    made_with = stores[0].record.settings
    whole = read_tasks(base, tasks, made_with["max_length"], made_with["too_long"], made_with["seed"])
    parts = {
        label_of(task.task, replicate): data
        for task in whole
        for replicate, data in parts_of(task, made_with["replicates"], made_with["seed"])
    }
    made_of = {label_of(store.record.task, store.record.replicate): store.record.data.sha256 for store in stores}
    problems = [
        f"{label}: other examples in {tasks} than it was warm-started with, or none"
        for label, sha256 in made_of.items()
        if label not in parts or parts[label].sha256 != sha256
    ]
    if problems:
        raise UserError("tasks and warm starts do not belong together:\n" + listing(problems))
    return parts
