"""`train`: a stream of tasks, stage after stage, from a base model to its patches and the tuned model.

Reads: a base model, `stream.yaml`, its data and core files. Writes into one directory: `stages/N-LABEL/` (loss.csv, and
checkpoints while it runs), `LABEL.patch.safetensors` after each stage, `stream.json`, which says what is finished, and
at the end `model/` (with its card) and `verification.json`. Stopped anywhere, the same call goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

from torch import Tensor

from trace_transfer.engine import checkpointing
from trace_transfer.engine.adapters import AdaptedModel, merged_values
from trace_transfer.engine.loading import BaseModel, StartingPoint
from trace_transfer.engine.loop import train
from trace_transfer.files import remove_leftovers, sha256_file, write_text
from trace_transfer.launching import is_first_rank
from trace_transfer.locking import held
from trace_transfer.models.sources import ModelSource
from trace_transfer.patch.model_state import ModelState, PatchedModel, record_patch, write_model
from trace_transfer.patch.patches import Patch
from trace_transfer.patch.records import Verification
from trace_transfer.patch.verifying import require_frozen, verify
from trace_transfer.progress import Reporter
from trace_transfer.publish.model_card import CARD, trained_card
from trace_transfer.records import library_versions, read_artefact, to_json
from trace_transfer.stopping import StopSignal
from trace_transfer.training.records import EvaluationRecord, StageRecord, StreamFile
from trace_transfer.training.stream_plan import RECORD, StreamPlan, require_space

Values = Iterator[tuple[str, Tensor]]

VERIFICATION = "verification.json"


@dataclass(frozen=True)
class Streamed:
    """What a stream left: its record, the proof, and the files."""

    record: StreamFile
    verification: Verification
    files: tuple[Path, ...]


def run_stream(plan: StreamPlan, reporter: Reporter, stop: StopSignal) -> Streamed | None:
    """Carry the plan out. Under a launcher all processes take part, and the first one alone gets the result.

    Raises:
        StopRequested: SIGTERM came; what was done is saved.
        UserError: another process is at work there, too little room, a loss that is not finite, a full disk; what was
            finished stays, and the same call goes on.
        FrozenMovedError: something outside the core sets moved.
    """
    require_space(plan)
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
    """The base with the patches of the first stages."""
    return ModelState(plan.base.source, tuple(Patch.open(plan.patch(before)) for before in range(number)))


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
            under = before if settings.adapter == "merge" else state_after(plan, 0)
            values = merged_values(under.value, plan.adapter(number))
        record_patch(
            plan.patch(number), before, plan.mask(number), values, task=stage.label, method=settings.method,
            save_dtype=settings.save_dtype,
        )  # fmt: skip
        _record(plan, number)

    train(
        start, stage.data, settings.train, directory=plan.directory(number), finish=finish, mask=plan.trained(number),
        describe=plan.describe, held_out=plan.held_out(number), stop=stop, reporter=reporter, label=stage.label,
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
        held_out_sha256=held.sha256 if held else None, kept_step=held.kept(evaluations) if held else None,
        evaluations=tuple(EvaluationRecord(step=e.step, losses=dict(e.losses), loss=e.loss) for e in evaluations),
    )  # fmt: skip
    _write_record(plan, (*done[:number], made), complete=False)


def _write_record(plan: StreamPlan, stages: tuple[StageRecord, ...], complete: bool) -> StreamFile:
    record = StreamFile(
        model=plan.base.identity, base_fingerprint=plan.fingerprint, config_sha256=plan.config_sha256,
        settings=plan.settings.recorded(), num_stages=len(plan.stages), stages=stages, complete=complete,
        libraries=library_versions(),
    )  # fmt: skip
    write_text(plan.out / RECORD, to_json(record))
    return record


def _finish(plan: StreamPlan, reporter: Reporter) -> Streamed:
    """Write the tuned model, and prove from the disk that nothing else moved."""
    final, directory = state_after(plan, len(plan.stages)), plan.model
    if plan.complete and (directory / "config.json").is_file():
        reporter.note(f"{directory}: written before")
    else:
        write_model(final, directory, reporter, replace=True)
    base, tuned = ModelState(plan.base.source), ModelState(ModelSource.parse(directory))
    found = verify(base, tuned, reduce(or_, (patch.mask for patch in final.patches)), reporter)
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
