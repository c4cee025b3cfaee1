"""The training loop: warm start, masked stage and baselines run it with other masks, data and starting points.

Reads: a starting point's weights and a task's examples; a checkpoint in `DIRECTORY/checkpoint/`, if there is one.
Writes: `DIRECTORY/loss.csv`, `eval.csv` where there are held-out examples, and checkpoints, which are removed once the
trained weights have been handed over.

At the end every frozen weight in use is compared with the starting point's: the tuned model is written from base and
the trained values, so that only here a frozen weight that moved would be seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trace_transfer.core_sets.masks import Mask
from trace_transfer.data.examples import TaskData
from trace_transfer.engine import checkpointing, held_out
from trace_transfer.engine.batches import GlobalBatch, Plan, plan
from trace_transfer.engine.checkpointing import Log, Step
from trace_transfer.engine.deepspeed_json import contradictions
from trace_transfer.engine.distributed import Ranks, collect_garbage, open_ranks
from trace_transfer.engine.engine import (
    MASTER,
    Engine,
    configuration,
    fill_partitioned,
    gathered,
    open_engine,
    resolve_precision,
    shapes_of,
)
from trace_transfer.engine.estimates import peak_flops, utilisation
from trace_transfer.engine.held_out import Evaluation, HeldOut, best
from trace_transfer.engine.loading import StartingPoint
from trace_transfer.engine.optimizers import Describe, treatments
from trace_transfer.engine.optimizing import problems, schedule
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.engine.slices import outside, put, require_fitting, taken
from trace_transfer.engine.tracking import Trackers, open_trackers, require_trackers
from trace_transfer.errors import FrozenMovedError, TraceTransferError, TrainingError, UserError, listing
from trace_transfer.files import prepare_directory, remove_leftovers, write_text
from trace_transfer.models.running import attend
from trace_transfer.models.tensors import differing, dtype_name
from trace_transfer.progress import Reporter, Silent
from trace_transfer.stopping import StopSignal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Values = Iterator[tuple[str, Tensor]]


def require_usable(settings: TrainSettings, num_ranks: int) -> None:
    """Refuse what can be refused before any weight is read: trackers that are not there, an optimizer or a schedule
    that does not work here, a DeepSpeed JSON that contradicts the other settings.

    Raises:
        UserError: all contradictions at once.
    """
    require_trackers(settings.track)
    if found := problems(settings):
        raise UserError("settings that cannot be used here:\n" + listing(found))
    if found := contradictions(settings.deepspeed, settings, num_ranks, dtype_name(resolve_precision(settings))):
        raise UserError("settings that contradict each other:\n" + listing(found))


def train(
    start: StartingPoint,
    data: TaskData,
    settings: TrainSettings,
    *,
    directory: Path,
    finish: Callable[[Values], None],
    mask: Mask | None = None,
    describe: Describe | None = None,
    held_out: HeldOut | None = None,
    work: float | None = None,
    stop: StopSignal | None = None,
    reporter: Reporter | None = None,
    label: str | None = None,
) -> TrainResult:
    """Fine-tune, from the start or from where a run with the same settings was stopped.

    Under a launcher every rank calls it alike; all of them must see `directory`.

    Args:
        directory: of this training alone.
        finish: called once, on the first rank, with name and float32 value of every trained tensor, one at a time
            (of a slice its rows or columns, one after the other); when it returns, checkpoints are removed.
        mask: what is trained, None is all. Everything else stays bit-identical.
        describe: a trained tensor's own name in the model and its components, where settings ask for them.
        held_out: examples that the training is evaluated on as it goes.
        work: operations per token (`hardware.flops_per_token`), to tell the share of the device's peak.
        stop: looked at after each step, on all ranks; asked for on one, all of them stop.
        label: for messages; default is the task's name.

    Raises:
        TrainingError: NaN or Inf (before anything of that step is kept), unusable examples, a checkpoint of another
            training, a full disk; on other ranks than the first, that `finish` failed there.
        FrozenMovedError: a frozen weight in use was not the starting point's any more; nothing is handed over.
        MaskError: the mask does not fit the model.
        ModelError: weights that cannot be loaded.
        StopRequested: by `stop`, with a checkpoint to go on from.
    """
    with open_ranks() as ranks:
        asked = _Asked(
            start, data, settings, plan(data, settings), directory, mask, describe, held_out, work,
            stop or StopSignal(), reporter or Silent(), label or data.task, ranks,
        )  # fmt: skip
        cuda = [ranks.device] if ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            try:
                return _train(asked, finish)
            finally:
                collect_garbage()


@dataclass(frozen=True)
class _Asked:
    """What is asked of `train`, with the plan of its steps and the processes that take part."""

    start: StartingPoint
    data: TaskData
    settings: TrainSettings
    plan: Plan
    directory: Path
    mask: Mask | None
    describe: Describe | None
    held_out: HeldOut | None
    work: float | None
    stop: StopSignal
    reporter: Reporter
    label: str
    ranks: Ranks


def _train(asked: _Asked, finish: Callable[[Values], None]) -> TrainResult:
    start, settings, ranks, directory = asked.start, asked.settings, asked.ranks, asked.directory
    prepare_directory(directory)
    if ranks.is_first:
        remove_leftovers(directory)
        checkpointing.remove_leftovers(directory, settings.keep_checkpoints)
    ranks.any(False)  # nobody looks before the leftovers are gone
    dtype = resolve_precision(settings)
    saved = checkpointing.find(directory)
    skeleton = attend(start.skeleton(dtype), settings.attention)  # no weights yet: what does not fit is refused first
    shapes = shapes_of(skeleton)
    mask = Mask.everything(shapes) if asked.mask is None else asked.mask
    require_fitting(mask, shapes)
    trained = mask.trained_shapes(shapes)
    treated = treatments(trained, settings, *([asked.describe] if asked.describe else []))
    identity = _identity(asked, dtype_name(dtype), mask, shapes)
    if saved is not None:
        checkpointing.require_same(saved, identity)
        saved.require_whole({name: [MASTER, *treated[name].state(trained[name], settings)] for name in treated})
    model = skeleton if settings.zero == 3 else attend(start.load(dtype), settings.attention)
    del skeleton
    if settings.zero == 3:
        config = configuration(settings, ranks, dtype, mask.numel(shapes))
        fill_partitioned(model, start.values(shapes, dtype), config, ranks)
    if saved is not None:
        _copy(model, mask, saved.read(MASTER))
    with open_engine(model, settings, ranks, mask, treated) as engine:
        del model
        if saved is not None:
            _restore(engine, saved)
        elif dtype != torch.float32:
            engine.set(MASTER, ((name, taken(v, mask.parts[name])) for name, v in start.exact(engine.parameters)))
        if settings.packing:
            engine.require_packing(asked.data.examples)
        run = Run(asked, engine, identity, saved)
        run.all_steps()
        require_frozen_in_use(engine, start, dtype, ranks, asked.label)
        told = f"{directory}: the first rank could not keep the trained values; it says why"
        if run.kept is None:
            values = engine.values()
            ranks.first_alone(lambda: finish(values), told, values)
        else:
            step = run.kept
            ranks.first_alone(lambda: finish(checkpointing.trained_at(directory, step)), told)
        if ranks.is_first:
            checkpointing.remove(directory)
        return run.result()


def _identity(asked: _Asked, precision: str, mask: Mask, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What must be the same for a checkpoint to be gone on from; the number of ranks may differ."""
    start, data = asked.start, asked.data
    return {
        "task": data.task,
        "data_sha256": data.sha256,
        "settings": {**asked.settings.recorded(), "precision": precision},
        "num_steps": asked.plan.num_steps,
        "model": {
            "names_sha256": start.names_sha256,
            "fingerprint": start.fingerprint,
            "config_sha256": start.config_sha256,
        },
        "trained": {
            "num_parameters": len(mask.parts),
            "num_slices": len(mask.sliced),
            "num_elements": mask.numel(shapes),
            "sha256": mask.sha256,
        },
        **({"held_out": asked.held_out.identity()} if asked.held_out else {}),
    }


def _copy(model: PreTrainedModel, mask: Mask, values: Values) -> None:
    for name, value in values:
        parameter = model.get_parameter(name)
        with gathered(parameter, modify=True):
            put(parameter.data, mask.parts[name], value)


def _restore(engine: Engine, saved: checkpointing.Saved) -> None:
    engine.set_steps(len(saved.steps))
    for kind in sorted({kind for kinds in engine.kinds.values() for kind in kinds}):
        engine.set(kind, saved.read(kind))


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    Attributes:
        tokens: read in all steps, padding not counted.
        supervised: tokens that were learned from.
        losses: of each step, mean cross-entropy in nats before the step.
        seconds: of wall clock in the loop, those before an interruption included.
        evaluations: on held-out examples.
        kept: the step whose weights were handed over; None for the last.
    """

    steps: int
    tokens: int
    supervised: int
    losses: tuple[float, ...]
    seconds: float
    evaluations: tuple[Evaluation, ...] = ()
    kept: int | None = None


@dataclass
class Run:
    """A training under way."""

    asked: _Asked
    engine: Engine
    identity: Mapping[str, Any]
    saved: checkpointing.Saved | None

    def __post_init__(self) -> None:
        self.ranks, self.settings, self.plan = self.asked.ranks, self.asked.settings, self.asked.plan
        self.steps = list(self.saved.steps) if self.saved else []
        self.log = Log(self.asked.directory, self.steps) if self.ranks.is_first else None
        self.held_out, self.evaluations = self.asked.held_out, list(self.saved.evaluations) if self.saved else []
        self.held = self.held_out.batches(self.plan) if self.held_out else {}
        self.tokens = 0  # of this run
        self.share = schedule(self.settings, self.plan.num_steps)
        self.paused = 0.0  # by evaluations
        self.before = self.saved.seconds if self.saved else 0.0
        self.began = self.written = time.monotonic()
        self.last_checkpoint = self.saved.path if self.saved else None
        name = torch.cuda.get_device_name(self.ranks.device) if self.ranks.device.type == "cuda" else "cpu"
        self.peak = peak_flops(name, self.identity["settings"]["precision"])

    @property
    def kept(self) -> int | None:
        """The step whose weights are kept; None for the last."""
        return self.held_out.kept(self.evaluations) if self.held_out else None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to be gained from more steps."""
        return self.held_out is not None and self.held_out.is_over(self.evaluations)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def result(self) -> TrainResult:
        return TrainResult(
            steps=len(self.steps),
            tokens=sum(step.tokens for step in self.steps),
            supervised=sum(step.supervised for step in self.steps),
            losses=tuple(step.loss for step in self.steps),
            seconds=self.seconds,
            evaluations=tuple(self.evaluations),
            kept=self.kept,
        )

    def all_steps(self) -> None:
        total, done = self.plan.num_steps, len(self.steps)
        if done and self.ranks.is_first:
            self.asked.reporter.note(f"{self.asked.label}: going on after step {done} of {total}")
        reporter = self.asked.reporter if self.ranks.is_first else Silent()
        self.stop_if_asked()
        with (
            reporter.task(f"training on {self.asked.label}", total) as advance,
            closing(self.trackers()) as trackers,
        ):
            for _ in range(done):
                advance()
            for number, batch in enumerate(self.plan.batches(done), start=done):
                if self.is_over:
                    break
                step = self.one_step(number, batch)
                self.steps.append(step)
                self.tokens += step.tokens
                if self.log is not None:
                    self.log.add(step)
                trackers.log(
                    step.step, {"loss": step.loss, "learning_rate": step.learning_rate, "norm": step.grad_norm}
                )
                best_so_far = self.evaluate(step.step, trackers)
                due = time.monotonic() - self.written >= 60 * self.settings.checkpoint_minutes
                advance(self.status())
                due_anywhere, stopping = self.agreed(self.ranks.is_first and due)
                if due_anywhere or stopping or best_so_far:
                    self.checkpoint()
                if stopping:
                    self.stop_here(number + 1)
        if self.ranks.is_first and len(self.steps) > done:
            first, last, count = self.steps[0].loss, self.steps[-1].loss, len(self.steps)
            steps = f"{count} of {total}" if count < total else f"{total}"
            self.asked.reporter.note(
                f"{self.asked.label}: {steps} steps in {self.seconds:.0f} s, loss {first:.3f} → {last:.3f}"
            )
            if lowest := best(self.evaluations):
                ended = "; it did not become lower, so that training ended early" if count < total else ""
                self.asked.reporter.note(
                    f"{self.asked.label}: lowest held-out loss {lowest.loss:.3f} after step {lowest.step}{ended}"
                    + ("; its weights are kept" if self.kept else "")
                )

    def trackers(self) -> Trackers:
        """Where losses go beside `loss.csv`."""
        names, directory = self.settings.track, self.asked.directory.parent
        opened = self.ranks.first_alone(
            lambda: open_trackers(names, directory, self.asked.label, first_step=len(self.steps) + 1),
            "the first rank could not begin its trackers; it says why",
        )
        return opened or Trackers()

    def agreed(self, due: bool) -> tuple[bool, bool]:
        """Whether a checkpoint is due on any rank, and whether any was told to stop; collective.

        A signal that comes during the call is for the next one: all ranks must decide alike.
        """
        due_anywhere, stopping = self.ranks.total(torch.tensor([float(due), float(self.asked.stop.requested)])).tolist()
        return bool(due_anywhere), bool(stopping)

    def stop_if_asked(self) -> None:
        """Collective; nothing has been done since the last checkpoint."""
        if self.agreed(False)[1]:
            self.stop_here(len(self.steps))

    def stop_here(self, done: int) -> None:
        self.asked.stop.requested = True  # here too, if it was another rank that was told
        self.asked.stop.check(f"after step {done} of {self.plan.num_steps}")

    def status(self) -> str:
        """How it goes: the last loss, and the speed since this run began."""
        rate = self.tokens / max(time.monotonic() - self.began - self.paused, 1e-9)
        share = utilisation(self.asked.work, rate, self.peak, self.ranks.size) if self.asked.work else None
        of_peak = f" · {share:.0%} of peak" if share is not None else ""
        held_out = f" · held-out {self.evaluations[-1].loss:.3f}" if self.evaluations else ""
        return f"loss {self.steps[-1].loss:.3f}{held_out} · {_short(rate)} tokens/s{of_peak}"

    def evaluate(self, step: int, trackers: Trackers) -> bool:
        """Evaluate, if it is due after this step; whether its weights are now to be kept. Collective."""
        if self.held_out is None or not self.held_out.is_due(step, self.plan):
            return False
        began = time.monotonic()
        found = held_out.evaluate(self.engine, self.ranks, self.held, step)
        self.evaluations.append(found)
        if self.ranks.is_first:
            write_text(self.asked.directory / held_out.FILE, held_out.to_csv(self.evaluations))
        several = {f"eval_loss/{task}": loss for task, loss in found.losses.items() if len(found.losses) > 1}
        trackers.log(step, {"eval_loss": found.loss, **several})
        self.paused += time.monotonic() - began
        return self.kept == step

    def one_step(self, number: int, batch: GlobalBatch) -> Step:
        # Dropout, where a model has it, must not depend on what was drawn before an interruption.
        torch.manual_seed((self.settings.seed * 1_000_003 + number) * 1_009 + self.ranks.rank)
        sums = self.ranks.total(self.gradient(batch))
        if not sums.isfinite().all():
            bad = [m for m, finite in zip(batch.micro_batches, sums.isfinite().tolist(), strict=True) if not finite]
            ids = [", ".join(example.id for example in micro_batch) for micro_batch in bad]
            raise self.stopped(number, "the loss of these examples is NaN or infinite", ids)
        share = self.share(number)
        norm = self.engine.step(share)
        if not math.isfinite(norm):
            ids = [", ".join(example.id for example in batch.examples)]
            raise self.stopped(number, "the gradient of these examples is NaN or infinite", ids)
        loss = float(sums.sum()) / batch.num_supervised
        return Step(number + 1, loss, self.settings.learning_rate * share, norm, batch.num_tokens, batch.num_supervised)

    def gradient(self, batch: GlobalBatch) -> Tensor:
        """Accumulate the gradient of the mean loss over all supervised tokens of the batch.

        Returns this rank's part of the sums of cross-entropy per micro-batch, float64, 0 for those of other ranks.
        """
        sums = torch.zeros(len(batch.micro_batches), dtype=torch.float64)
        mine = batch.share(self.ranks.rank, self.ranks.size)
        for position, (micro, examples) in enumerate(mine):
            weight = self.ranks.size / batch.num_supervised if micro is not None else 0.0  # ranks are averaged
            loss = self.engine.loss(examples, weight)
            self.engine.backward(loss, last=position == len(mine) - 1)
            if micro is not None:
                sums[micro] = loss.item() / weight
        return sums

    def checkpoint(self) -> None:
        engine, directory = self.engine, self.asked.directory
        states = ((name, {kind: engine.get(name, kind) for kind in engine.kinds[name]}) for name in engine.parameters)

        def write() -> Path:
            return checkpointing.write(
                directory, self.identity, self.steps, self.seconds, states, self.settings.keep_checkpoints,
                self.evaluations, self.kept,
            )  # fmt: skip

        told = f"{directory}: rank 0 could not write a checkpoint"
        self.last_checkpoint = self.ranks.first_alone(write, told, states) or self.last_checkpoint
        self.written = time.monotonic()

    def stopped(self, number: int, what: str, ids: list[str]) -> TrainingError:
        kept = self.last_checkpoint
        lost = f"the last checkpoint, {kept}, is as it was" if kept else "no checkpoint had been written yet"
        return TrainingError(
            f"task '{self.asked.data.task}', step {number + 1} of {self.plan.num_steps}: {what}:\n{listing(ids)}\n"
            f"Training stopped before this step changed anything that is kept; {lost}. Look at these examples, or try "
            f"a smaller learning rate (it is {self.settings.learning_rate:g}) or --precision float32"
        )


def _short(number: float) -> str:
    """Three digits and a unit: 512, 5.12k, 51.2k."""
    for unit in ("", "k", "M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"


def require_frozen_in_use(engine: Engine, start: StartingPoint, dtype: torch.dtype, ranks: Ranks, label: str) -> None:
    """Compare every frozen weight in use, one at a time, with the starting point's, bit for bit; collective.

    Of a sliced tensor, only the frozen part counts.

    Raises:
        FrozenMovedError: some differ; all ranks raise.
    """
    moved, problem = [], None
    expected = iter(start.values(engine.frozen, dtype)) if ranks.is_first else iter(())
    for name in engine.frozen:
        found = engine.live(name)
        if ranks.is_first and problem is None:
            try:
                _, value = next(expected)
            except (TraceTransferError, OSError) as error:
                problem = error
                continue
            if differing(outside(found, engine.sliced.get(name)), outside(value, engine.sliced.get(name))).any():
                moved.append(name)
    if ranks.any(bool(moved) or problem is not None):
        if problem is not None:
            raise problem
        raise FrozenMovedError(
            f"{label}: weights that were to stay frozen moved while training; nothing of this stage is kept:\n"
            + listing(moved or ["the first rank names them"])
        )
