"""Several processes of this program which train together: who this one is among them, and `--processes`.

A small launcher for the common case, one machine; on a cluster it is torchrun's or DeepSpeed's. Every process gets the
environment that those set, too, and the first one (rank 0) speaks for all.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedRandom
from pathlib import Path

from trace_transfer.errors import UserError, listing

GRACE = 10.0  # s from being told to stop, after another one failed or Ctrl-C, to being killed
SAME_REASON = 2.0  # s in which the others may fail of themselves, and say why, after one failed
LOOK_EVERY = 0.05  # s
SHOWN = 4000  # characters of what a rank that failed said last
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
USERS_MISTAKE, INTERRUPTED = 2, 130  # exit codes
KILLED = tuple(128 + number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS))  # not for another's end
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
MAX_PORT = 65535
_PR_SET_PDEATHSIG = 1  # Linux, <sys/prctl.h>


@dataclass(frozen=True)
class Place:
    """Who this process is among those that a launcher started; alone it is the first of one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launched: bool = False


def place_among_ranks(environment: Mapping[str, str] | None = None) -> Place:
    """Read what a launcher (torchrun, deepspeed, a script of one's own) has set; without RANK and WORLD_SIZE there is
    none.

    Raises:
        UserError: variables are missing, are no numbers, or contradict each other: processes would wait for others that
            never come. All problems at once.
    """
    environment = os.environ if environment is None else environment
    numbers, problems = {}, []
    for name in NUMBERS:
        if name in environment:
            try:
                numbers[name] = int(environment[name])
            except ValueError:
                problems.append(f"{name} is {environment[name]!r}, expected a whole number")
    launched = [name for name in ("RANK", "WORLD_SIZE") if name in environment]
    if not launched and not problems and numbers.get("LOCAL_RANK", 0) >= 0:
        return Place(local_rank=numbers.get("LOCAL_RANK", 0))
    if launched:
        given = f"{' and '.join(launched)} {'are' if launched[1:] else 'is'}"
        problems += [f"{name} is not set, and {given}" for name in NEEDED if not environment.get(name, "").strip()]
    problems += _contradictions(numbers)
    if problems:
        there = [name for name in (*NUMBERS, "MASTER_ADDR") if name in environment]
        raise UserError(
            "what a launcher has set cannot be used. Start all processes with torchrun, deepspeed or --processes, or "
            f"unset {', '.join(there)} for one process alone:\n" + listing(problems)
        )
    return Place(numbers["RANK"], numbers["WORLD_SIZE"], numbers.get("LOCAL_RANK", 0), launched=True)


def _contradictions(numbers: Mapping[str, int]) -> list[str]:
    """Numbers that no launcher gives."""
    lowest = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": 1}
    problems = [
        f"{name} is {number}, expected {lowest[name]} or more"
        for name, number in numbers.items()
        if number < lowest[name]
    ]
    local_size = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in numbers else "WORLD_SIZE"
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", local_size)):
        if rank in numbers and numbers[rank] >= numbers.get(size, numbers[rank] + 1) > 0:
            problems.append(f"{rank} is {numbers[rank]}, expected less than {size}, which is {numbers[size]}")
    if numbers.get("LOCAL_WORLD_SIZE", 0) > (most := numbers.get("WORLD_SIZE", 0)) > 0:
        problems.append(f"LOCAL_WORLD_SIZE is {numbers['LOCAL_WORLD_SIZE']}, more than WORLD_SIZE, which is {most}")
    if (port := numbers.get("MASTER_PORT", 1)) > MAX_PORT:
        problems.append(f"MASTER_PORT is {port}, expected {MAX_PORT} at most")
    return problems


def is_first_rank() -> bool:
    """Whether this process is the only one, or the first of those that a launcher started."""
    return place_among_ranks().rank == 0


def check_processes(count: int) -> None:
    """Refuse more processes than this machine has room for: one a GPU, or one a core where there is no GPU.

    Raises:
        UserError: naming how many there are and how many were asked for; or a launcher started this process already.
    """
    if count < 1:
        raise UserError(f"--processes {count}: at least 1 is needed")
    if "RANK" in os.environ:
        raise UserError(
            f"--processes {count}: a launcher (torchrun, deepspeed, srun …) started this process already (RANK is "
            f"{os.environ['RANK']}, WORLD_SIZE {os.environ.get('WORLD_SIZE', 'not set')}); leave --processes out, or "
            "start it without the launcher"
        )
    if excess := excess_of(count):
        raise UserError(f"--processes {count}: {excess}")


def excess_of(count: int) -> str | None:
    """Why this machine has no room for so many processes; None if it has."""
    num_gpus, num_cores = _num_gpus(), _num_cores()
    if num_gpus and count > num_gpus:
        return f"one needs a GPU each, and this machine has {num_gpus}"
    return f"one needs a core each, and this process may use {num_cores}" if count > num_cores else None


def run_processes(
    count: int,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    command: Sequence[str] = (sys.executable, "-m", "trace_transfer"),
    grace: float = GRACE,
) -> int:
    """Start this program `count` times with the same arguments and wait for all of them.

    Rank 0 has this process's stdout and stderr; what the others say is shown if they fail for a reason of their own,
    and kept then. The last line says which rank failed first, how, and where what it said is kept.
    SIGTERM, SIGHUP and Ctrl-C are handed on to all. Once one fails the others are told to stop (SIGTERM), and killed
    after `grace` seconds, so that nobody waits for ever; after SIGTERM from outside alone they may take their time, as
    saving can be long. When this process is killed, they are, too (Linux).

    Args:
        environment: what they see beside the variables that tell who they are; default is this process's.
        command: what is started, for tests.
        grace: seconds.

    Returns:
        0 if all ended with 0, 130 after Ctrl-C; otherwise rank 0's exit code, or the first of the others that failed of
        itself. 128 + n for one that signal n ended.
    """
    environment = {**(os.environ if environment is None else environment)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // count)))
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(_free_port())
    with ExitStack() as stack:
        signals = stack.enter_context(_noted_signals())
        group = _Group(grace)
        stack.callback(group.kill)  # whatever happens here, nobody is left behind
        logs = Path(tempfile.mkdtemp(prefix="trace-transfer-ranks-"))
        stack.callback(_remove_empty, logs)
        for rank in range(count):
            said = None if rank == 0 else stack.enter_context((logs / f"rank-{rank}.txt").open("w+b"))
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            group.ranks.append(_Rank(rank, _start([*command, *arguments], own, said), said))
        while not group.look(signals):
            time.sleep(LOOK_EVERY)
        return group.report()


def _remove_empty(logs: Path) -> None:
    """Nothing is left of a launch that ended well."""
    with suppress(OSError):  # something was kept
        logs.rmdir()


@dataclass
class _Rank:
    """One process. `told` says whether it was stopped from here, so that its end tells nothing."""

    number: int
    process: subprocess.Popen[bytes]
    said: BufferedRandom | None
    code: int | None = None
    told: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended badly of itself."""
        return bool(self.code) and not self.told

    @property
    def end(self) -> str:
        """How it ended, and where what it said is kept."""
        assert self.code is not None  # it has ended
        how = f"signal {self.code - 128}" if self.code > 128 else f"exit code {self.code}"
        hint = " (was it out of memory?)" if self.code == 128 + signal.SIGKILL else ""
        kept = f"; what it said is in {self.said.name}" if self.said is not None and self.text else ""
        return f"rank {self.number} ended with {how}{hint}{kept}"

    @property
    def text(self) -> str:
        """What it said, if that was not to this process's own stderr."""
        if self.said is None:
            return ""
        self.said.seek(0)
        return self.said.read().decode("utf-8", "replace").strip()

    def forget(self) -> None:
        """Remove what it said, from its place."""
        if self.said is not None:
            Path(self.said.name).unlink()

    def tell(self, number: int) -> None:
        if self.code is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


@dataclass
class _Group:
    """All processes, and how far stopping them came."""

    grace: float
    ranks: list[_Rank] = field(default_factory=list)
    ended: list[_Rank] = field(default_factory=list)  # in that order
    interrupted: bool = False
    stop_at: float = float("inf")
    kill_at: float = float("inf")

    def look(self, signals: list[int]) -> bool:
        """Hand on what came, see who ended, stop the others if one failed; returns whether all have ended."""
        now = time.monotonic()
        while signals:
            self._hand_on(signals.pop(0), now)
        for rank in self.ranks:
            if rank.code is None and (code := rank.process.poll()) is not None:
                rank.code = 128 - code if code < 0 else code
                self.ended.append(rank)
                if rank.failed and self.kill_at == self.stop_at == float("inf"):
                    self.stop_at = now + min(SAME_REASON, self.grace)
        alive = [rank for rank in self.ranks if rank.code is None]
        if now >= self.stop_at:
            self.stop_at, self.kill_at = float("inf"), now + self.grace
            for rank in alive:
                rank.told = True
                rank.tell(signal.SIGTERM)
        if now >= self.kill_at:
            self.kill()
        return not alive

    def _hand_on(self, number: int, now: float) -> None:
        if number == signal.SIGINT:
            self.kill_at = now if self.interrupted else now + self.grace  # at once when it comes again
            self.interrupted = True
        for rank in self.ranks:
            rank.tell(number)

    def kill(self) -> None:
        """End all that are still there, with whatever they have started."""
        for rank in self.ranks:
            if rank.code is None:
                rank.told = True
                with suppress(ProcessLookupError):
                    os.killpg(rank.process.pid, signal.SIGKILL)

    def report(self) -> int:
        """The exit code of all, once what explains it has been said: in the last line, who failed first."""
        interrupted = self.interrupted and any(rank.code for rank in self.ranks)
        failed = [] if interrupted else [rank for rank in self.ranks if rank.failed]
        causes = sorted((rank for rank in self.ended if rank in failed), key=lambda rank: rank.code not in KILLED)
        spoken = {failed[0].code} if failed and failed[0].number == 0 else set()
        for rank in failed:
            if rank.code not in spoken and rank.text:
                print(f"rank {rank.number} said:\n{rank.text[-SHOWN:]}", file=sys.stderr)
            spoken.add(rank.code)
        for rank in self.ranks:
            if rank not in failed or not rank.text:
                rank.forget()
        if causes and not causes[0].code == self.ranks[0].code == USERS_MISTAKE:  # which rank 0 has told of everybody
            print(causes[0].end, file=sys.stderr)
        if interrupted:
            return INTERRUPTED
        codes = [rank.code for rank in failed] + [rank.code for rank in self.ranks if rank.code]
        return codes[0] or 0 if codes else 0


def _start(
    command: Sequence[str], environment: Mapping[str, str], said: BufferedRandom | None
) -> subprocess.Popen[bytes]:
    """In a process group of its own, so that Ctrl-C reaches it once, from here."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it was gone before this was said
                os.kill(os.getpid(), signal.SIGKILL)

    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, process_group=0,
        preexec_fn=end_with_parent,
    )  # fmt: skip


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """While it lasts the signals that are handed on are put into a list instead of ending this process."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in FORWARDED}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
