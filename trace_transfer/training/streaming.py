"""`train`: a stream of tasks, stage after stage, from a base model to its patches and the tuned model.

A plan says what each stage will train on which examples, with how much memory, and what is finished: it loads no
weights and writes nothing, so that whatever can be refused is refused there.

Reads: a base model, `stream.yaml`, its data and core files. Writes into one directory: `stages/N-LABEL/` (loss.csv, and
checkpoints while it runs), `LABEL.patch.safetensors` after each stage, `stream.json`, which says what is finished, and
at the end `model/` (with its card) and `verification.json`. Stopped anywhere, the same call goes on from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import or_
from pathlib import Path

from trace_transfer.core_sets.masks import Mask
from trace_transfer.data.encoding import encode_tasks
from trace_transfer.data.examples import TaskData
from trace_transfer.data.tasks_file import locate
from trace_transfer.engine import checkpointing
from trace_transfer.engine.adapters import AdaptedModel
from trace_transfer.engine.batches import HeldOut
from trace_transfer.engine.engine import resolve_precision
from trace_transfer.engine.estimates import Estimate, estimate
from trace_transfer.engine.loading import BaseModel, StartingPoint, Values
from trace_transfer.engine.loop import require_usable, train
from trace_transfer.engine.optimizers import Described, require_known
from trace_transfer.errors import UserError, listing
from trace_transfer.families.model_handle import OpenModel, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.files import held, prepare_directory, refuse_inputs, remove_leftovers, sha256_file, write_text
from trace_transfer.launching import is_first_rank, place_among_ranks
from trace_transfer.models.sources import ModelSource
from trace_transfer.models.tensors import dtype_name
from trace_transfer.patch.model_state import ModelState, PatchedModel, record_patch, write_model
from trace_transfer.patch.patches import Patch
from trace_transfer.patch.patching import require_frozen, verify
from trace_transfer.patch.records import Verification
from trace_transfer.progress import Reporter
from trace_transfer.publish.model_card import CARD, CoreOrigin, trained_card
from trace_transfer.records import library_versions, read_artefact, to_json
from trace_transfer.settings import side_by_side
from trace_transfer.stopping import StopSignal
from trace_transfer.training.methods import NEED_CORE, Stage, hold_out, read_cores, stages_of
from trace_transfer.training.settings import EvaluationRecord, StageRecord, StreamFile, StreamSettings, load_stream

RECORD, FOLDER, MODEL, VERIFICATION = "stream.json", "stages", "model", "verification.json"


@dataclass(frozen=True)
class StreamPlan:
    """All that can be known, and refused, before a weight is loaded. `state` is the base without patches, `origins`
    where each task's core set came from, `datasets` which of the hub's data sets are trained on."""

    base: OpenModel
    state: ModelState
    settings: StreamSettings
    stages: tuple[Stage, ...]
    num_ranks: int
    out: Path
    origins: Mapping[str, CoreOrigin]
    datasets: tuple[str, ...]
    held: Mapping[str, TaskData]
    finished: tuple[StageRecord, ...] = ()
    complete: bool = False

    def held_out(self, number: int) -> HeldOut:
        settings, tasks = self.settings, tuple(self.held[t] for t in self.stages[number].tasks if t in self.held)
        return HeldOut(tasks, settings.eval_every, settings.patience, settings.keep_best)

    def directory(self, number: int) -> Path:
        return self.out / FOLDER / f"{number + 1}-{self.stages[number].label}"

    def patch(self, number: int) -> Path:
        return self.out / f"{self.stages[number].label}.patch.safetensors"

    def adapter(self, number: int) -> Path:
        return self.out / f"{self.stages[number].label}.adapter"

    @property
    def precision(self) -> str:
        return dtype_name(resolve_precision(self.settings.train))

    def adapted(self, number: int, start: StartingPoint, carried: Path | None = None) -> AdaptedModel:
        settings, seed = self.settings, self.settings.train.seed + number  # each stage draws others
        return AdaptedModel(start, settings.lora_rank, settings.lora_alpha, seed, carried)

    @cached_property
    def adapters(self) -> AdaptedModel | None:
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
        mask = self.mask(number)
        stored = max(self.state.dtype(name).itemsize for name in mask.parts)
        saved = 4 if self.settings.save_dtype == "float32" else stored
        return estimate(
            self.base.anatomy, mask, self.settings.train, self.stages[number].data, num_ranks=self.num_ranks,
            precision=self.precision, describe=self.describe, patch_itemsize=stored + saved,
            adapters=self.adapters.shapes if self.adapters else None,
        )  # fmt: skip

    def describe(self, name: str) -> Described:
        """What is trained by a name: the model's own name of a tensor, or of that beside which an adapter stands."""
        return self.base.anatomy.describe(self.adapters.beside(name) if self.adapters else name)


def plan_stream(
    base: str | Path, stream: str | Path, *, settings: StreamSettings, rules: Sequence[str], out: str | Path,
    num_ranks: int | None = None,
) -> StreamPlan:  # fmt: skip
    """All that a stream needs, and what of it is finished; a UserError says what is wrong."""
    num_ranks = place_among_ranks().size if num_ranks is None else num_ranks
    out, directory = Path(out), Path(stream).parent
    require_usable(settings.train, num_ranks)
    opened = open_model(base, load_families([Path(path) for path in rules]))
    require_known(settings.train, opened.anatomy)
    tasks = load_stream(stream)
    refuse_inputs([out, out / MODEL, out / RECORD], [base, stream])
    cores = read_cores(tasks, directory) if settings.method in NEED_CORE else {}
    data = encode_tasks(opened, tasks, directory, settings.max_length, settings.too_long, settings.train.seed)
    data, held = hold_out(opened, tasks, data, directory, settings)
    stages = stages_of(settings, data, cores, opened.anatomy)
    files = {task.name: locate(task.core, directory) for task in tasks if task.core and task.name in cores}
    plan = StreamPlan(
        opened, ModelState(opened.source), settings, stages, num_ranks, out,
        origins={name: CoreOrigin(cores[name], sha256_file(file)) for name, file in files.items()},
        datasets=tuple(sorted({task.data for task in tasks if task.builder is None})), held=held,
    )  # fmt: skip
    names = {name for stage in stages for name in stage.mask.parts}
    plan.state.require_readable(names)  # fused when loaded: could be trained, but not saved
    return _with_finished(plan)


def _with_finished(plan: StreamPlan) -> StreamPlan:
    if not (plan.out / RECORD).is_file():
        return plan
    record: StreamFile = read_artefact(plan.out / RECORD, StreamFile)
    weights, name = plan.state.base.weights, plan.base.source.name
    config = record.config_sha256 or weights.config_sha256  # None of earlier versions
    pairs: list[tuple[str, object, object]] = [
        (f"config of {name}", config[:12], weights.config_sha256[:12]),
        (f"weights of {name}", record.base_fingerprint[:12], weights.fingerprint[:12]),
        ("model", record.model.names_sha256[:12], plan.base.identity.names_sha256[:12]),
        ("number of stages", record.num_stages, len(plan.stages)),
        *side_by_side(record.settings, plan.settings.recorded()),
    ]
    for number, (then, now) in enumerate(zip(record.stages, plan.stages, strict=False)):
        stage = f"stage {number + 1}"
        pairs += [
            (stage, then.label, now.label),
            (f"{stage}: data", then.data_sha256[:12], now.data.sha256[:12]),
            (f"{stage}: core set", then.mask_sha256[:12], plan.trained(number).sha256[:12]),
            (f"{stage}: held-out records", then.held_out_sha256, plan.held_out(number).sha256),
        ]
    if problems := [f"{what}: {then} there, {now} now" for what, then, now in pairs if then != now]:
        raise UserError(f"{plan.out}: holds another stream; name another --out, or remove it:\n" + listing(problems))
    for done in record.stages:
        file = plan.out / done.patch
        if not file.is_file() or sha256_file(file) != done.patch_sha256:
            raise UserError(f"{file}: missing or damaged; remove {plan.out / RECORD} to train all stages again")
    return replace(plan, finished=record.stages, complete=record.complete)


def needed_space(plan: StreamPlan) -> int:
    """Bytes that the stages still to be trained will write."""
    base, train = plan.state, plan.settings.train
    model = sum(base.spec(name).num_bytes for name in base.shapes)
    left = [plan.estimate(number) for number in range(len(plan.finished), len(plan.stages))]
    checkpoint = max((one.checkpoint for one in left), default=0)
    kept = checkpoint * (train.keep_checkpoints + 1 + plan.settings.keep_best)
    return sum(one.patch for one in left) + kept + model


@dataclass(frozen=True)
class Streamed:
    record: StreamFile
    verification: Verification
    files: tuple[Path, ...]


def run_stream(plan: StreamPlan, reporter: Reporter, stop: StopSignal) -> Streamed | None:
    """Carry the plan out. Under a launcher all processes take part, and the first one alone gets the result. After an
    error what was finished stays, and the same call goes on.

    Raises:
        StopRequested: SIGTERM came; what was done is saved.
        UserError: another process is at work there, too little room, a loss that is not finite, a full disk.
        FrozenMovedError: something outside the core sets moved.
    """
    needed, free = needed_space(plan), shutil.disk_usage(prepare_directory(plan.out)).free
    if free < needed and not plan.complete:
        told = f"{free:,} bytes are free, but patches, checkpoints and the tuned model need about {needed:,}"
        raise UserError(f"{plan.out}: {told}; make room, or name another --out")
    with held(plan.out, shared=True):
        if is_first_rank():
            remove_leftovers(plan.out)
        for number, stage in enumerate(plan.stages):
            if number < len(plan.finished):
                reporter.note(f"{stage.label}: trained before, {plan.patch(number)}")
                if is_first_rank():
                    checkpointing.remove(plan.directory(number))
            else:
                _train(plan, number, reporter, stop)
            stop.check(f"after stage {number + 1} of {len(plan.stages)}, {stage.label}")
        return _finish(plan, reporter) if is_first_rank() else None


def state_after(plan: StreamPlan, number: int) -> ModelState:
    return replace(plan.state, patches=tuple(Patch.open(plan.patch(before)) for before in range(number)))


def _train(plan: StreamPlan, number: int, reporter: Reporter, stop: StopSignal) -> None:
    stage, settings = plan.stages[number], plan.settings
    for note in (*stage.notes, *stage.data.notes):
        reporter.note(f"{stage.label}: {note}")
    before = state_after(plan, number)
    start: StartingPoint = PatchedModel(before)
    if settings.method == "lora":
        carried = plan.adapter(number - 1) if settings.adapter == "carry" and number else None
        start = plan.adapted(number, start if carried is None else BaseModel(plan.base.source), carried)

    def finish(values: Values) -> None:
        if isinstance(start, AdaptedModel):
            start.write(plan.adapter(number), values)
            under = before if settings.adapter == "merge" else plan.state
            values = start.merged(under.value, plan.adapter(number))
        record_patch(
            plan.patch(number), before, plan.mask(number), values, task=stage.label, method=settings.method,
            save_dtype=settings.save_dtype,
        )  # fmt: skip
        _record(plan, number)

    train(
        start, stage.data, settings.train, plan.trained(number), plan.held_out(number),
        directory=plan.directory(number), finish=finish, describe=plan.describe, stop=stop, reporter=reporter,
        label=stage.label,
    )  # fmt: skip


def _record(plan: StreamPlan, number: int) -> None:
    """Say that a stage is finished, before its checkpoint is removed."""
    stage, file = plan.stages[number], plan.patch(number)
    directory, held = plan.directory(number), plan.held_out(number)
    steps = checkpointing.read_csv(directory / checkpointing.LOSSES)
    evaluations = checkpointing.read_evaluations(directory / checkpointing.EVALUATIONS)
    done = read_artefact(plan.out / RECORD, StreamFile).stages if (plan.out / RECORD).is_file() else ()
    patch = Patch.open(file)
    made = StageRecord(
        label=stage.label, tasks=stage.tasks, patch=file.name, patch_sha256=sha256_file(file),
        adapter=plan.adapter(number).name if plan.settings.method == "lora" else None,
        mask_sha256=plan.trained(number).sha256, num_parameters=len(patch.entries),
        num_elements=patch.num_elements, data_sha256=stage.data.sha256,
        num_examples=len(stage.data.examples), num_steps=len(steps), tokens=sum(step.tokens for step in steps),
        supervised=sum(step.supervised for step in steps), losses=tuple(step.loss for step in steps),
        held_out_sha256=held.sha256, kept_step=held.kept(evaluations),
        evaluations=tuple(EvaluationRecord(step=e.step, losses=dict(e.losses), loss=e.loss) for e in evaluations),
    )  # fmt: skip
    _write_record(plan, (*done[:number], made), complete=False)


def _write_record(plan: StreamPlan, stages: tuple[StageRecord, ...], complete: bool) -> StreamFile:
    weights = plan.state.base.weights
    record = StreamFile(
        model=plan.base.identity, base_fingerprint=weights.fingerprint, config_sha256=weights.config_sha256,
        settings=plan.settings.recorded(), num_stages=len(plan.stages), stages=stages, complete=complete,
        libraries=library_versions(),
    )  # fmt: skip
    write_text(plan.out / RECORD, to_json(record))
    return record


def _finish(plan: StreamPlan, reporter: Reporter) -> Streamed:
    """Write the tuned model, and prove from the disk that nothing else moved."""
    final, directory = state_after(plan, len(plan.stages)), plan.out / MODEL
    if plan.complete and (directory / "config.json").is_file():
        reporter.note(f"{directory}: written before")
    else:
        write_model(final, directory, reporter, replace=True)
    tuned = ModelState(ModelSource.parse(directory))
    found = verify(plan.state, tuned, reduce(or_, (patch.mask for patch in final.patches)), reporter)
    require_frozen(found)
    write_text(plan.out / VERIFICATION, to_json(found))
    record: StreamFile = read_artefact(plan.out / RECORD, StreamFile)
    if not (directory / CARD).is_file():
        shapes = plan.base.anatomy.inventory.shapes
        card = trained_card(plan.base.source, shapes, record, found, plan.origins, plan.datasets)
        write_text(directory / CARD, card)
    record = _write_record(plan, record.stages, complete=True)
    patches = [plan.patch(number) for number in range(len(plan.stages))]
    adapters = [plan.adapter(number) for number in range(len(plan.stages)) if plan.adapter(number).is_dir()]
    return Streamed(record, found, (*patches, *adapters, directory, plan.out / VERIFICATION, plan.out / RECORD))
