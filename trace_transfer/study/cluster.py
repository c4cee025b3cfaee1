"""A study on a cluster: each step is a job of SLURM, submitted through submitit, and does what a local run does.

Reads and writes, beside what `running` does: `jobs/` below the run's directory. `jobs/jobs.json` has the id of each
step's job, and `jobs/ID_*` what submitit and SLURM keep of it. A job is named for its step and the run's directory, so
that the scheduler itself is asked whether a step has one: nothing is submitted twice, whenever the command is killed.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trace_transfer.errors import TraceTransferError, UserError
from trace_transfer.files import prepare_directory, sha256_text, write_text
from trace_transfer.progress import tell
from trace_transfer.reporting.numbers import several
from trace_transfer.stopping import interruption_held_back
from trace_transfer.study.graph import RunGraph
from trace_transfer.study.running import Here, Scheduler
from trace_transfer.study.status import LOG, StepStatus, is_finished
from trace_transfer.study.steps import LAUNCHED, Step
from trace_transfer.study.worker import Ended, Share, StepJob, last_lines
from trace_transfer.text_formats import read_json_object

JOBS, IDS = "jobs", "jobs.json"
LOOK_EVERY = 3.0  # s between questions to the scheduler
PATIENCE = 30.0  # s in which what a job wrote may become visible here
REQUEUES = 50  # times that a step may save and go on before it is given up
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"
)  # fmt: skip

WITHOUT = "Log in where jobs are submitted, or leave out --executor slurm: the study goes on here with what is finished"


@dataclass(frozen=True)
class Job:
    """A job as the scheduler has it."""

    id: str
    name: str
    state: str
    reason: str = ""

    @property
    def alive(self) -> bool:
        return self.state not in ENDED


class Jobs:
    """The jobs of a run: their ids on the disk, and what the scheduler says of them."""

    def __init__(self, out: Path) -> None:
        self.out, self.directory = out.absolute(), out.absolute() / JOBS
        self.mark = sha256_text(str(self.out.resolve()))[:6]

    def name(self, step: Step) -> str:
        """Of a step's job: two runs may have the same step."""
        return f"{Path(step.directory).name}.{self.mark}"

    @cached_property
    def ids(self) -> dict[str, str]:
        """Step's directory → the id of its last job."""
        file = self.directory / IDS
        return dict(read_json_object(file)) if file.is_file() else {}

    def note(self, step: Step, job: str) -> None:
        self.ids[step.directory] = job
        write_text(self.directory / IDS, json.dumps(self.ids, indent=1))

    def ended(self, job: str) -> tuple[str, str]:
        """How a job's step ended, as it says itself."""
        return Ended(self.directory / f"{job}_ended.json").read()

    def log(self, job: str) -> Path:
        return self.directory / f"{job}_0_log.out"

    def known(self) -> dict[str, Job]:
        """Name → the newest job of that name; of those that have ended SLURM remembers the last minutes."""
        said = asked("squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%j|%T|%r")
        jobs = [Job(*line.strip().split("|", 3)) for line in said.splitlines() if line.count("|") >= 3]
        mine = [job for job in jobs if job.name.endswith(f".{self.mark}")]
        return {job.name: job for job in sorted(mine, key=lambda one: (one.alive, int(one.id)))}

    def past(self, job: str) -> str:
        """The state of a job that squeue no longer knows; empty where there is no accounting."""
        with suppress(TraceTransferError):
            said = asked("sacct", "--noheader", "--parsable2", "--allocations", "--format=State", f"--jobs={job}")
            return said.split()[0] if said.split() else ""
        return ""


def asked(*command: str) -> str:
    """What a command of SLURM prints; UserError where there is none, TraceTransferError with its words if it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not found: there is no SLURM on this machine. {WITHOUT}") from None
    except subprocess.TimeoutExpired:
        raise TraceTransferError(f"{command[0]} does not answer") from None
    if done.returncode:
        raise TraceTransferError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def render_jobs(graph: RunGraph, status: Sequence[StepStatus], out: Path) -> str:
    """For `--status`: a line for each step that is not finished, with its job, and what it says or how it failed."""
    jobs, known = Jobs(out), dict[str, Job]()
    try:
        known = jobs.known()
    except TraceTransferError as error:  # what is on the disk can be told all the same
        tell(str(error))
    lines, states = [], Counter[str]()
    for step in (one.step for one in status if one.record is None):
        job, number, said = known.get(jobs.name(step)), jobs.ids.get(step.directory, ""), ""
        if job is None and number:
            job = Job(number, jobs.name(step), jobs.past(number))
        if job is not None and job.state == "RUNNING":
            said = next(iter(last_lines(out / step.directory / LOG)[-1:]), "")
        elif job is not None and job.alive:
            said = job.reason.removeprefix("None")
        elif job is not None:
            said = jobs.ended(job.id)[1] or str(jobs.log(job.id))
        state = "no job" if job is None else job.state.lower() or "unknown"
        states[state] += 1
        told = state if job is None else f"job {job.id}, {state}"
        lines.append(": ".join(filter(None, (graph.label(step), told, said))))
    counts = [f"{several(len(status), 'step')}: {len(status) - len(lines)} finished"]
    return "\n".join([*lines, ", ".join(counts + [f"{count} {state}" for state, count in states.items()])])


def cancel_jobs(graph: RunGraph, out: Path) -> list[Job]:
    """For `--cancel`: the jobs of this run that wait or run, which are ended."""
    jobs = Jobs(out)
    known = jobs.known()
    found = [job for step in graph.steps if (job := known.get(jobs.name(step))) is not None and job.alive]
    if found:
        asked("scancel", *(job.id for job in found))
    return found


@dataclass
class _Submitted:
    """A step that has a job."""

    step: Step
    label: str
    job: str
    shown: bool = False  # that it runs
    gone: float | None = None  # since when the scheduler does not have it


class Slurm(Scheduler):
    """Steps as jobs: all are submitted at once, each after those that it needs, and looked after until the last."""

    running: list[_Submitted]
    going_on = "stopped by SIGTERM; the jobs of {steps} go on without it, and the same command looks after them again"

    @classmethod
    def require(cls) -> None:
        asked("sbatch", "--version")
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UserError("--executor slurm needs submitit: pip install 'trace-transfer[cluster]'") from None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.jobs, self.looked, self.silent = Jobs(self.out), 0.0, ""
        self.lost: set[str] = set()  # addresses of steps that will not be finished
        prepare_directory(self.jobs.directory)

    def start(self) -> None:
        if not self.waiting or self.stop.requested:
            return
        known, new = self.jobs.known(), dict[str, str]()
        try:
            for step in list(self.waiting):
                with interruption_held_back():
                    self._take(step, known.get(self.jobs.name(step)), new)
        except UserError:  # refused by the scheduler, as the others of this kind would be
            if new:
                asked("scancel", *new.values())
            self.running = [one for one in self.running if one.step.address not in new]
            raise
        ids = list(new.values())
        told = f"{several(len(new), 'job')} submitted ({ids[0]} to {ids[-1]})" if new else "nothing submitted"
        more = f", {several(len(self.running) - len(new), 'job')} of before" if len(self.running) > len(new) else ""
        self.display.note(f"{told}{more}; Ctrl-C leaves them running")

    def _take(self, step: Step, job: Job | None, new: dict[str, str]) -> None:
        """Find a step's job, or make one, which is noted in `new`."""
        label, earlier = self.graph.label(step), self.jobs.ids.get(step.directory)
        self.waiting.remove(step)
        if is_finished(step, self.out):  # meanwhile
            self.done(step)
            return
        if job is not None and job.alive and any(needed.address in new for needed in step.needs.values()):
            asked("scancel", job.id)  # it waits for one that has ended badly
            job = None
        if job is not None and job.alive:
            if earlier != job.id:  # the command was killed before it could note it, perhaps before all was there
                self._complete(step, job.id)
            found = job.id
        else:
            if earlier is not None and (message := self.jobs.ended(earlier)[1]):
                self.display.note(f"{label}: submitted again; job {earlier} ended: {message}")
            found = new[step.address] = self._submit(step)
        self.jobs.note(step, found)
        self.running.append(_Submitted(step, label, found))

    def _submit(self, step: Step) -> str:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError

        options = self.graph.run.resources_of(step.kind).submitted(step.kind in LAUNCHED)
        by_address = {one.step.address: one.job for one in self.running}
        if after := [by_address[one.address] for one in step.needs.values() if one.address in by_address]:
            needs = {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
            options["additional_parameters"] |= needs
        # The batch script becomes the program, so that SLURM's signals reach it.
        executor = SlurmExecutor(
            self.jobs.directory, max_num_timeout=REQUEUES, python=f"exec {shlex.quote(sys.executable)}"
        )
        executor.update_parameters(job_name=self.jobs.name(step), use_srun=False, stderr_to_stdout=True, **options)
        with redirect_stderr(io.StringIO()):  # submitit prints there what it raises
            try:
                return str(executor.submit(self._step_job(step)).job_id)
            except FailedJobError as error:
                words = " ".join(line.removeprefix("sbatch: error: ") for line in str(error).splitlines())
                raise UserError(f"{self.graph.label(step)}: sbatch refuses resources.{step.kind}: {words}") from None

    def _complete(self, step: Step, job: str) -> None:
        """What submitit would have written after the job was submitted."""
        from submitit.core.utils import DelayedSubmission, JobPaths, temporary_save_path

        paths = JobPaths(self.jobs.directory, job_id=job)
        if not paths.submitted_pickle.exists():
            delayed = DelayedSubmission(self._step_job(step))
            delayed.set_timeout(round(60 * self.graph.run.resources_of(step.kind).hours), REQUEUES)
            with temporary_save_path(paths.submitted_pickle) as file:
                delayed.dump(file)

    def _step_job(self, step: Step) -> StepJob:
        resources, launched = self.graph.run.resources_of(step.kind), step.kind in LAUNCHED
        processes = (resources.gpus or self.graph.run.processes) if launched else 1
        share = Share(processes, resources.nodes if launched else 1, num_gpus=resources.gpus or 0)
        return StepJob(step.ticket(self.out), share, self.jobs.directory, resources.signal_s)

    def listen(self) -> None:
        if (early := self.looked + LOOK_EVERY - time.monotonic()) > 0 and not self.stop.requested:
            time.sleep(min(early, LOOK_EVERY / 10))
            return
        self.looked = time.monotonic()
        try:
            known = self.jobs.known()
        except TraceTransferError as error:  # a scheduler that is started again is asked again
            if str(error) != self.silent:
                self.display.note(str(error))
            self.silent = str(error)
            return
        self.silent = ""
        for one in list(self.running):
            job = known.get(self.jobs.name(one.step))
            if is_finished(one.step, self.out):
                self._end(one, well=True)
                self.running.remove(one)
                self.done(one.step)
            elif job is not None and job.alive and job.id == one.job:
                self._show(one, job)
            else:
                self._gone(one, job.state if job is not None and job.id == one.job else self.jobs.past(one.job))

    def _show(self, one: _Submitted, job: Job) -> None:
        one.gone = None
        if job.state != "RUNNING":
            if one.shown:  # requeued
                self._end(one, well=False)
            return
        if not one.shown:
            self._begin(one)
        for line in last_lines(self.out / one.step.directory / LOG)[-1:]:
            self.display.show(one.step.address, "at", line)

    def _end(self, one: _Submitted, *, well: bool) -> None:
        if well and not one.shown:  # it was quicker than we look
            self._begin(one)
        if one.shown:
            self.display.end(one.step.address, well)
        one.shown = False

    def _begin(self, one: _Submitted) -> None:
        one.shown = True
        self.display.begin(one.step.address, f"{one.label}, job {one.job}")

    def _gone(self, one: _Submitted, state: str) -> None:
        """A job that has ended and left no record."""
        how, message = self.jobs.ended(one.job)
        message = "" if how == "stopped" else message  # by whoever ended the job
        one.gone = one.gone or time.monotonic()
        needs_lost = any(needed.address in self.lost for needed in one.step.needs.values())
        if not (needs_lost or message or state not in ("", "COMPLETED") or time.monotonic() - one.gone > PATIENCE):
            return  # its record may still be on its way to here
        self._end(one, well=False)
        self.running.remove(one)
        self.lost.add(one.step.address)
        if needs_lost:
            return
        log, own = self.jobs.log(one.job), self.out / one.step.directory / LOG
        if message:
            message += f" (job {one.job}, {own})"
        else:
            message = f"its job {one.job} " + (f"ended as {state}" if state else "is no longer known to the scheduler")
            logs = " and ".join(str(file) for file in (own, log) if file.is_file())
            shared = f" and wrote nothing here; is {self.jobs.directory} on a file system that the nodes share?"
            message += f"; see {logs}" if logs else shared
        self.failed.append((one.label, how, message))
        self.display.note(f"{one.label}: failed: {message}")

    def hand_on(self) -> None:
        """Jobs need nobody who looks after them."""
        self.waiting += [one.step for one in self.running]
        self.running.clear()

    def leave(self) -> None:
        if self.running:
            self.display.note(
                f"{several(len(self.running), 'job')} in the queue or at work stay there; --status shows them, "
                "--cancel ends them, and the same command looks after them again"
            )


SCHEDULERS: Mapping[str, type[Scheduler]] = {"local": Here, "slurm": Slurm}
