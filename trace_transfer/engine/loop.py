"""The training loop: warm start, masked stage and baselines run it with other masks, data and starting points.

Reads: a starting point's weights and a task's examples; a checkpoint in `DIRECTORY/checkpoint/`, if there is one.
Writes: what `checkpointing` describes; checkpoints are removed once the trained weights have been handed over.

At the end every frozen weight in use is compared with the starting point's: the tuned model is written from base and
the trained values, so that only here a frozen weight that moved would be seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trace_transfer.core_sets.masks import Mask
from trace_transfer.data.examples import Example, TaskData
from trace_transfer.engine import batches, checkpointing
from trace_transfer.engine.batches import Evaluation, GlobalBatch, HeldOut, Plan, best
from trace_transfer.engine.checkpointing import Step
from trace_transfer.engine.deepspeed_json import configuration, contradictions
from trace_transfer.engine.distributed import Ranks, collect_garbage, open_ranks
from trace_transfer.engine.engine import MASTER, Engine, fill_partitioned, open_engine, resolve_precision
from trace_transfer.engine.loading import StartingPoint, Values
from trace_transfer.engine.optimizers import Describe, problems, schedule, treatments
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.engine.slices import gathered, outside, put, shapes_of, taken
from trace_transfer.engine.tracking import Trackers, open_trackers, require_trackers
from trace_transfer.errors import FrozenMovedError, TrainingError, UserError, listing
from trace_transfer.files import prepare_directory, remove_leftovers, write_text
from trace_transfer.models.running import attend
from trace_transfer.models.tensors import differing, dtype_name
from trace_transfer.progress import Reporter, Silent
from trace_transfer.stopping import StopSignal


def require_usable(settings: TrainSettings, num_ranks: int) -> None:
    """Refuse, before any weight is read, settings that do not work here or contradict each other."""
    require_trackers(settings.track)
    if found := problems(settings):
        raise UserError("settings that cannot be used here:\n" + listing(found))
    if found := contradictions(settings.deepspeed, settings, num_ranks, resolve_precision(settings)):
        raise UserError("settings that contradict each other:\n" + listing(found))


class TrainResult(NamedTuple):
    """What a training did; `kept` is the step whose weights were handed over, None for the last."""

    steps: Sequence[Step]
    evaluations: tuple[Evaluation, ...]
    kept: int | None

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(step.loss for step in self.steps)


def train(
    start: StartingPoint, data: TaskData, settings: TrainSettings, mask: Mask, held_out: HeldOut, *, directory: Path,
    finish: Callable[[Values], None], describe: Describe, stop: StopSignal, reporter: Reporter, label: str,
) -> TrainResult:  # fmt: skip
    """Fine-tune, from the start or from where a run with the same settings was stopped. Under a launcher every rank
    calls it alike; all of them must see `directory`, which is of this training alone.

    Args:
        mask: what is trained. Everything else stays bit-identical.
        finish: called once, on the first rank, with name and float32 value of every trained tensor, one at a time
            (of a slice its rows or columns, one after the other); when it returns, checkpoints are removed.
        describe: a trained tensor's own name in the model and its components.
        stop: looked at after each step, on all ranks; asked for on one, all of them stop.

    Raises:
        TrainingError: NaN or Inf (before anything of that step is kept), unusable examples, a checkpoint of another
            training, a full disk; on other ranks than the first, that `finish` failed there.
        FrozenMovedError: a frozen weight in use was not the starting point's any more; nothing is handed over.
        StopRequested: by `stop`, with a checkpoint to go on from.
    """
    with open_ranks() as ranks:
        cuda = [ranks.device] if ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            try:
                shown = reporter if ranks.is_first else Silent()
                run = Run(data, settings, Plan(data, settings), directory, held_out, stop, shown, label, ranks)
                return run.train(start, mask, describe, finish)
            finally:
                collect_garbage()


@dataclass
class Run:
    """A training under way; its methods are collective, all ranks call them alike."""

    data: TaskData
    settings: TrainSettings
    plan: Plan
    directory: Path
    held_out: HeldOut
    stop: StopSignal
    reporter: Reporter
    label: str
    ranks: Ranks

    def train(
        self, start: StartingPoint, mask: Mask, describe: Describe, finish: Callable[[Values], None]
    ) -> TrainResult:
        settings, ranks, directory = self.settings, self.ranks, self.directory
        prepare_directory(directory)
        if ranks.is_first:
            remove_leftovers(directory)
            checkpointing.remove_leftovers(directory)
        ranks.any(False)  # nobody looks before the leftovers are gone
        dtype = resolve_precision(settings)
        saved = checkpointing.find(directory)
        model = attend(start.skeleton(dtype), settings.attention)  # no weights yet: what does not fit is refused first
        shapes = shapes_of(model)
        trained = mask.trained_shapes(shapes)
        treated = treatments(trained, settings, describe)
        self.identity = self._identity(start, dtype_name(dtype), mask, shapes)
        if saved is not None:
            saved.require_same(self.identity)
            saved.require_whole({name: [MASTER, *treated[name].state(trained[name], settings)] for name in treated})
        if settings.zero == 3:
            config = configuration(settings, ranks, dtype, mask.numel(shapes))
            fill_partitioned(model, start.values(shapes, dtype), config, ranks)
        else:
            model = attend(start.load(dtype), settings.attention)
        for name, value in saved.read(MASTER) if saved else ():
            parameter = model.get_parameter(name)
            with gathered(parameter, modify=True):
                put(parameter.data, mask.parts[name], value)
            del parameter
        with open_engine(model, settings, ranks, mask, treated) as self.engine:
            del model
            if saved is not None:
                self.engine.set_steps(len(saved.steps))
                for kind in sorted({kind for kinds in self.engine.kinds.values() for kind in kinds}):
                    self.engine.set(kind, saved.read(kind))
            elif dtype != torch.float32:
                exact = start.values(self.engine.parameters, torch.float32)  # the model's were rounded
                self.engine.set(MASTER, ((name, taken(value, mask.parts[name])) for name, value in exact))
            if settings.packing:
                self.engine.require_packing(self.data.examples)
            self._all_steps(saved)
            require_frozen_in_use(self.engine, start, dtype, ranks, self.label)
            kept = self.kept
            values = self.engine.values() if kept is None else iter(())
            ranks.first_alone(
                lambda: finish(values if kept is None else checkpointing.trained_at(directory, kept)),
                f"{directory}: the first rank could not keep the trained values; it says why", values,
            )  # fmt: skip
            if ranks.is_first:
                checkpointing.remove(directory)
            return TrainResult(self.steps, tuple(self.evaluations), kept)

    def _identity(
        self, start: StartingPoint, precision: str, mask: Mask, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from; the number of ranks may differ."""
        return {
            "task": self.data.task, "data_sha256": self.data.sha256, "num_steps": self.plan.num_steps,
            "settings": {**self.settings.recorded(), "precision": precision}, "model": start.identity,
            "trained": {
                "num_parameters": len(mask.parts), "num_slices": len(mask.sliced),
                "num_elements": mask.numel(shapes), "sha256": mask.sha256,
            },
            **({"held_out": self.held_out.identity()} if self.held_out.tasks else {}),
        }  # fmt: skip

    @property
    def kept(self) -> int | None:
        return self.held_out.kept(self.evaluations)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def _all_steps(self, saved: checkpointing.Saved | None) -> None:
        self.steps, self.evaluations = list(saved.steps if saved else ()), list(saved.evaluations if saved else ())
        self.before = saved.seconds if saved else 0.0
        self.last_checkpoint = saved.path if saved else None
        self.began = self.written = time.monotonic()
        self.share = schedule(self.settings, self.plan.num_steps)
        total, done = self.plan.num_steps, len(self.steps)
        if self.ranks.is_first:  # what a killed run wrote after its last checkpoint is taken back
            write_text(self.directory / checkpointing.LOSSES, checkpointing.to_csv(self.steps))
        if done:
            self.reporter.note(f"{self.label}: going on after step {done} of {total}")
        if self._agreed(False)[1]:
            self._stop_here(done)
        with self.reporter.task(f"training on {self.label}", total) as advance, closing(self._trackers()) as trackers:
            for _ in range(done):
                advance()
            for number, batch in enumerate(self.plan.batches(done), start=done):
                if self.held_out.is_over(self.evaluations):
                    break
                step = self.one_step(number, batch)
                self.steps.append(step)
                if self.ranks.is_first:
                    checkpointing.add_step(self.directory, step)
                trackers.log(
                    step.step, {"loss": step.loss, "learning_rate": step.learning_rate, "norm": step.grad_norm}
                )
                best_so_far = self._evaluate(step.step, trackers)
                due = time.monotonic() - self.written >= 60 * self.settings.checkpoint_minutes
                advance(self._status(done))
                due_anywhere, stopping = self._agreed(self.ranks.is_first and due)
                if due_anywhere or stopping or best_so_far:
                    self._checkpoint()
                if stopping:
                    self._stop_here(number + 1)
        if len(self.steps) > done:
            self._tell_end()

    def _tell_end(self) -> None:
        first, last = self.steps[0].loss, self.steps[-1].loss
        steps = f"{len(self.steps)} of {self.plan.num_steps} steps in {self.seconds:.0f} s"
        self.reporter.note(f"{self.label}: {steps}, loss {first:.3f} → {last:.3f}")
        if lowest := best(self.evaluations):
            kept = "; its weights are kept" if self.kept else ""
            self.reporter.note(f"{self.label}: lowest held-out loss {lowest.loss:.3f} after step {lowest.step}{kept}")

    def _trackers(self) -> Trackers:
        opened = self.ranks.first_alone(
            lambda: open_trackers(self.settings.track, self.directory.parent, self.label, len(self.steps) + 1),
            "the first rank could not begin its trackers; it says why",
        )
        return opened or Trackers()

    def _agreed(self, due: bool) -> tuple[bool, bool]:
        """Whether a checkpoint is due on any rank, and whether any was told to stop before this call."""
        due_anywhere, stopping = self.ranks.total(torch.tensor([float(due), float(self.stop.requested)])).tolist()
        return bool(due_anywhere), bool(stopping)

    def _stop_here(self, done: int) -> None:
        self.stop.requested = True  # here too, if it was another rank that was told
        self.stop.check(f"after step {done} of {self.plan.num_steps}")

    def _status(self, done: int) -> str:
        rate = sum(step.tokens for step in self.steps[done:]) / max(time.monotonic() - self.began, 1e-9)
        held_out = f" · held-out {self.evaluations[-1].loss:.3f}" if self.evaluations else ""
        return f"loss {self.steps[-1].loss:.3f}{held_out} · {rate:,.0f} tokens/s"

    def _evaluate(self, step: int, trackers: Trackers) -> bool:
        """Evaluate, if it is due after this step; whether its weights are now to be kept."""
        if not self.held_out.is_due(step, self.plan):
            return False
        found = batches.evaluate(self.engine, self.ranks, self.held_out.tasks, self.settings.micro_batch_size, step)
        self.evaluations.append(found)
        if self.ranks.is_first:
            text = checkpointing.evaluations_csv(self.evaluations)
            write_text(self.directory / checkpointing.EVALUATIONS, text)
        several = {f"eval_loss/{task}": loss for task, loss in found.losses.items() if len(found.losses) > 1}
        trackers.log(step, {"eval_loss": found.loss, **several})
        return self.kept == step

    def one_step(self, number: int, batch: GlobalBatch) -> Step:
        # Dropout, where a model has it, must not depend on what was drawn before an interruption.
        torch.manual_seed((self.settings.seed * 1_000_003 + number) * 1_009 + self.ranks.rank)
        sums = self.ranks.total(self._gradient(batch))
        if bad := [m for m, loss in zip(batch.micro_batches, sums.tolist(), strict=True) if not math.isfinite(loss)]:
            raise self._stopped(number, "loss", bad)
        share = self.share(number)
        norm = self.engine.step(share)
        if not math.isfinite(norm):
            raise self._stopped(number, "gradient", batch.micro_batches)
        loss = float(sums.sum()) / batch.num_supervised
        return Step(number + 1, loss, self.settings.learning_rate * share, norm, batch.num_tokens, batch.num_supervised)

    def _gradient(self, batch: GlobalBatch) -> Tensor:
        """Accumulate the gradient of the mean loss over all supervised tokens of the batch; this rank's part of the
        sums of cross-entropy per micro-batch, float64, 0 for those of other ranks."""
        sums = torch.zeros(len(batch.micro_batches), dtype=torch.float64)
        mine = batch.share(self.ranks.rank, self.ranks.size)
        for position, (micro, examples) in enumerate(mine):
            weight = self.ranks.size / batch.num_supervised if micro is not None else 0.0  # ranks are averaged
            loss = self.engine.loss(examples, weight)
            self.engine.backward(loss, last=position == len(mine) - 1)
            if micro is not None:
                sums[micro] = loss.item() / weight
        return sums

    def _checkpoint(self) -> None:
        engine, directory = self.engine, self.directory
        states = ((name, {kind: engine.get(name, kind) for kind in engine.kinds[name]}) for name in engine.parameters)

        def write() -> Path:
            return checkpointing.write(
                directory, self.identity, self.steps, self.seconds, states, self.settings.keep_checkpoints,
                self.evaluations, self.kept,
            )  # fmt: skip

        told = f"{directory}: rank 0 could not write a checkpoint"
        self.last_checkpoint = self.ranks.first_alone(write, told, states) or self.last_checkpoint
        self.written = time.monotonic()

    def _stopped(self, number: int, what: str, bad: Sequence[Sequence[Example]]) -> TrainingError:
        kept, ids = self.last_checkpoint, [", ".join(one.id for one in examples) for examples in bad]
        lost = f"the last checkpoint, {kept}, is as it was" if kept else "no checkpoint had been written yet"
        return TrainingError(
            f"task '{self.data.task}', step {number + 1} of {self.plan.num_steps}: the {what} of these examples is "
            f"NaN or infinite:\n{listing(ids)}\n"
            f"Look at these, or try a smaller learning rate (it is {self.settings.learning_rate:g}); {lost}"
        )


def require_frozen_in_use(engine: Engine, start: StartingPoint, dtype: torch.dtype, ranks: Ranks, label: str) -> None:
    """Compare every frozen weight in use with the starting point's, bit for bit; collective."""
    in_use, parts = engine.frozen_values(), engine.sliced

    def compare() -> list[str]:
        pairs = zip(in_use, start.values(engine.frozen, dtype), strict=True)
        return [name for (name, one), (_, other) in pairs if differing(one, outside(other, parts.get(name))).any()]

    told = f"{label}: the first rank could not read the starting point; it says why"
    moved = ranks.first_alone(compare, told, in_use)
    if ranks.any(bool(moved)):
        raise FrozenMovedError(
            f"{label}: weights that were to stay frozen moved while training; nothing of this stage is kept:\n"
            + listing(moved or ["the first rank names them"])
        )
