"""What `train` will do: which stage trains what on which examples, with how much memory, and what is finished.

Reads: a base model's config and headers, `stream.yaml`, its data and core files; what an earlier run left. Loads no
weights and writes nothing, so that whatever can be refused is refused here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from trace_transfer.core_sets.masks import Mask
from trace_transfer.data.encoding import encode_tasks
from trace_transfer.data.examples import TaskData
from trace_transfer.engine.adapters import AdaptedModel
from trace_transfer.engine.engine import resolve_precision
from trace_transfer.engine.estimates import Estimate, estimate
from trace_transfer.engine.held_out import HeldOut
from trace_transfer.engine.loading import BaseModel, StartingPoint
from trace_transfer.engine.loop import require_usable
from trace_transfer.engine.optimizers import Described, require_known
from trace_transfer.errors import UserError, listing
from trace_transfer.families.model_handle import OpenModel, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.files import prepare_directory, refuse_inputs, sha256_file
from trace_transfer.launching import place_among_ranks
from trace_transfer.models.checkpoints import open_checkpoint
from trace_transfer.models.content import difference
from trace_transfer.models.tensors import dtype_name
from trace_transfer.patch.model_state import ModelState
from trace_transfer.publish.model_card import CoreOrigin
from trace_transfer.records import read_artefact
from trace_transfer.settings import side_by_side
from trace_transfer.training.held_out import hold_out
from trace_transfer.training.methods import Stage, read_cores, stages_of
from trace_transfer.training.records import StageRecord, StreamFile
from trace_transfer.training.settings import StreamSettings, core_file, load_stream

RECORD, FOLDER, MODEL = "stream.json", "stages", "model"


@dataclass(frozen=True)
class StreamPlan:
    """All that can be known, and refused, before a weight is loaded.

    `origins` says where each task's core set came from, `datasets` which of the hub's data sets are trained on, `held`
    what is held out of each task.
    """

    base: OpenModel
    settings: StreamSettings
    stages: tuple[Stage, ...]
    fingerprint: str
    config_sha256: str
    num_ranks: int
    out: Path
    origins: Mapping[str, CoreOrigin]
    datasets: tuple[str, ...]
    held: Mapping[str, TaskData]
    finished: tuple[StageRecord, ...] = ()
    complete: bool = False

    def held_out(self, number: int) -> HeldOut | None:
        """What a stage is evaluated on: what is held out of its tasks."""
        settings, tasks = self.settings, tuple(self.held[t] for t in self.stages[number].tasks if t in self.held)
        return HeldOut(tasks, settings.eval_every, settings.patience, settings.keep_best) if tasks else None

    def directory(self, number: int) -> Path:
        """Of one stage, counted from 0, alone."""
        return self.out / FOLDER / f"{number + 1}-{self.stages[number].label}"

    def patch(self, number: int) -> Path:
        return self.out / f"{self.stages[number].label}.patch.safetensors"

    def adapter(self, number: int) -> Path:
        return self.out / f"{self.stages[number].label}.adapter"

    @property
    def model(self) -> Path:
        """The tuned model's directory."""
        return self.out / MODEL

    @property
    def precision(self) -> str:
        """`float32` or `bfloat16`, as resolved on this machine."""
        return dtype_name(resolve_precision(self.settings.train))

    def adapted(self, number: int, start: StartingPoint, carried: Path | None = None) -> AdaptedModel:
        """A stage's adapters; each stage that begins new ones draws others."""
        settings = self.settings
        return AdaptedModel(start, settings.lora_rank, settings.lora_alpha, settings.train.seed + number, carried)

    @cached_property
    def adapters(self) -> AdaptedModel | None:
        """Of the first stage, where adapters are trained."""
        return self.adapted(0, BaseModel(self.base.source)) if self.settings.method == "lora" else None

    def trained(self, number: int) -> Mask:
        """What a stage trains, by the names that it has while it is trained."""
        return self.adapters.mask if self.adapters else self.stages[number].mask

    def mask(self, number: int) -> Mask:
        """What a stage changes, by the names of the base: with adapters, the weights that they are merged into."""
        if self.adapters is None:
            return self.stages[number].mask
        return Mask(dict.fromkeys(map(self.adapters.beside, self.adapters.shapes)))

    def estimate(self, number: int) -> Estimate:
        """Memory and disk of a stage."""
        state, mask = ModelState(self.base.source), self.mask(number)
        stored = max(state.dtype(name).itemsize for name in mask.parts)
        return estimate(
            self.base.anatomy, mask, self.settings.train, self.stages[number].data, num_ranks=self.num_ranks,
            precision=self.precision, describe=self.describe, stored_itemsize=stored,
            saved_itemsize=4 if self.settings.save_dtype == "float32" else stored,
            adapters=self.adapters.shapes if self.adapters else None,
        )  # fmt: skip

    def describe(self, name: str) -> Described:
        """What is trained by a name: the model's own name of a tensor, or of that beside which an adapter stands."""
        return self.base.anatomy.describe(self.adapters.beside(name) if self.adapters else name)


def plan_stream(
    base: str | Path, stream: str | Path, *, settings: StreamSettings, rules: Sequence[str], out: str | Path,
    num_ranks: int | None = None,
) -> StreamPlan:  # fmt: skip
    """Open the model, read stream, core files and examples, look what is finished; loads no weights, writes nothing.

    Args:
        num_ranks: processes that will train together; default is those that a launcher has started.

    Raises:
        UserError: whatever is wrong with them, or `out` holds another stream, or something of them that would be
            replaced.
    """
    num_ranks = place_among_ranks().size if num_ranks is None else num_ranks
    out, directory = Path(out), Path(stream).parent
    _require_divisible(settings, num_ranks)
    require_usable(settings.train, num_ranks)
    opened = open_model(base, load_families([Path(path) for path in rules]))
    require_known(settings.train, opened.anatomy)
    tasks = load_stream(stream)
    refuse_inputs([out, out / MODEL, out / RECORD], [base, stream])
    cores = read_cores(tasks, directory) if settings.needs_core else {}
    data = encode_tasks(opened, tasks, directory, settings.max_length, settings.too_long, settings.train.seed)
    data, held = hold_out(opened, tasks, data, directory, settings)
    stages = stages_of(settings, data, cores, opened.anatomy)
    weights = open_checkpoint(opened.source)
    files = {task.name: file for task in tasks if (file := core_file(task, directory)) and task.name in cores}
    plan = StreamPlan(
        opened, settings, stages, weights.fingerprint, weights.config_sha256, num_ranks, out,
        origins={name: CoreOrigin.of(cores[name], file) for name, file in files.items()},
        datasets=tuple(sorted({task.data for task in tasks if task.builder is None})), held=held,
    )  # fmt: skip
    names = {name for stage in stages for name in stage.mask.parts}
    ModelState(opened.source).require_readable(names)  # fused when loaded: could be trained, but not saved
    return _with_finished(plan)


def _require_divisible(settings: StreamSettings, num_ranks: int) -> None:
    train = settings.train
    at_once = train.micro_batch_size * num_ranks
    if train.batch_size % at_once:
        fitting = [n for n in range(1, train.batch_size // num_ranks + 1) if train.batch_size % (n * num_ranks) == 0]
        hint = (
            f"a micro_batch_size of {', '.join(map(str, fitting[-4:]))} does" if fitting else "no micro_batch_size does"
        )
        raise UserError(
            f"batch_size {train.batch_size} is not a multiple of micro_batch_size {train.micro_batch_size} x "
            f"{num_ranks} processes = {at_once}; {hint}"
        )


def _with_finished(plan: StreamPlan) -> StreamPlan:
    """Which stages an earlier run has finished."""
    if not (plan.out / RECORD).is_file():
        return plan
    record: StreamFile = read_artefact(plan.out / RECORD, StreamFile)
    pairs: list[tuple[str, object, object]] = [
        ("model", record.model.names_sha256[:12], plan.base.identity.names_sha256[:12]),
        ("number of stages", record.num_stages, len(plan.stages)),
        *side_by_side(record.settings, plan.settings.recorded()),
    ]
    for number, (then, now) in enumerate(zip(record.stages, plan.stages, strict=False)):
        held, stage = plan.held_out(number), f"stage {number + 1}"
        pairs += [
            (stage, then.label, now.label),
            (f"{stage}: data", then.data_sha256[:12], now.data.sha256[:12]),
            (f"{stage}: core set", then.mask_sha256[:12], plan.trained(number).sha256[:12]),
            (f"{stage}: held-out records", then.held_out_sha256, held.sha256 if held else None),
        ]
    problems = [f"{what}: {then} there, {now} now" for what, then, now in pairs if then != now]
    for what, before, after in (
        ("weights", record.base_fingerprint, plan.fingerprint), ("config", record.config_sha256, plan.config_sha256),
    ):  # fmt: skip
        if before not in (None, after):  # None of earlier versions
            problems.insert(0, difference(f"{what} of {plan.base.source.name}", before, after))
    if problems:
        raise UserError(f"{plan.out}: holds another stream; name another --out, or remove it:\n" + listing(problems))
    files = [(plan.out / stage.patch, stage.patch_sha256) for stage in record.stages]
    damaged = [f"{file.name}: missing" for file, _ in files if not file.is_file()]
    damaged += [f"{file.name}: damaged" for file, sha256 in files if file.is_file() and sha256_file(file) != sha256]
    if damaged:
        raise UserError(
            f"{plan.out}: patches of finished stages cannot be used; remove {RECORD} to train them again:\n"
            + listing(damaged)
        )
    return replace(plan, finished=record.stages, complete=record.complete)


def needed_space(plan: StreamPlan) -> int:
    """Bytes that the stages still to be trained will write: patches, checkpoints and their successor, the model."""
    base, train = ModelState(plan.base.source), plan.settings.train
    model = sum(base.spec(name).num_bytes for name in base.shapes)
    left = [plan.estimate(number) for number in range(len(plan.finished), len(plan.stages))]
    checkpoint = max((one.checkpoint for one in left), default=0)
    kept = checkpoint * (train.keep_checkpoints + 1 + plan.settings.keep_best)
    return sum(one.patch for one in left) + kept + model


def require_space(plan: StreamPlan) -> None:
    """Refuse to begin what the disk cannot hold."""
    needed, free = needed_space(plan), shutil.disk_usage(prepare_directory(plan.out)).free
    if free < needed and not plan.complete:
        raise UserError(
            f"{plan.out}: {free:,} bytes are free, but patches, checkpoints and the tuned model need about {needed:,}; "
            "make room, or name another --out"
        )
