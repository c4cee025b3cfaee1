"""Several processes of this program which train together: who this one is among them, and `--processes`.

A small launcher for one machine; on a cluster torchrun, accelerate, DeepSpeed or srun serves. Every process gets the
environment that torchrun sets, too. Not torchrun itself: measured on torch 2.13, it kills a rank that still writes its
checkpoint 30 s after SIGTERM, leaves its ranks running when it is killed itself, ends with 1 whatever the ranks' exit
codes are, shows 30 lines of its own traceback below a rank's message, and takes 3.2 s to start instead of 0.4 s.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import FrameType

from trace_transfer.errors import UserError, listing
from trace_transfer.stopping import handling

GRACE = 10.0  # s from being told to stop, after another one failed or Ctrl-C, to being killed
SAME_REASON = 2.0  # s in which the others may fail of themselves, and say why, after one failed
LOOK_EVERY = 0.05  # s
SHOWN = 4000  # characters of what a rank that failed said last
FORWARDED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
USERS_MISTAKE, INTERRUPTED = 2, 130  # exit codes
KILLED = tuple(128 + number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS))  # not for another's end
LOWEST = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_PORT": 1}
LAST_PORT = 65535
SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
SLURM_PORTS = 20000  # the first of as many, from which a job takes one
PROGRAM = (sys.executable, "-m", "trace_transfer")
VARIABLES = (*LOWEST, "MASTER_ADDR")
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_PR_SET_PDEATHSIG = 1  # Linux, <sys/prctl.h>


@dataclass(frozen=True)
class Place:
    """Who this process is among those that a launcher started; alone it is the first of one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launched: bool = False


def launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as torchrun sets them, for several tasks of srun: from
    SLURM's own variables. Empty elsewhere: in a batch script SLURM_NTASKS says how many tasks srun may start there, and
    torchrun, started by srun on each node, sets RANK itself.
    """
    found = {ours: environment.get(theirs, "") for ours, theirs in SLURM.items()}
    if found["WORLD_SIZE"] in ("", "1") or "RANK" in environment or "WORLD_SIZE" in environment:
        return {}
    if environment.get("SLURM_GPUS_PER_TASK") == "1":  # each sees its own alone
        found["LOCAL_RANK"] = "0"
    nodes = environment.get("SLURM_STEP_NODELIST", "")  # gpu[03-05,9],head
    found["MASTER_ADDR"] = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodes).partition(",")[0]
    numbers = [environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID")]
    found["MASTER_PORT"] = str(SLURM_PORTS + sum(int(one) for one in numbers if one.isdigit()) % SLURM_PORTS)
    return found | {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in environment}


def place_among_ranks(environment: Mapping[str, str] | None = None) -> Place:
    """What a launcher (torchrun, accelerate, deepspeed, srun, a script of one's own) has set; without RANK and
    WORLD_SIZE, or several tasks of srun, there is none.

    Raises:
        UserError: variables are missing, are no numbers, or contradict each other: processes would wait for others that
            never come. All problems at once.
    """
    environment = os.environ if environment is None else environment
    environment = {**environment, **launcher_variables(environment)}
    numbers, problems = {}, []
    launched = [name for name in ("RANK", "WORLD_SIZE") if name in environment]
    for name, lowest in LOWEST.items():
        if name not in environment or not (launched or name == "LOCAL_RANK"):  # some clusters always set MASTER_PORT
            continue
        try:
            numbers[name] = int(environment[name])
        except ValueError:
            problems.append(f"{name} is {environment[name]!r}, expected a whole number")
        else:
            if numbers[name] < lowest:
                problems.append(f"{name} is {numbers[name]}, expected {lowest} or more")
            elif name == "MASTER_PORT" and numbers[name] > LAST_PORT:
                problems.append(f"{name} is {numbers[name]}, expected {LAST_PORT} or less")
    if launched:
        given = f"{' and '.join(launched)} {'are' if launched[1:] else 'is'}"
        problems += [f"{name} is not set, and {given}" for name in NEEDED if not environment.get(name, "").strip()]
    rank, size, local = numbers.get("RANK", 0), numbers.get("WORLD_SIZE", 1), numbers.get("LOCAL_RANK", 0)
    if launched and size > 0:
        problems += [
            f"{name} is {number}, expected less than WORLD_SIZE, which is {size}"
            for name, number in (("RANK", rank), ("LOCAL_RANK", local))
            if "WORLD_SIZE" in numbers and number >= size
        ]
    if problems:
        there = [name for name in VARIABLES if name in environment]
        raise UserError(
            "what a launcher has set cannot be used. Start all processes with torchrun, accelerate, deepspeed, srun or "
            f"--processes, or unset {', '.join(there)} for one process alone:\n" + listing(problems)
        )
    return Place(rank, size, local, launched=bool(launched))


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
    if (place := place_among_ranks()).launched:
        raise UserError(
            f"--processes {count}: a launcher (torchrun, deepspeed, srun …) started this process already (as "
            f"{place.rank} of {place.size}); leave --processes out, or start it without the launcher"
        )
    if excess := excess_of(count):
        raise UserError(f"--processes {count}: {excess}")


def excess_of(count: int) -> str | None:
    """Why this machine has no room for so many processes; None if it has."""
    gpus, num_cores = num_gpus(), _num_cores()
    if gpus and count > gpus:
        return f"one needs a GPU each, and this machine has {gpus}"
    return f"one needs a core each, and this process may use {num_cores}" if count > num_cores else None


def run_processes(
    count: int,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    command: Sequence[str] = PROGRAM,
    grace: float = GRACE,
) -> int:
    """Start this program `count` times with the same arguments and wait for all of them.

    Rank 0 has this process's stdout and stderr. What the others say is shown if they fail for a reason of their own,
    and kept then; the last line says which rank failed first, how, and where its output is. SIGTERM, SIGHUP and Ctrl-C
    are handed on to all. Once one fails, the others are told to stop (SIGTERM), and killed after `grace` seconds, so
    that nobody waits for ever. After SIGTERM from outside they take their time, as saving can be long. When this
    process is killed, they are, too (Linux).

    Args:
        environment: what they see beside the variables that tell who they are; default is this process's.
        command: what is started, for tests.

    Returns:
        0 if all ended with 0, 130 after Ctrl-C; otherwise rank 0's exit code, or that of the first other rank that
        failed of itself. 128 + n for one that signal n ended.
    """
    environment = {**(os.environ if environment is None else environment)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _num_cores() // count)))
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(_free_port())
    ranks: list[_Rank] = []
    logs = Path(tempfile.mkdtemp(prefix="trace-transfer-ranks-"))
    signals: list[int] = []
    with handling(FORWARDED, lambda number, frame: signals.append(number)):
        try:
            for number in range(count):
                said = logs / f"rank-{number}.txt" if number else None
                own = {**environment, "RANK": str(number), "LOCAL_RANK": str(number)}
                ranks.append(_Rank(number, _start([*command, *arguments], own, said), said))
            ended, interrupted = _wait(ranks, signals, grace)
            return _report(ranks, ended, interrupted)
        finally:  # whatever happens here, nobody is left behind
            _kill(ranks)
            with suppress(OSError):  # something is kept there
                logs.rmdir()


def run_on_nodes(
    nodes: int,
    count: int,
    arguments: Sequence[str],
    *,
    command: Sequence[str] = PROGRAM,
) -> int:
    """Start this program `count` times on each node of the SLURM job that this process is the batch script of, with
    srun, and wait for all of them. srun kills at SIGTERM, and hands SIGUSR2 on, which says the same here.

    Returns:
        The highest exit code.
    """
    cores = max(1, int(os.environ.get("SLURM_CPUS_ON_NODE", count)) // count)
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * count}", f"--ntasks-per-node={count}",
            f"--cpus-per-task={cores}", "--kill-on-bad-exit=1", "--quiet"]  # fmt: skip
    process = subprocess.Popen([*srun, *command, *arguments], stdin=subprocess.DEVNULL, process_group=0)

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGUSR2 if number == signal.SIGTERM else number)

    with handling(FORWARDED, hand_on):
        code = process.wait()
    return 128 - code if code < 0 else code


@dataclass
class _Rank:
    """One process. `said` is the file of its output, where that is not this process's own; `told`: it was stopped from
    here, so that its end tells nothing."""

    number: int
    process: subprocess.Popen[bytes]
    said: Path | None
    code: int | None = None
    told: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended badly of itself."""
        return bool(self.code) and not self.told

    @property
    def text(self) -> str:
        return self.said.read_text("utf-8", "replace").strip() if self.said is not None else ""


def _wait(ranks: Sequence[_Rank], signals: list[int], grace: float) -> tuple[list[_Rank], bool]:
    """Hand signals on, and stop the others once one fails; returns the ranks in the order of their ends, and whether
    Ctrl-C came."""
    ended: list[_Rank] = []
    interrupted, stop_at, kill_at = False, inf, inf
    while True:
        now = time.monotonic()
        while signals:
            number = signals.pop(0)
            if number == signal.SIGINT:  # at once when it comes again
                interrupted, kill_at = True, now if interrupted else now + grace
            for rank in ranks:
                rank.process.send_signal(number)
        for rank in ranks:
            if rank.code is None and (code := rank.process.poll()) is not None:
                rank.code = 128 - code if code < 0 else code
                ended.append(rank)
                if rank.failed and stop_at == kill_at == inf:
                    stop_at = now + min(SAME_REASON, grace)
        if len(ended) == len(ranks):
            return ended, interrupted
        if now >= stop_at:
            stop_at, kill_at = inf, now + grace
            for rank in ranks:
                rank.told |= rank.code is None
                rank.process.send_signal(signal.SIGTERM)
        if now >= kill_at:
            _kill(ranks)
        time.sleep(LOOK_EVERY)


def _kill(ranks: Sequence[_Rank]) -> None:
    """End all that are still there, with whatever they have started."""
    for rank in ranks:
        if rank.code is None:
            rank.told = True
            with suppress(ProcessLookupError):
                os.killpg(rank.process.pid, signal.SIGKILL)


def _report(ranks: Sequence[_Rank], ended: Sequence[_Rank], interrupted: bool) -> int:
    """The exit code of all, once what explains it has been said: in the last line, who failed first."""
    interrupted = interrupted and any(rank.code for rank in ranks)
    failed = [] if interrupted else [rank for rank in ranks if rank.failed]
    spoken = {failed[0].code} if failed and failed[0].number == 0 else set()
    for rank in failed:
        if rank.code not in spoken and rank.text:
            print(f"rank {rank.number} said:\n{rank.text[-SHOWN:]}", file=sys.stderr)
        spoken.add(rank.code)
    causes = sorted((rank for rank in ended if rank in failed), key=lambda rank: rank.code not in KILLED)
    if causes and not causes[0].code == ranks[0].code == USERS_MISTAKE:  # which rank 0 has told of everybody
        first, code = causes[0], causes[0].code or 0
        how = f"signal {code - 128}" if code > 128 else f"exit code {code}"
        hint = " (was it out of memory?)" if code == 128 + signal.SIGKILL else ""
        kept = f"; what it said is in {first.said}" if first.text else ""
        print(f"rank {first.number} ended with {how}{hint}{kept}", file=sys.stderr)
    for rank in ranks:
        if rank.said is not None and (rank not in failed or not rank.text):
            rank.said.unlink()
    codes = [rank.code for rank in (*failed, *ranks) if rank.code]
    return INTERRUPTED if interrupted else next(iter(codes), 0)


def _start(command: Sequence[str], environment: Mapping[str, str], said: Path | None) -> subprocess.Popen[bytes]:
    """In a process group of its own, so that Ctrl-C reaches it once, from here."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it was gone before this was said
                os.kill(os.getpid(), signal.SIGKILL)

    output = said.open("wb") if said is not None else None
    try:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
            preexec_fn=end_with_parent,
        )  # fmt: skip
    finally:
        if output is not None:
            output.close()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def num_gpus() -> int:
    """GPUs that this process sees."""
    import torch

    return torch.cuda.device_count()
