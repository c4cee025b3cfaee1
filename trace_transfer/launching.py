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
from typing import Any

from trace_transfer.errors import UserError
from trace_transfer.stopping import handling

GRACE = 10.0  # s from being told to stop, after another one failed or Ctrl-C, to being killed
SAME_REASON = 2.0  # s in which the others may fail of themselves, and say why, after one failed
LOOK_EVERY = 0.05  # s
SHOWN = 4000  # characters of what a rank that failed said last
FORWARDED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
USERS_MISTAKE, INTERRUPTED = 2, 130  # exit codes
KILLED = tuple(128 + number for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS))  # not for another's end
SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
SLURM_PORTS = 20000  # the first of as many, from which a job takes one
PROGRAM = (sys.executable, "-m", "trace_transfer")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "MASTER_ADDR")
NUMBERS = {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "0"}  # what stands for one that is not set
_PR_SET_PDEATHSIG = 1  # Linux, <sys/prctl.h>


@dataclass(frozen=True)
class Place:
    """Who this process is among those that a launcher started; alone it is the first of one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launched: bool = False


def launcher_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would set, for several tasks of srun, from SLURM's variables. Empty elsewhere: in a batch script
    SLURM_NTASKS is how many tasks srun may start, and torchrun, started by srun on each node, sets RANK itself."""
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
    WORLD_SIZE, or several tasks of srun, there is none. A UserError where variables are missing or contradict each
    other: others would be waited for that never come."""
    environment = os.environ if environment is None else environment
    environment = {**environment, **launcher_variables(environment)}
    if "RANK" not in environment and "WORLD_SIZE" not in environment:  # some clusters always set MASTER_PORT
        return Place()
    numbers = [environment.get(name) or default for name, default in NUMBERS.items()]
    if all(map(str.isdecimal, numbers)) and environment.get("MASTER_ADDR") and environment.get("MASTER_PORT"):
        rank, size, local_rank = map(int, numbers)
        if rank < size:
            return Place(rank, size, local_rank, launched=True)
    found = ", ".join(f"{name} is {environment.get(name) or 'not set'}" for name in VARIABLES)
    raise UserError(
        f"what a launcher has set cannot be used: {found}. Start all processes with torchrun, accelerate, deepspeed, "
        "srun or --processes, or unset these for one process alone"
    )


def is_first_rank() -> bool:
    """Whether this process is the only one, or the first of those that a launcher started."""
    return place_among_ranks().rank == 0


def check_processes(count: int) -> None:
    """Refuse more processes than this machine has room for: one a GPU, or one a core where there is no GPU."""
    if excess := excess_of(count):
        raise UserError(f"--processes {count}: {excess}")


def excess_of(count: int) -> str | None:
    """Why this machine has no room for so many processes; None if it has."""
    gpus, cores = num_gpus(), num_cores()
    if gpus and count > gpus:
        return f"one needs a GPU each, and this machine has {gpus}"
    return f"one needs a core each, and this process may use {cores}" if count > cores else None


def run_processes(
    count: int, arguments: Sequence[str], environment: Mapping[str, str] | None = None, *,
    command: Sequence[str] = PROGRAM, grace: float = GRACE,
) -> int:  # fmt: skip
    """Start this program `count` times with the same arguments and wait for all of them.

    Rank 0 has this process's stdout and stderr. What the others say is shown and kept if they fail for a reason of
    their own. Signals are handed on to all. Once one fails, the others are told to stop, and killed after `grace`
    seconds; after SIGTERM from outside they take their time, as saving can be long. When this process is killed, they
    are, too (Linux).

    Returns:
        0 if all ended with 0, 130 after Ctrl-C; otherwise rank 0's exit code, or that of the first other rank that
        failed of itself. 128 + n for one that signal n ended.
    """
    environment = {**(os.environ if environment is None else environment)}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // count)))
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(_free_port())
    ranks: list[_Rank] = []
    logs = Path(tempfile.mkdtemp(prefix="trace-transfer-ranks-"))
    signals: list[int] = []
    with handling(FORWARDED, lambda number, frame: signals.append(number)):
        try:
            for number in range(count):
                said = logs / f"rank-{number}.txt"
                own = {**environment, "RANK": str(number), "LOCAL_RANK": str(number)}
                with said.open("wb") as file:
                    process = _start([*command, *arguments], own, file if number else None)
                ranks.append(_Rank(number, process, said))
            return _report(ranks, *_wait(ranks, signals, grace))
        finally:  # whatever happens here, nobody is left behind
            _kill(ranks)
            with suppress(OSError):  # something is kept there
                logs.rmdir()


def run_on_nodes(nodes: int, count: int, arguments: Sequence[str]) -> int:
    """Start this program `count` times on each node of the SLURM job that this process is the batch script of, with
    srun; the highest exit code. srun kills at SIGTERM, and hands SIGUSR2 on, which says the same here."""
    cores = max(1, int(os.environ.get("SLURM_CPUS_ON_NODE", count)) // count)
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * count}", f"--ntasks-per-node={count}",
            f"--cpus-per-task={cores}", "--kill-on-bad-exit=1", "--quiet"]  # fmt: skip
    process = subprocess.Popen([*srun, *PROGRAM, *arguments], stdin=subprocess.DEVNULL, process_group=0)

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(signal.SIGUSR2 if number == signal.SIGTERM else number)

    with handling(FORWARDED, hand_on):
        code = process.wait()
    return 128 - code if code < 0 else code


@dataclass
class _Rank:
    """One process. `said` is the file of its output, empty for the first one, which has this process's own; `told`: it
    was stopped from here, so that its end tells nothing."""

    number: int
    process: subprocess.Popen[bytes]
    said: Path
    code: int | None = None
    told: bool = False

    @property
    def failed(self) -> bool:
        """Whether it ended badly of itself."""
        return bool(self.code) and not self.told

    @property
    def text(self) -> str:
        return self.said.read_text("utf-8", "replace").strip()


def _wait(ranks: Sequence[_Rank], signals: list[int], grace: float) -> tuple[list[_Rank], bool]:
    """Hand signals on, and stop the others once one fails; the ranks in the order of their ends, and if Ctrl-C came."""
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
    causes = sorted((rank for rank in ended if rank in failed), key=lambda rank: rank.code not in KILLED)
    if causes and not causes[0].code == ranks[0].code == USERS_MISTAKE:  # which rank 0 has told of everybody
        first, code = causes[0], causes[0].code or 0
        if first.text and not (ranks[0].failed and ranks[0].code == code):  # which has said the same
            print(f"rank {first.number} said:\n{first.text[-SHOWN:]}", file=sys.stderr)
        how = f"signal {code - 128}" if code > 128 else f"exit code {code}"
        hint = " (was it out of memory?)" if code == 128 + signal.SIGKILL else ""
        kept = f"; what it said is in {first.said}" if first.text else ""
        print(f"rank {first.number} ended with {how}{hint}{kept}", file=sys.stderr)
    for rank in ranks:
        if rank not in failed or not rank.text:
            rank.said.unlink()
    codes = [rank.code for rank in (*failed, *ranks) if rank.code]
    return INTERRUPTED if interrupted else next(iter(codes), 0)


def _start(command: Sequence[str], environment: Mapping[str, str], output: Any) -> subprocess.Popen[bytes]:
    """In a process group of its own, so that Ctrl-C reaches it once, from here."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it was gone before this was said
                os.kill(os.getpid(), signal.SIGKILL)

    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
        preexec_fn=end_with_parent,
    )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def num_gpus() -> int:
    """GPUs that this process sees."""
    import torch

    return torch.cuda.device_count()
