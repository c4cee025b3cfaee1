"""One step in a process of its own: its log, its lock, its cost, and its record once it is finished.

A process of its own gives its memory back, can be measured, and cannot leave anything behind in the next step. All are
forked from one server that has the libraries imported; where a GPU is, each is started anew, as CUDA does not survive
a fork. A job of a cluster's scheduler (`StepJob`, pickled by submitit) begins such a process, too.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, NamedTuple

from pydantic import NonNegativeFloat

from trace_transfer.errors import ArtefactError, TraceTransferError, UserError
from trace_transfer.files import held, remove_leftovers, sha256_file, write_text
from trace_transfer.launching import USERS_MISTAKE, check_processes, is_first_rank, run_on_nodes, run_processes
from trace_transfer.printable import guard
from trace_transfer.progress import Counted, Lines, Silent, Terminal, quiet_libraries, repeatedly
from trace_transfer.records import library_versions, read_artefact, read_fields, to_json
from trace_transfer.reporting.records import Cost, StepFile
from trace_transfer.stopping import StopRequested, stop_on_sigterm
from trace_transfer.study.status import LOCK, LOG, RECORD, TIME, files_of, remember
from trace_transfer.study.steps import LAUNCHED, TICKET, Ticket
from trace_transfer.training.settings import StreamFile

VISIBLE = "CUDA_VISIBLE_DEVICES"
ENDS = ("done", "interrupted", "stopped", "user error", "error")  # how a step may end
DONE = ".done"  # of the ranks that do a step: they end with 0, too, when they were stopped and have saved
LOOK_EVERY = 1.0  # s between looks at what the processes of a step say
READ_BACK = 8192  # bytes at the end of a log in which its last line lies
NOTE_TIME = 5.0  # s between notes of the time that a step has taken, so that a kill loses no more
TAIL = 12  # lines of a log that are shown when a step fails in a way that nobody foresaw
PATIENCE = 30.0  # s in which a process that an interrupted run left may end, before its step is begun again
SHARE = 0.8  # of the time from the signal to a job's end, in which it must have saved
STOPPED_BY_SLURM = 900  # s in which whoever stopped a job ends it


def context() -> Any:
    """How processes are begun; the same one for a whole run."""
    if shutil.which("nvidia-smi") is not None or Path("/dev/kfd").exists():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["trace_transfer.study.preloaded"])
    first = found.Process(target=int)  # waits until the libraries are imported, while Ctrl-C can still come
    first.start()
    first.join()
    return found


class Piped(Lines):
    """Reports progress to the log, and to the process that shows it (`listener`, a pipe or what a job leaves)."""

    def __init__(self, listener: Any, log: IO[str]) -> None:
        super().__init__(self.log_line)
        self.listener, self.log = listener, log

    def log_line(self, text: str) -> None:
        with suppress(OSError):  # the step itself will say that the disk is full
            self.log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")

    def moved(self, counted: Counted | None) -> None:
        self.send("at", counted)

    def note(self, message: str) -> None:
        self.write(message)
        self.send("note", message)

    def send(self, *event: Any) -> None:
        with suppress(OSError):  # nobody looks any more; this process ends with its parent
            self.listener.send(event)


class Share(NamedTuple):
    """What a step has of its machine."""

    processes: int = 1  # on each of its nodes
    nodes: int = 1
    threads: int | None = None  # of each process; None where it has the machine to itself
    gpus: tuple[str, ...] | None = None  # those that it alone may use; None where it has all to itself
    num_gpus: int = 0  # that CUDA must see: where it sees none, the step would be done on cores, and take for ever


def work(ticket: Ticket, share: Share, listener: Any) -> None:
    """Do a step, as the target of a process; the last event sent says how it ended, as one of `ENDS`."""
    _end_with_parent()
    gc.freeze()  # what the imported libraries hold stays: a look at all of it takes half a second, twice a training
    if share.gpus is not None:
        os.environ[VISIBLE] = ",".join(share.gpus)
    log_file = ticket.directory / LOG
    with log_file.open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout, sys.stderr = (
            guard(os.fdopen(number, "w", 1, "utf-8", "backslashreplace", closefd=False)) for number in (1, 2)
        )
        reporter = Piped(listener, guard(log))
        reporter.write(f"{ticket.directory.name} begins, process {os.getpid()}")
        ended = ("done", "")
        try:
            _do(ticket, share, reporter)
        except KeyboardInterrupt:
            ended = ("interrupted", "")
        except StopRequested as stopped:
            ended = ("stopped", str(stopped))
        except UserError as error:
            ended = ("user error", str(error))
        except (TraceTransferError, OSError) as error:
            ended = ("error", str(error))
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.flush()
            tail = log_file.read_text("utf-8", "replace").splitlines()[-TAIL:]
            ended = ("error", "\n  ".join([f"{type(error).__name__}: {error}; the end of {log_file}:", *tail]))
        reporter.write(": ".join(filter(None, ended)))
        reporter.send(*ended)
    listener.close()


def run_ticket(file: Path) -> None:
    """A step in this process, for ranks of a launcher; leaves no record, and `DONE` if it was not stopped."""
    from trace_transfer.study.kinds import KINDS

    quiet_libraries()
    ticket = Ticket.read(file)
    with stop_on_sigterm() as stop:
        KINDS[ticket.kind](ticket, Terminal() if is_first_rank() else Silent(), stop)
    if is_first_rank():
        write_text(ticket.directory / DONE, "")


def _do(ticket: Ticket, share: Share, reporter: Piped) -> None:
    import torch

    from trace_transfer.study.kinds import KINDS, prepare

    quiet_libraries()
    if (seen := torch.cuda.device_count()) < share.num_gpus:
        raise TraceTransferError(f"it has {share.num_gpus} GPUs on {platform.node()}, and CUDA sees {seen} of them")
    if share.threads is not None:
        torch.set_num_threads(share.threads)
        os.environ["OMP_NUM_THREADS"] = str(share.threads)
    directory = ticket.directory
    with held(directory, patience=PATIENCE, name=LOCK), _timed(directory) as times, stop_on_sigterm() as stop:
        if (directory / RECORD).is_file():  # a job that was requeued after its end, or another run did it meanwhile
            return
        remove_leftovers(directory)
        file = ticket.write()
        prepare(ticket)
        if share.processes * share.nodes > 1 and ticket.kind in LAUNCHED:
            _launch(directory, file, share, reporter)
        else:
            KINDS[ticket.kind](ticket, reporter, stop)
        _finish(ticket, times())


def _launch(directory: Path, ticket: Path, share: Share, reporter: Piped) -> None:
    """Have several processes do a step; the last line that they put into the log is sent to whoever shows it."""
    check_processes(share.processes)
    (directory / DONE).unlink(missing_ok=True)
    log, shown = directory / LOG, ""
    start = log.stat().st_size

    def follow() -> None:
        nonlocal shown
        for line in last_lines(log, start)[-1:]:
            if line != shown:
                reporter.send("at", line)
                shown = line

    with repeatedly(LOOK_EVERY, follow):
        arguments = ["step", str(ticket)]
        if share.nodes > 1:
            code = run_on_nodes(share.nodes, share.processes, arguments)
        else:
            code = run_processes(share.processes, arguments)
    words = [line for line in last_lines(log, start) if not line.startswith(("srun: ", "slurmstepd"))] or [""]
    if code == USERS_MISTAKE:
        raise UserError("\n".join(words).rpartition("error: ")[2])
    if code:
        raise TraceTransferError(f"{words[-1]}; {log} says more")
    if not (directory / DONE).is_file():
        raise StopRequested(words[-1])
    (directory / DONE).unlink()


def last_lines(log: Path, start: int = 0) -> list[str]:
    """The last ones that are not empty, of a log or of what it has from a byte on; none where it cannot be read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(start, log.stat().st_size - READ_BACK))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()]


def _finish(ticket: Ticket, times: Times) -> None:
    directory, files = ticket.directory, files_of(ticket.directory)
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    made = StepFile(
        kind=ticket.kind, address=ticket.address, settings=dict(ticket.settings), inputs=dict(ticket.inputs),
        files={name: sha256_file(file) for name, file in files.items()},
        cost=Cost(
            **asdict(times), peak_bytes=max(usage) * 1024,
            bytes=sum(file.stat().st_size for file in files.values()), trained=_trained(directory),
        ),
        libraries=library_versions(),
    )  # fmt: skip
    remember(directory)
    write_text(directory / RECORD, to_json(made))
    for name in (TIME, TICKET):
        (directory / name).unlink(missing_ok=True)


def _trained(directory: Path) -> int | None:
    """Elements of the most that any stage trained: those of its core set, or of its adapters."""
    from trace_transfer.models.sources import numel
    from trace_transfer.models.stored_weights import stored_tensors

    if not (directory / "stream.json").is_file():
        return None
    stream: StreamFile = read_artefact(directory / "stream.json", StreamFile)
    found = [stage.num_elements for stage in stream.stages if stage.adapter is None]
    for adapter in [stage.adapter for stage in stream.stages if stage.adapter is not None]:
        stored = stored_tensors(directory / adapter / "adapter_model.safetensors").values()
        found.append(sum(numel(tensor.shape) for tensor in stored))
    return max(found)


def clear(directory: Path) -> None:
    """Remove what a finished step made: something of it is gone or was changed, and all is made anew."""
    with held(directory, patience=PATIENCE, name=LOCK):
        (directory / RECORD).unlink()  # first: what is left without it counts as begun and not finished
        for path in directory.iterdir():
            if path.name not in (LOCK, LOG):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@dataclass(frozen=True)
class Times:
    """Seconds that a step has taken, of the clock and of processors, without the time in which nobody worked on it."""

    seconds: NonNegativeFloat = 0.0
    cpu_seconds: NonNegativeFloat = 0.0


@contextmanager
def _timed(directory: Path) -> Iterator[Callable[[], Times]]:
    """Tells what a step has taken since it was first begun, however often it was stopped."""
    before, start = Times(), os.times()
    with suppress(ArtefactError):  # nothing is noted yet, or it cannot be read
        before = read_fields(directory / TIME, Times)

    def so_far() -> Times:
        *processors, clock = (now - then for now, then in zip(os.times(), start, strict=True))
        return Times(round(before.seconds + clock, 3), round(before.cpu_seconds + sum(processors), 3))

    def note() -> None:
        with suppress(OSError, TraceTransferError):  # the step itself will say that the disk is full
            write_text(directory / TIME, json.dumps(asdict(so_far())))

    try:
        with repeatedly(NOTE_TIME, note):
            yield so_far
    except BaseException:
        note()
        raise


def _end_with_parent() -> None:
    """This process ends when the run's is killed. The server that forked it would not end before it, so the system's
    own signal on a parent's death would never come."""
    run = multiprocessing.parent_process()
    assert run is not None  # a target of a process

    def watch() -> None:
        wait([run.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@dataclass
class Ended:
    """Where the end of a job's step is kept for those who look from elsewhere; leaves its other events out."""

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
    share: Share
    jobs: Path
    signal_s: int
    process: Any = field(default=None, repr=False)

    def __call__(self) -> None:
        ended = self.ended
        ended.file.unlink(missing_ok=True)
        # Not forked from a server: SLURM's SIGTERM reaches every process of a job, and would end that one.
        self.process = multiprocessing.get_context("spawn").Process(target=work, args=(self.ticket, self.share, ended))
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
                kind = self.ticket.kind
                time_up = f"a {kind} cannot be stopped half-way; resources.{kind}.hours: more"
                self.ended.send(("user error", f"its time is up, and it has saved nothing: {time_up}"))
                return None
            if how not in ("done", "stopped", ""):
                return None
        return DelayedSubmission(StepJob(self.ticket, self.share, self.jobs, self.signal_s))

    @property
    def ended(self) -> Ended:
        return Ended(self.jobs / f"{os.environ['SLURM_JOB_ID']}_ended.json")
