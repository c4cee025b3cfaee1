"""One step in a process of its own: its log, its lock, its cost, and its record once it is finished.

A process of its own gives its memory back, can be measured, and cannot leave anything behind in the next step. All are
forked from one server that has the libraries imported; where a GPU is, each is started anew, as CUDA does not survive
a fork.
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
from dataclasses import asdict, dataclass
from datetime import datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, Protocol

from pydantic import NonNegativeFloat

from trace_transfer.errors import ArtefactError, TraceTransferError, UserError
from trace_transfer.files import remove_leftovers, sha256_file, write_text
from trace_transfer.locking import held
from trace_transfer.printable import guard
from trace_transfer.progress import Advance, Lines, Silent, quiet_libraries
from trace_transfer.records import library_versions, read_artefact, read_fields, to_json
from trace_transfer.reporting.records import Cost, StepFile
from trace_transfer.study.status import LOCK, LOG, RECORD, TIME, remember, step_files
from trace_transfer.study.steps import LAUNCHED, TICKET, Ticket
from trace_transfer.training.records import StreamFile

VISIBLE = "CUDA_VISIBLE_DEVICES"
ENDS = ("done", "interrupted", "stopped", "user error", "error")  # how a step may end
DONE = ".done"  # of the ranks that do a step: they end with 0, too, when they were stopped and have saved
LOOK_EVERY = 1.0  # s between looks at what the processes of a step say
READ_BACK = 8192  # bytes at the end of a log in which its last line lies
NOTE_TIME = 5.0  # s between notes of the time that a step has taken, so that a kill loses no more
TAIL = 12  # lines of a log that are shown when a step fails in a way that nobody foresaw
PATIENCE = 30.0  # s in which a process that an interrupted run left may end, before its step is begun again


def context() -> Any:
    """How processes are begun; the same one for a whole run."""
    if _has_gpu():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["trace_transfer.study.kinds", "transformers.modeling_utils", "peft"])  # seconds, each
    first = found.Process(target=_nothing)  # waits until the libraries are imported, while Ctrl-C can still come
    first.start()
    first.join()
    return found


def _nothing() -> None:
    """A process that ends at once."""


class Piped:
    """Reports progress to the process that shows it, and to the step's log."""

    def __init__(self, listener: Listener, log: IO[str]) -> None:
        self.listener, self.number = listener, 0
        self.log, self.lines = log, Lines(self.write)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        self.number += 1
        number = self.number

        def advance(status: str = "") -> None:
            written(status)
            self.send("advance", number, status)

        self.send("task", number, description, total)
        try:
            with self.lines.task(description, total) as written:
                yield advance
        finally:
            self.send("end", number)

    def note(self, message: str) -> None:
        self.write(message)
        self.send("note", message)

    def write(self, text: str) -> None:
        """A line in the log."""
        with suppress(OSError):  # the step itself will say that the disk is full
            self.log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")

    def send(self, *event: Any) -> None:
        with suppress(OSError):  # nobody looks any more; this process ends with its parent
            self.listener.send(event)


@dataclass(frozen=True)
class Share:
    """What a step has of its machine.

    Attributes:
        processes: on each of its nodes.
        threads: of each process; None where it has the machine to itself.
        gpus: those that it alone may use; None where it has all to itself.
        num_gpus: that CUDA must see: where it sees none, the step would be done on cores, and take for ever.
    """

    processes: int = 1
    nodes: int = 1
    threads: int | None = None
    gpus: tuple[str, ...] | None = None
    num_gpus: int = 0


class Listener(Protocol):
    """Where events of a step go: a pipe, or what a job leaves."""

    def send(self, event: Any) -> None: ...

    def close(self) -> None: ...


def work(ticket: Ticket, record: dict[str, Any], share: Share, listener: Listener) -> None:
    """Do a step, as the target of a process; the last event sent says how it ended, as one of `ENDS`."""
    _end_with_parent()
    gc.freeze()  # what the imported libraries hold stays: a look at all of it takes half a second, twice a training
    if share.gpus is not None:
        os.environ[VISIBLE] = ",".join(share.gpus)
    directory = ticket.directory
    with (directory / LOG).open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout, sys.stderr = (
            guard(os.fdopen(number, "w", 1, "utf-8", "backslashreplace", closefd=False)) for number in (1, 2)
        )
        reporter = Piped(listener, guard(log))
        reporter.write(f"{directory.name} begins, process {os.getpid()}")
        ended: tuple[str, str]
        try:
            _do(ticket, record, share, reporter)
            ended = ("done", "")
        except KeyboardInterrupt:
            ended = ("interrupted", "")
        except BaseException as error:
            ended = _told(error, directory / LOG)
        reporter.write(": ".join(filter(None, ended)))
        reporter.send(*ended)
    listener.close()


def run_ticket(file: Path) -> None:
    """A step in this process, for ranks of a launcher; leaves no record, and `DONE` if it was not stopped."""
    from trace_transfer.launching import is_first_rank
    from trace_transfer.progress import Terminal
    from trace_transfer.stopping import stop_on_sigterm
    from trace_transfer.study.kinds import KINDS

    quiet_libraries()
    ticket = Ticket.read(file)
    with stop_on_sigterm() as stop:
        KINDS[ticket.kind](ticket, Terminal() if is_first_rank() else Silent(), stop)
    if is_first_rank():
        write_text(ticket.directory / DONE, "")


def _do(ticket: Ticket, record: dict[str, Any], share: Share, reporter: Piped) -> None:
    import torch

    from trace_transfer.launching import USERS_MISTAKE, check_processes, run_on_nodes, run_processes
    from trace_transfer.stopping import StopRequested, stop_on_sigterm
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
            check_processes(share.processes)
            (directory / DONE).unlink(missing_ok=True)
            with _followed(directory / LOG, reporter) as said:
                arguments = ["step", str(file)]
                if share.nodes > 1:
                    code = run_on_nodes(share.nodes, share.processes, arguments)
                else:
                    code = run_processes(share.processes, arguments)
            words = [line for line in said() if not line.startswith(("srun: ", "slurmstepd"))] or [""]
            if code == USERS_MISTAKE:
                raise UserError("\n".join(words).rpartition("error: ")[2])
            if code:
                raise TraceTransferError(f"{words[-1]}; {directory / LOG} says more")
            if not (directory / DONE).is_file():
                raise StopRequested(words[-1])
            (directory / DONE).unlink()
        else:
            KINDS[ticket.kind](ticket, reporter, stop)
        _finish(ticket, record, times())


def last_lines(log: Path, start: int = 0) -> list[str]:
    """The last ones that are not empty, of a log or of what it has from a byte on; none where it cannot be read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(start, log.stat().st_size - READ_BACK))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()]


@contextmanager
def _followed(log: Path, reporter: Piped) -> Iterator[Callable[[], list[str]]]:
    """While it lasts the last line that other processes have put into the log is sent to whoever shows it; gives the
    last lines when it is called."""
    start, ended = log.stat().st_size, threading.Event()

    def said() -> list[str]:
        return last_lines(log, start) or [""]

    def follow() -> None:
        shown = ""
        while not ended.wait(LOOK_EVERY):
            if (line := said()[-1]) != shown:
                reporter.send("said", line)
                shown = line

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        ended.set()
        thread.join()


def _finish(ticket: Any, record: dict[str, Any], times: Times) -> None:
    """Hash what the step wrote, and say that it is finished."""
    directory = ticket.directory
    files = {str(file.relative_to(directory)): file for file in step_files(directory)}
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    made = StepFile(
        **record, files={name: sha256_file(file) for name, file in files.items()},
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
    found = []
    for stage in stream.stages:
        if stage.adapter is None:
            found.append(stage.num_elements)
        else:
            stored = stored_tensors(directory / stage.adapter / "adapter_model.safetensors").values()
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

    @classmethod
    def now(cls) -> Times:
        spent = os.times()
        return cls(time.monotonic(), spent.user + spent.system + spent.children_user + spent.children_system)

    def since(self, start: Times, before: Times) -> Times:
        return Times(
            round(before.seconds + self.seconds - start.seconds, 3),
            round(before.cpu_seconds + self.cpu_seconds - start.cpu_seconds, 3),
        )


def read_times(directory: Path) -> Times:
    """What a step had taken when it was last worked on; nothing where that cannot be read."""
    try:
        return read_fields(directory / TIME, Times)
    except ArtefactError:
        return Times()


@contextmanager
def _timed(directory: Path) -> Iterator[Callable[[], Times]]:
    """Tells what a step has taken since it was first begun, however often it was stopped."""
    before = read_times(directory)
    start, done = Times.now(), threading.Event()

    def so_far() -> Times:
        return Times.now().since(start, before)

    def note() -> None:
        while not done.wait(NOTE_TIME):
            _note_time(directory, so_far())

    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    try:
        yield so_far
    except BaseException:
        done.set()
        thread.join()
        _note_time(directory, so_far())
        raise
    done.set()
    thread.join()


def _note_time(directory: Path, times: Times) -> None:
    with suppress(OSError, TraceTransferError):  # the step itself will say that the disk is full
        write_text(directory / TIME, json.dumps(asdict(times)))


def _told(error: BaseException, log: Path) -> tuple[str, str]:
    from trace_transfer.stopping import StopRequested

    if isinstance(error, StopRequested):
        return "stopped", str(error)
    if isinstance(error, UserError):
        return "user error", str(error)
    if isinstance(error, (TraceTransferError, OSError)):
        return "error", str(error)
    traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()
    tail = log.read_text("utf-8", "replace").splitlines()[-TAIL:]
    return "error", "\n  ".join([f"{type(error).__name__}: {error}; the end of {log}:", *tail])


def _end_with_parent() -> None:
    """This process ends when the run's is killed. The server that forked it would not end before it, so the system's
    own signal on a parent's death would never come."""
    run = multiprocessing.parent_process()
    assert run is not None  # a target of a process

    def watch() -> None:
        wait([run.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/kfd").exists()
