"""`train`: a stream of tasks, stage after stage, from a base model to its patches and the tuned model.

Reads: a base model, `stream.yaml`, its data and core files. Writes into one directory: `stages/N-LABEL/` (loss.csv, and
checkpoints while it runs), `LABEL.patch.safetensors` after each stage, `stream.json`, which says what is finished, and
at the end `model/` and `verification.json`. Stopped anywhere, the same call goes on from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from pathlib import Path

from torch import Tensor

from trace_transfer.artefacts import StageRecord, StreamFile, library_versions, read_artefact, to_json
from trace_transfer.artefacts.verification import Verification
from trace_transfer.checkpoints import open_checkpoint
from trace_transfer.errors import UserError, listing
from trace_transfer.files import prepare_directory, remove_leftovers, sha256_file, write_text
from trace_transfer.masks import Mask
from trace_transfer.model_state import ModelState, write_model
from trace_transfer.models import ModelSource, numel
from trace_transfer.patches import Patch
from trace_transfer.progress import Reporter
from trace_transfer.recording import patch_entries, record_patch
from trace_transfer.rules.registry import load_families
from trace_transfer.settings.deepspeed_json import contradictions
from trace_transfer.settings.stream import StreamSettings
from trace_transfer.stages.methods import Stage, read_cores, stages_of
from trace_transfer.stages.opening import OpenModel, open_model
from trace_transfer.stages.task_data import encode_tasks
from trace_transfer.stages.verifying import require_frozen, verify
from trace_transfer.stages.warm_starting import is_first_rank
from trace_transfer.stopping import StopSignal
from trace_transfer.tasks.stream import load_stream
from trace_transfer.training import history, state
from trace_transfer.training.adapters import AdaptedModel, adapted_weights, merged_values
from trace_transfer.training.loading import BaseModel, StartingPoint
from trace_transfer.training.loop import train
from trace_transfer.training.patched import PatchedModel

Values = Iterator[tuple[str, Tensor]]

RECORD, FOLDER, MODEL, VERIFICATION = "stream.json", "stages", "model", "verification.json"


@dataclass(frozen=True)
class StreamPlan:
    """All that can be known, and refused, before a weight is loaded."""

    base: OpenModel
    settings: StreamSettings
    stages: tuple[Stage, ...]
    finished: tuple[StageRecord, ...]
    complete: bool
    fingerprint: str
    num_ranks: int
    out: Path
    adapter_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def directory(self, number: int) -> Path:
        """Of one stage, counted from 0, alone."""
        return self.out / FOLDER / f"{number + 1}-{self.stages[number].label}"

    def patch(self, number: int) -> Path:
        return self.out / f"{self.stages[number].label}.patch.safetensors"

    def adapter(self, number: int) -> Path:
        return self.out / f"{self.stages[number].label}.adapter"


@dataclass(frozen=True)
class Streamed:
    """What a stream left: its record, the proof, and the files."""

    record: StreamFile
    verification: Verification
    files: tuple[Path, ...]


def plan_stream(
    base: str | Path, stream: str | Path, *, settings: StreamSettings, rules: Sequence[str], out: str | Path,
    num_ranks: int = 1,
) -> StreamPlan:  # fmt: skip
    """Open the model, read stream, core files and examples, look what is finished; loads no weights, writes nothing.

    Args:
        num_ranks: processes that will train together.

    Raises:
        UserError: whatever is wrong with them, or `out` holds another stream.
    """
    _require_divisible(settings, num_ranks)
    opened = open_model(base, load_families([Path(path) for path in rules]))
    tasks = load_stream(stream)
    directory = Path(stream).parent
    cores = read_cores(tasks, directory) if settings.needs_core else {}
    data = encode_tasks(opened, tasks, directory, settings.max_length, settings.too_long, settings.train.seed)
    stages = stages_of(settings, data, cores, opened.anatomy)
    fingerprint = open_checkpoint(opened.source).fingerprint
    plan = StreamPlan(opened, settings, stages, (), False, fingerprint, num_ranks, Path(out))
    if settings.method == "lora":
        adapters = _adapted(plan, 0, BaseModel(opened.source), None)
        plan = replace(
            plan, adapter_shapes=adapters.shapes, stages=tuple(replace(stage, mask=adapters.mask) for stage in stages)
        )
    else:
        names = {name for stage in stages for name in stage.mask.parts}
        ModelState(opened.source).require_readable(names)  # fused when loaded: could be trained, but not saved
    return _with_finished(plan)


def _require_divisible(settings: StreamSettings, num_ranks: int) -> None:
    train = settings.train
    at_once = train.micro_batch_size * num_ranks
    problems = []
    if train.batch_size % at_once:
        fitting = [n for n in range(1, train.batch_size // num_ranks + 1) if train.batch_size % (n * num_ranks) == 0]
        hint = (
            f"a micro_batch_size of {', '.join(map(str, fitting[-4:]))} does" if fitting else "no micro_batch_size does"
        )
        problems.append(
            f"batch_size {train.batch_size} is not a multiple of micro_batch_size {train.micro_batch_size} x "
            f"{num_ranks} processes = {at_once}; {hint}"
        )
    problems += contradictions(train.deepspeed, train, num_ranks)
    if problems:
        raise UserError("settings that contradict each other:\n" + listing(problems))


def _with_finished(plan: StreamPlan) -> StreamPlan:
    """Which stages an earlier run has finished.

    Raises:
        UserError: it was another stream, tells what differs; or a patch is gone or damaged.
    """
    if not (plan.out / RECORD).is_file():
        return plan
    record: StreamFile = read_artefact(plan.out / RECORD, StreamFile)
    pairs = [
        ("model", record.model.names_sha256[:12], plan.base.identity.names_sha256[:12]),
        ("weights of the base", record.base_fingerprint[:12], plan.fingerprint[:12]),
        ("number of stages", record.num_stages, len(plan.stages)),
    ]
    wanted = plan.settings.recorded()
    pairs += [
        (key, record.settings.get(key), wanted.get(key)) for key in sorted(record.settings.keys() | wanted.keys())
    ]
    for number, (then, now) in enumerate(zip(record.stages, plan.stages, strict=False), start=1):
        pairs += [
            (f"stage {number}", then.label, now.label),
            (f"stage {number}: data", then.data_sha256[:12], now.data.sha256[:12]),
            (f"stage {number}: core set", then.mask_sha256[:12], now.mask.sha256[:12]),
        ]
    problems = [f"{what}: {then} there, {now} now" for what, then, now in pairs if then != now]
    if problems:
        raise UserError(f"{plan.out}: holds another stream; name another --out, or remove it:\n" + listing(problems))
    damaged = [
        f"{stage.patch}: " + ("damaged" if (plan.out / stage.patch).is_file() else "missing")
        for stage in record.stages
        if not (plan.out / stage.patch).is_file() or sha256_file(plan.out / stage.patch) != stage.patch_sha256
    ]
    if damaged:
        raise UserError(
            f"{plan.out}: patches of finished stages cannot be used; remove {RECORD} to train them again:\n"
            + listing(damaged)
        )
    return replace(plan, finished=record.stages, complete=record.complete)


def run_stream(plan: StreamPlan, reporter: Reporter, stop: StopSignal) -> Streamed | None:
    """Carry the plan out. Under a launcher all processes take part, and the first one alone gets the result.

    Raises:
        StopRequested: SIGTERM came; what was done is saved.
        UserError: a loss that is not finite, a full disk; what was finished stays, and the same call goes on.
        FrozenMovedError: something outside the core sets moved.
    """
    prepare_directory(plan.out)
    if is_first_rank():
        remove_leftovers(plan.out)
    for number, stage in enumerate(plan.stages):
        if number < len(plan.finished):
            reporter.note(f"{stage.label}: trained before, {plan.patch(number)}")
            if is_first_rank():
                state.remove(plan.directory(number))
        else:
            _train(plan, number, reporter, stop)
        stop.check(f"after stage {number + 1} of {len(plan.stages)}, {stage.label}")
    return _finish(plan, reporter) if is_first_rank() else None


def state_after(plan: StreamPlan, number: int) -> ModelState:
    """The base with the patches of the first stages."""
    return ModelState(plan.base.source, tuple(Patch.open(plan.patch(before)) for before in range(number)))


def _train(plan: StreamPlan, number: int, reporter: Reporter, stop: StopSignal) -> None:
    stage, settings = plan.stages[number], plan.settings
    for note in stage.notes:
        reporter.note(f"{stage.label}: {note}")
    before = state_after(plan, number)
    start: StartingPoint = PatchedModel(before)
    if settings.method == "lora":
        carried = plan.adapter(number - 1) if settings.adapter == "carry" and number else None
        start = _adapted(plan, number, start if carried is None else BaseModel(plan.base.source), carried)

    def finish(values: Values) -> None:
        if isinstance(start, AdaptedModel):
            adapter, under = plan.adapter(number), before if settings.adapter == "merge" else state_after(plan, 0)
            start.write(adapter, values)
            mask, values = (
                Mask(dict.fromkeys(adapted_weights(adapter))),
                merged_values(under.value, adapter, rounded=False),
            )
        else:
            mask = stage.mask
        record_patch(
            plan.patch(number), before, mask, values, task=stage.label, method=settings.method,
            save_dtype=settings.save_dtype,
        )  # fmt: skip
        _record(plan, number)

    train(
        start, stage.data, settings.train, directory=plan.directory(number), finish=finish, mask=stage.mask, stop=stop,
        reporter=reporter, label=stage.label,
    )  # fmt: skip


def _adapted(plan: StreamPlan, number: int, start: StartingPoint, carried: Path | None) -> AdaptedModel:
    """A stage's adapters; each stage that begins new ones draws others."""
    settings = plan.settings
    return AdaptedModel(start, settings.lora_rank, settings.lora_alpha, settings.train.seed + number, carried)


def _record(plan: StreamPlan, number: int) -> None:
    """Say that a stage is finished, before its checkpoint is removed."""
    stage, file = plan.stages[number], plan.patch(number)
    steps = history.from_csv((plan.directory(number) / history.FILE).read_text("utf-8"))
    done = read_artefact(plan.out / RECORD, StreamFile).stages if (plan.out / RECORD).is_file() else ()
    patch = Patch.open(file)
    made = StageRecord(
        label=stage.label, patch=file.name, patch_sha256=sha256_file(file),
        adapter=plan.adapter(number).name if plan.settings.method == "lora" else None,
        mask_sha256=stage.mask.sha256, num_parameters=len(patch.entries),
        num_elements=sum(entry.num_elements for entry in patch.entries), data_sha256=stage.data.sha256,
        num_examples=len(stage.data.examples), num_steps=len(steps), tokens=sum(step.tokens for step in steps),
        supervised=sum(step.supervised for step in steps), losses=tuple(step.loss for step in steps),
    )  # fmt: skip
    _write_record(plan, (*done[:number], made), complete=False)


def _write_record(plan: StreamPlan, stages: tuple[StageRecord, ...], complete: bool) -> StreamFile:
    record = StreamFile(
        model=plan.base.identity, base_fingerprint=plan.fingerprint, settings=plan.settings.recorded(),
        num_stages=len(plan.stages), stages=stages, complete=complete, libraries=library_versions(),
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
    base, tuned = ModelState(plan.base.source), ModelState(ModelSource.parse(directory))
    found = verify(base, tuned, reduce(or_, (patch.mask for patch in final.patches)), reporter)
    require_frozen(found)
    write_text(plan.out / VERIFICATION, to_json(found))
    record: StreamFile = read_artefact(plan.out / RECORD, StreamFile)
    record = _write_record(plan, record.stages, complete=True)
    patches = [plan.patch(number) for number in range(len(plan.stages))]
    adapters = [plan.adapter(number) for number in range(len(plan.stages)) if plan.adapter(number).is_dir()]
    return Streamed(record, found, (*patches, *adapters, directory, plan.out / VERIFICATION, plan.out / RECORD))


def needed_space(plan: StreamPlan) -> int:
    """Bytes that the stages still to be trained will write: patches, checkpoints and their successor, the model."""
    base = ModelState(plan.base.source)
    model = sum(base.spec(name).num_bytes for name in base.shapes)
    patches, trained = 0, 0
    for stage in plan.stages[len(plan.finished) :]:
        if plan.settings.method == "lora":
            patches += 2 * model
            trained = max(trained, sum(numel(shape) for shape in plan.adapter_shapes.values()))
        else:
            for entry in patch_entries(base, stage.mask, plan.settings.save_dtype):
                patches += sum(spec.num_bytes for spec in entry.specs.values())
            trained = max(trained, stage.mask.numel(base.shapes))
    return patches + 12 * trained * (plan.settings.train.keep_checkpoints + 1) + model


def require_space(plan: StreamPlan) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UserError: less room than patches, checkpoints and the tuned model need.
    """
    needed, free = needed_space(plan), shutil.disk_usage(prepare_directory(plan.out)).free
    if free < needed and not plan.complete:
        raise UserError(
            f"{plan.out}: {free:,} bytes are free, but patches, checkpoints and the tuned model need about {needed:,}; "
            "make room, or name another --out"
        )
