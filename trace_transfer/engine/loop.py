"""The training loop: warm start, masked stage and baselines are this one with other masks, data and starting points.

Reads: a starting point's weights and a task's examples; a checkpoint in `DIRECTORY/checkpoint/`, if there is one.
Writes: `DIRECTORY/loss.csv` and checkpoints, which are removed once the trained weights have been handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trace_transfer.core_sets.masks import Mask
from trace_transfer.data.examples import TaskData
from trace_transfer.engine import state
from trace_transfer.engine.batches import Plan, plan
from trace_transfer.engine.deepspeed_workarounds import collect_garbage
from trace_transfer.engine.engine import MASTER, MOMENTS, Engine, configuration, open_engine, resolve_precision
from trace_transfer.engine.errors import TrainingError
from trace_transfer.engine.loading import StartingPoint
from trace_transfer.engine.partitioned import fill_partitioned, gathered, shapes_of
from trace_transfer.engine.process_group import open_ranks
from trace_transfer.engine.proof import require_frozen_in_use
from trace_transfer.engine.ranks import Ranks
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.engine.slices import put, require_fitting, taken
from trace_transfer.engine.stepping import Run, TrainResult
from trace_transfer.files import prepare_directory, remove_leftovers
from trace_transfer.progress import Reporter, Silent
from trace_transfer.stopping import StopSignal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Values = Iterator[tuple[str, Tensor]]


def train(
    start: StartingPoint,
    data: TaskData,
    settings: TrainSettings,
    *,
    directory: Path,
    finish: Callable[[Values], None],
    mask: Mask | None = None,
    work: float | None = None,
    stop: StopSignal | None = None,
    reporter: Reporter | None = None,
    label: str | None = None,
) -> TrainResult:
    """Fine-tune, from the start or from where a run with the same settings was stopped.

    Under a launcher every rank calls it alike; all of them must see `directory`.

    Args:
        directory: of this training alone.
        finish: called once, on the first rank, with name and float32 value of every trained parameter, one at a time
            (of a slice its rows or columns, one after the other); when it returns, checkpoints are removed.
        mask: what is trained, None is all. Everything else stays bit-identical.
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
    steps = plan(data, settings)
    label, reporter = label or data.task, reporter or Silent()
    with open_ranks() as ranks:
        cuda = [ranks.device] if ranks.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            try:
                return _train(
                    start, data, settings, steps, directory, finish, mask, work, stop or StopSignal(), reporter, label,
                    ranks,
                )  # fmt: skip
            finally:
                collect_garbage()


def _train(
    start: StartingPoint, data: TaskData, settings: TrainSettings, steps: Plan, directory: Path,
    finish: Callable[[Values], None], mask: Mask | None, work: float | None, stop: StopSignal, reporter: Reporter,
    label: str, ranks: Ranks,
) -> TrainResult:  # fmt: skip
    prepare_directory(directory)
    if ranks.is_first:
        remove_leftovers(directory)
        state.remove_leftovers(directory, settings.keep_checkpoints)
    ranks.any(False)  # nobody looks before the leftovers are gone
    dtype = resolve_precision(settings)
    saved = state.find(directory)
    skeleton = start.skeleton(dtype)  # no weights yet: what does not fit is refused first
    shapes = shapes_of(skeleton)
    mask = Mask.everything(shapes) if mask is None else mask
    require_fitting(mask, shapes)
    identity = _identity(start, data, settings, dtype, mask, shapes, steps.num_steps)
    if saved is not None:
        state.require_same(saved, identity)
        saved.require_whole(mask.parts, (MASTER, *MOMENTS))
    model = skeleton if settings.zero == 3 else start.load(dtype)
    del skeleton
    if settings.zero == 3:
        config = configuration(settings, ranks, dtype, mask.numel(shapes))
        fill_partitioned(model, start.values(shapes, dtype), config, ranks)
    if saved is not None:
        _copy(model, mask, saved.read(MASTER))
    with open_engine(model, settings, ranks, mask) as engine:
        del model
        if saved is not None:
            _restore(engine, saved)
        elif dtype != torch.float32:
            engine.set(MASTER, ((name, taken(v, mask.parts[name])) for name, v in start.exact(engine.parameters)))
        run = Run(engine, ranks, data.task, settings, steps, directory, identity, stop, label, reporter, saved, work)
        run.all_steps()
        require_frozen_in_use(engine, start, dtype, ranks, label)
        _hand_over(engine, ranks, finish, directory)
        if ranks.is_first:
            state.remove(directory)
        return run.result()


def _identity(
    start: StartingPoint, data: TaskData, settings: TrainSettings, dtype: torch.dtype, mask: Mask,
    shapes: Mapping[str, tuple[int, ...]], num_steps: int,
) -> dict[str, Any]:  # fmt: skip
    """What must be the same for a checkpoint to be gone on from; the number of ranks may differ."""
    return {
        "task": data.task,
        "data_sha256": data.sha256,
        "settings": {**settings.recorded(), "precision": str(dtype).removeprefix("torch.")},
        "num_steps": num_steps,
        "model": {"names_sha256": start.names_sha256, "fingerprint": start.fingerprint},
        "trained": {
            "num_parameters": len(mask.parts),
            "num_slices": len(mask.sliced),
            "num_elements": mask.numel(shapes),
            "sha256": mask.sha256,
        },
    }


def _copy(model: PreTrainedModel, mask: Mask, values: Values) -> None:
    for name, value in values:
        parameter = model.get_parameter(name)
        with gathered(parameter, modify=True):
            put(parameter.data, mask.parts[name], value)


def _restore(engine: Engine, saved: state.Saved) -> None:
    engine.set_steps(len(saved.steps))
    for kind in (MASTER, *MOMENTS):
        engine.set(kind, saved.read(kind))


def _hand_over(engine: Engine, ranks: Ranks, finish: Callable[[Values], None], directory: Path) -> None:
    values, problem = engine.values(), None
    try:
        if ranks.is_first:
            finish(values)
    except Exception as error:  # of any kind, raised again below: the other ranks must hear of it
        problem = error
    finally:
        for _ in values:  # the other ranks wait in each
            pass
    if ranks.any(problem is not None):
        raise problem or TrainingError(f"{directory}: the first rank could not keep the trained values; it says why")
