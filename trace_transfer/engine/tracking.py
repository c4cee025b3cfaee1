"""Loss and learning rate for TensorBoard, Weights & Biases or Comet, through DeepSpeed's own monitors.

The monitors are made here and not by the engine, which would log its own loss: that of one rank's last micro-batch,
scaled. Only rank 0 has one. `loss.csv` is written whatever is tracked.

A training that goes on after an interruption gives the same steps again, from its last checkpoint on. TensorBoard hides
what the killed run wrote of them (a session that starts at a step purges that step and all behind it in the files
before); W&B and Comet continue the run of the same name, where a step once written stays.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from trace_transfer.errors import UserError, first_line, listing
from trace_transfer.launching import is_first_rank

PROJECT = "trace-transfer"
FOLDER = "tensorboard"
# Tracker → (the module that it needs, the package that has it).
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard>=2.17"),  # as in pyproject.toml
    "wandb": ("wandb", "wandb"),
    "comet": ("comet_ml", "comet_ml>=3.41"),
}


class Tracker(Protocol):
    """Where numbers go while a training runs."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step, counted from 1, by name: `loss`, `learning_rate` …; steps come in order."""
        ...

    def close(self) -> None:
        """Write what is still held back; nothing can be logged afterwards. May be called twice."""
        ...


class NoTracker:
    """Nobody listens: no tracker is wanted, or this is not the first rank."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def require_trackers(names: tuple[str, ...]) -> None:
    """Refuse trackers whose package is not installed; imports none of them.

    Raises:
        UserError: naming each.
    """
    missing = [name for name in names if find_spec(PACKAGES[name][0]) is None]
    if missing:
        hints = [f"{name}: pip install '{PACKAGES[name][1]}'" for name in missing]
        raise UserError("--track: these need a package that is not installed:\n" + listing(hints))


def open_tracker(names: tuple[str, ...], directory: Path, run_name: str, first_step: int = 1) -> Tracker:
    """Open trackers for one training. Call it within `meeting.open_ranks`.

    Args:
        names: some of `tensorboard`, `wandb`, `comet`; none is allowed.
        directory: TensorBoard's files go to `DIRECTORY/tensorboard/RUN_NAME`, W&B's to `DIRECTORY/wandb`.
        run_name: what the curve is called; the same name and directory go on with the same curve.
        first_step: the first that will be logged, more than 1 if a training goes on.

    Raises:
        UserError: a package is missing, or a tracker cannot be begun (no login, no network).
    """
    require_trackers(names)
    if not names or not is_first_rank():
        return NoTracker()
    identity = hashlib.sha256(f"{directory.resolve()}\n{run_name}".encode()).hexdigest()[:32]
    with _environment(names, directory, run_name, identity):
        try:
            return _DeepSpeedTracker(names, directory, run_name, identity, first_step)
        except Exception as error:  # each tracker has errors of its own: no login, no network, a full disk
            raise UserError(
                f"--track {' '.join(names)}: cannot be begun: {first_line(error)}. Log in to it, or have it work "
                "without a network (WANDB_MODE=offline), or leave --track out: loss.csv is written in any case"
            ) from error


class _DeepSpeedTracker:
    def __init__(self, names: tuple[str, ...], directory: Path, run_name: str, identity: str, first_step: int) -> None:
        self.monitor = _monitor(_config(names, directory, run_name, identity))
        board = self.monitor.tb_monitor
        if board is not None and first_step > 1:
            _hide_from(board.summary_writer, first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.monitor.write_events([(name, value, step) for name, value in values.items()])

    def close(self) -> None:
        monitor, self.monitor = self.monitor, None
        if monitor is None:
            return
        if monitor.tb_monitor is not None:
            monitor.tb_monitor.summary_writer.close()
        if monitor.wandb_monitor is not None:
            import wandb

            wandb.finish(quiet=True)
        if monitor.comet_monitor is not None:
            monitor.comet_monitor.experiment.end()


def _config(names: tuple[str, ...], directory: Path, run_name: str, identity: str) -> dict[str, dict[str, Any]]:
    every = {
        "tensorboard": {"enabled": True, "output_path": str(directory / FOLDER), "job_name": run_name},
        "wandb": {"enabled": True, "project": os.environ.get("WANDB_PROJECT", PROJECT)},
        "comet": {
            "enabled": True, "project": os.environ.get("COMET_PROJECT_NAME", PROJECT), "experiment_name": run_name,
            "experiment_key": identity, "mode": "get_or_create", "samples_log_interval": 1,
        },
    }  # fmt: skip
    return {name: every[name] for name in names}


def _monitor(config: Mapping[str, Any]) -> Any:
    """DeepSpeed's monitors; what they print on the way (`wandb` its greeting) is no result."""
    with redirect_stdout(io.StringIO()):
        from deepspeed.monitor.config import get_monitor_config
        from deepspeed.monitor.monitor import MonitorMaster

        return MonitorMaster(get_monitor_config(config))


def _hide_from(writer: Any, step: int) -> None:
    """Have TensorBoard forget a step and all behind it in the files before, as a session that starts there does."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=step)
    writer.flush()


@contextmanager
def _environment(names: tuple[str, ...], directory: Path, run_name: str, identity: str) -> Iterator[None]:
    """W&B's settings that DeepSpeed does not hand on; what the user has set stays."""
    wanted = {
        "WANDB_NAME": run_name, "WANDB_RUN_ID": identity, "WANDB_RESUME": "allow", "WANDB_DIR": str(directory),
        "WANDB_SILENT": "true",
    }  # fmt: skip
    added = [name for name in wanted if name not in os.environ] if "wandb" in names else []
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
