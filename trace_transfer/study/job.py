"""What a job of a cluster's scheduler does: one step of a study, in a process of its own, as on any machine.

It is pickled by submitit when it is submitted, and imports little, as its process imports the libraries.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trace_transfer.errors import TraceTransferError
from trace_transfer.files import write_text
from trace_transfer.study.steps import Ticket
from trace_transfer.study.worker import ENDS, Share, work

SHARE = 0.8  # of the time from the signal to the job's end, in which it must have saved
STOPPED_BY_SLURM = 900  # s in which whoever stopped a job ends it


@dataclass
class Ended:
    """Where a step's end is kept for those who look from elsewhere; takes its events, and leaves the others out."""

    file: Path

    def send(self, event: Any) -> None:
        if event[0] in ENDS:
            write_text(self.file, json.dumps(event))

    def close(self) -> None:
        return None

    def read(self) -> tuple[str, str]:
        with suppress(OSError, ValueError):
            how, message = json.loads(self.file.read_text("utf-8"))
            return how, message
        return "", ""


@dataclass
class StepJob:
    """What a job does: its step, in a process of its own as on any machine. Told by SIGUSR2 that its time ends, it lets
    that process save, and is requeued (submitit calls `checkpoint`)."""

    ticket: Ticket
    record: dict[str, Any]
    share: Share
    jobs: Path
    signal_s: int
    process: Any = field(default=None, repr=False)

    def __call__(self) -> None:
        ended = self.ended
        ended.file.unlink(missing_ok=True)
        # Not forked from a server: SLURM's SIGTERM reaches every process of a job, and would end that one.
        spawned = multiprocessing.get_context("spawn")
        self.process = spawned.Process(target=work, args=(self.ticket, self.record, self.share, ended))
        self.process.start()
        self.process.join()
        how, message = ended.read()
        if how == "stopped" or (not how and self.process.exitcode == -signal.SIGTERM):
            time.sleep(STOPPED_BY_SLURM)  # cancelled, or to be requeued: an end before SLURM's own would be a failure
        if how != "done":
            raise TraceTransferError(f"{how}: {message}" if how else f"exit code {self.process.exitcode}")

    def checkpoint(self) -> Any:
        """Let the step save; what is begun again later, or None if nothing was saved and more time is needed."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            if self.process.is_alive():
                os.kill(self.process.pid, signal.SIGTERM)
                self.process.join(SHARE * self.signal_s)
            how, _ = self.ended.read()
            if not how and self.process.exitcode != -signal.SIGTERM:
                self.process.kill()
                time_up = f"a {self.ticket.kind} cannot be stopped half-way; resources.{self.ticket.kind}.hours: more"
                self.ended.send(("user error", f"its time is up, and it has saved nothing: {time_up}"))
                return None
            if how not in ("done", "stopped", ""):
                return None
        return DelayedSubmission(
            StepJob(self.ticket, self.record, self.share, self.jobs, self.signal_s)
        )  # fmt: skip

    @property
    def ended(self) -> Ended:
        return Ended(self.jobs / f"{os.environ['SLURM_JOB_ID']}_ended.json")
