"""Losses where people look at them: TensorBoard, W&B, Comet, MLflow, Trackio … — every tracker that accelerate knows.

The first rank alone has trackers. `loss.csv` is written whatever is tracked.

A training that goes on after an interruption repeats the steps after its last checkpoint. TensorBoard hides what the
stopped run wrote of them. The other trackers go on with the run of the same identity, where a step once written stays.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trace_transfer.errors import UserError, first_line
from trace_transfer.files import sha256_text

PROJECT, FOLDER = "trace-transfer", "tensorboard"
PROJECT_VARIABLES = {"wandb": "WANDB_PROJECT", "comet_ml": "COMET_PROJECT_NAME"}


@dataclass(frozen=True)
class Trackers:
    """The trackers of one training; none of them anywhere but on the first rank."""

    running: Sequence[Any] = ()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of a step, counted from 1, by name: `loss`, `learning_rate` …; steps come in order."""
        for tracker in self.running:
            tracker.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            for tracker in self.running:
                tracker.finish()
        if self.running:
            from accelerate import PartialState

            PartialState._reset_state()  # the next training may have other ranks


def require_trackers(names: Sequence[str]) -> None:
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    lacking = {*LoggerType.list()} - {str(name) for name in get_available_trackers()}
    if unknown := [name for name in names if name not in LOGGER_TYPE_TO_CLASS]:
        raise UserError(f"--track: {', '.join(unknown)}: no such tracker; there are {', '.join(LOGGER_TYPE_TO_CLASS)}")
    if missing := [name for name in names if name in lacking]:
        raise UserError(f"--track: a package is not installed: pip install {' '.join(missing)}")


def open_trackers(names: Sequence[str], directory: Path, label: str, first_step: int = 1) -> Trackers:
    """Begin trackers for one training, or go on with those of the same label and directory; on the first rank alone.

    TensorBoard's files go to `DIRECTORY/tensorboard/LABEL`, W&B's to `DIRECTORY/wandb`."""
    running = []
    for name in dict.fromkeys(names):
        try:
            with redirect_stdout(io.StringIO()):  # a greeting is no result
                running.append(_started(name, directory, label, first_step))
        except Exception as error:  # each tracker has errors of its own: no login, no network, a full disk
            Trackers(running).close()
            told = f"--track {name}: cannot be begun: {first_line(error)}. Log in to it, or leave --track out"
            raise UserError(told) from error
    return Trackers(running)


def _started(name: str, directory: Path, label: str, first_step: int) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's logger asks for it
    identity, kept = sha256_text(f"{directory.resolve()}\n{label}")[:32], directory / f"{label}.{name}-run"
    continued: Mapping[str, Mapping[str, Any]] = {  # those that go on with the run that they had
        "tensorboard": {"purge_step": first_step if first_step > 1 else None},
        "wandb": {"name": label, "id": identity, "resume": "allow", "dir": str(directory)},
        "comet_ml": {"experiment_key": identity, "mode": "get_or_create"},
        "mlflow": {"run_name": label, "run_id": kept.read_text("utf-8") if kept.is_file() else None},
        "trackio": {"name": f"{label}-{identity[:8]}", "resume": "allow"},
    }
    kind, options = LOGGER_TYPE_TO_CLASS[name], continued.get(name, {})
    if kind.requires_logging_directory:
        tracker = kind(label, str(directory / FOLDER), **options)
    else:
        tracker = kind(os.environ.get(PROJECT_VARIABLES.get(name, ""), PROJECT), **options)
    tracker.main_process_only = False  # this is the first rank
    tracker.start()
    if name == "mlflow":  # which gives the identity of a run itself
        kept.write_text(tracker.tracker.info.run_id, "utf-8")
    return tracker
