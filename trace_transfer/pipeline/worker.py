"""One step in a process of its own: its log, its lock, its cost, and its record once it is finished.

A process of its own gives its memory back, can be measured, and cannot leave anything behind in the next step. All are
forked from one server that has the libraries imported; where a GPU is, each is started anew, as CUDA does not survive
a fork.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
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
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trace_transfer.artefacts import StreamFile, library_versions, read_artefact, to_json
from trace_transfer.artefacts.run import Cost, StepFile
from trace_transfer.errors import TraceTransferError, UserError
from trace_transfer.files import remove_leftovers, sha256_file, write_text
from trace_transfer.pipeline.status import LOCK, LOG, RECORD, TIME, remember, step_files
from trace_transfer.pipeline.steps import LAUNCHED
from trace_transfer.progress import Advance, Silent, quiet_libraries

if TYPE_CHECKING:
    from trace_transfer.pipeline.kinds import Ticket

LOOK_EVERY = 0.1  # s
NOTE_TIME = 5.0  # s between notes of the time that a step has taken, so that a kill loses no more
TAIL = 12  # lines of a log that are shown when a step fails in a way that nobody foresaw
PATIENCE = 30.0  # s in which a process that an interrupted run left may end, before its step is begun again


def context(jobs: int) -> Any:
    """How processes are begun; the same one for a whole run."""
    if _has_gpu():
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["trace_transfer.pipeline.kinds"])
    first = found.Process(target=_nothing)  # waits until the libraries are imported, while Ctrl-C can still come
    first.start()
    first.join()
    return found


def _nothing() -> None:
    """A process that ends at once."""


class Piped:
    """Reports progress to the process that shows it."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.number = connection, 0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        self.number += 1
        number = self.number
        self._send("task", number, description, total)
        try:
            yield lambda status="": self._send("advance", number, status)
        finally:
            self._send("end", number)

    def note(self, message: str) -> None:
        self._send("note", message)

    def _send(self, *event: Any) -> None:
        with suppress(OSError):  # nobody looks any more; this process ends with its parent
            self.connection.send(event)


def work(ticket: Ticket, record: dict[str, Any], threads: int | None, gpu: int | None, processes: int,
         connection: Connection) -> None:  # fmt: skip
    """Do a step, as the target of a process; the last event sent says how it ended."""
    _end_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    reporter, directory = Piped(connection), ticket.directory
    with (directory / LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    ended: tuple[str, str]
    try:
        _do(ticket, record, threads, processes, reporter)
        ended = ("done", "")
    except KeyboardInterrupt:
        ended = ("interrupted", "")
    except BaseException as error:
        ended = _told(error, directory / LOG)
    reporter._send(*ended)
    connection.close()


def run_ticket(file: Path) -> None:
    """A step in this process, for ranks of a launcher; leaves no record."""
    from trace_transfer.pipeline.kinds import KINDS, Ticket
    from trace_transfer.progress import Terminal, is_first_rank
    from trace_transfer.stopping import stop_on_sigterm

    quiet_libraries()
    ticket = Ticket.read(file)
    with stop_on_sigterm() as stop:
        KINDS[ticket.kind](ticket, Terminal() if is_first_rank() else Silent(), stop)


def _do(ticket: Ticket, record: dict[str, Any], threads: int | None, processes: int, reporter: Piped) -> None:
    import torch

    from trace_transfer.launching import check_processes, run_processes
    from trace_transfer.pipeline.kinds import KINDS, prepare
    from trace_transfer.stopping import StopRequested, stop_on_sigterm

    quiet_libraries()
    if threads is not None:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    directory = ticket.directory
    with locked(directory, PATIENCE), _timed(directory) as times, stop_on_sigterm() as stop:
        if (directory / RECORD).is_file():  # it was finished, and something of it is gone or was changed: all anew
            _clear(directory)
        remove_leftovers(directory)
        file = ticket.write()
        prepare(ticket)
        if processes > 1 and ticket.kind in LAUNCHED:
            check_processes(processes)
            code = run_processes(processes, ["step", str(file)])
            if stop.requested:
                raise StopRequested("stopped by SIGTERM; the same command goes on from there")
            if code:
                raise TraceTransferError(f"{processes} processes: exit code {code}; {directory / LOG} says more")
        else:
            KINDS[ticket.kind](ticket, reporter, stop)
        _finish(ticket, record, times())


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
    for name in (TIME, "ticket.json", LOCK):
        (directory / name).unlink(missing_ok=True)


def _trained(directory: Path) -> int | None:
    """Elements of the most that any stage trained: those of its core set, or of its adapters."""
    from trace_transfer.models import numel
    from trace_transfer.tensor_file import stored_tensors

    if not (directory / "stream.json").is_file():
        return None
    stream: StreamFile = read_artefact(directory / "stream.json", StreamFile)
    found = []
    for stage in stream.stages:
        if stage.adapter is None:
            found.append(stage.num_elements)
        else:
            stored = stored_tensors(directory / stage.adapter / "adapter_model.safetensors").values()
            found.append(sum(numel(tensor.spec.shape) for tensor in stored))
    return max(found)


@contextmanager
def locked(directory: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a directory alone. The system lets go of it when this process ends in whatever way.

    Args:
        patience: seconds in which another process may still let go of it.

    Raises:
        UserError: another process holds it.
    """
    until = time.monotonic() + patience
    while (file := _lock(directory / LOCK)) is None:
        if time.monotonic() >= until:
            raise UserError(f"{directory}: another run is at work here; wait for it, stop it, or name another --out")
        time.sleep(LOOK_EVERY)
    with file:
        yield


def _lock(path: Path) -> IO[str] | None:
    """The file, held alone, or None while another process holds it."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:  # who held it before may have removed it
            return file
    except OSError:
        pass
    file.close()
    return None


def _clear(directory: Path) -> None:
    """Remove what a step made; its log is open, and its lock is held."""
    (directory / RECORD).unlink()  # first: what is left without it counts as begun and not finished
    for path in directory.iterdir():
        if path.name not in (LOCK, LOG):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@dataclass(frozen=True)
class Times:
    """Seconds that a step has taken, of the clock and of processors, without the time in which nobody worked on it."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def now(cls) -> Times:
        spent = os.times()
        return cls(time.monotonic(), spent.user + spent.system + spent.children_user + spent.children_system)

    def since(self, start: Times, before: Times) -> Times:
        return Times(
            round(before.seconds + self.seconds - start.seconds, 3),
            round(before.cpu_seconds + self.cpu_seconds - start.cpu_seconds, 3),
        )


@contextmanager
def _timed(directory: Path) -> Iterator[Callable[[], Times]]:
    """Tells what a step has taken since it was first begun, however often it was stopped."""
    try:
        before = Times(**json.loads((directory / TIME).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        before = Times()
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
