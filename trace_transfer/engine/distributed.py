"""DeepSpeed as a library without its noise and leftovers, and the processes that train together.

`open_ranks` joins the processes of a launcher before a training and parts them afterwards.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]  # documented, not marked as exported
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from trace_transfer.errors import TraceTransferError, TrainingError, UserError, first_line
from trace_transfer.launching import VARIABLES, Place, launcher_variables, place_among_ranks
from trace_transfer.models.checkpoints import return_freed_memory
from trace_transfer.printable import quiet
from trace_transfer.stopping import endable

Result = TypeVar("Result")


def deepspeed_library() -> Any:
    """The library, kept from compiling and from logging to stdout."""
    import deepspeed

    logger = deepspeed.utils.logger
    logger.setLevel(logging.ERROR)
    logger.handlers[:] = [logging.lastResort]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # only used for inference; compiled when asked for
    return deepspeed


def forget_models() -> None:
    """Empty the two places in which DeepSpeed keeps the models of ZeRO 3 until the process ends."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    for method in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            with suppress(AttributeError):
                cell.cell_contents.cache_clear()


def collect_garbage() -> None:
    """Give back what an engine held: its parts refer to each other, and weights to themselves once those are gone."""
    gc.collect()
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together, and where it computes; the first one (rank 0) writes files."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on the CPU; collective."""
        if self.size > 1:
            values = values.to(self.device)
            torch.distributed.all_reduce(values)
        return values.cpu()

    def any(self, mine: bool) -> bool:
        """Whether it is so on any rank; collective, so that all of them go the same way."""
        return bool(self.total(torch.tensor([float(mine)])).item())

    def first_alone(self, act: Callable[[], Result], told: str, collective: Iterable[object] = ()) -> Result | None:
        """Do something on the first rank; its result there, None elsewhere. Collective; `told` is what the other ranks
        raise (as `TrainingError`) if it fails, and `collective` what it reads, made by all ranks together."""
        result, problem = None, None
        try:
            if self.is_first:
                result = act()
        except Exception as error:  # of any kind, raised again below: the other ranks must hear of it
            problem = error
        finally:
            for _ in collective if self.size > 1 else ():  # the other ranks wait in each
                pass
        if self.any(problem is not None):
            raise problem or TrainingError(told)
        return result


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Join the processes that a launcher (torchrun, srun) started, or be alone without any network port. Everything is
    undone at the end, so that the next task starts from nothing.

    Raises:
        UserError: what a launcher has set contradicts itself, or this machine's GPUs.
        StopRequested: SIGTERM came before all were there.
        TraceTransferError: they do not find each other, or lose each other while they train.
    """
    with quiet():
        deepspeed = deepspeed_library()
    place, hook, environment = place_among_ranks(), sys.excepthook, dict(os.environ)
    device = _device_of(place)
    mine = not torch.distributed.is_initialized()
    try:
        os.environ |= {**launcher_variables(environment), "LOCAL_RANK": str(place.local_rank)}
        with quiet():
            backend = "nccl" if device.type == "cuda" else "gloo"
            if mine:
                _meet(place, backend)
            deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|deepspeed)(\.|$)")
            yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    except RuntimeError as error:
        if place.size > 1 and (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise TraceTransferError(
                f"rank {place.rank} of {place.size} lost the others ({first_line(error)}): the one that ended first "
                "says why; the same command goes on from the last checkpoint"
            ) from error
        raise
    finally:
        if mine and torch.distributed.is_initialized():
            with quiet():
                deepspeed.comm.destroy_process_group()
            sys.excepthook = hook
        for name in VARIABLES:
            if name not in environment:
                os.environ.pop(name, None)


def _device_of(place: Place) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if place.local_rank >= (gpus := torch.cuda.device_count()):
        raise UserError(f"LOCAL_RANK is {place.local_rank}, and this process sees {gpus} GPU(s): each needs its own")
    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    return device


def _meet(place: Place, backend: str) -> None:
    """Be one of a process group; waits for all others, however long they take to come."""
    if not place.launched:
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    who = f"rank {place.rank} of {place.size}, at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"

    def join() -> None:
        # The launcher's store keeps the addresses of the groups before, and a second group of the same name would wait
        # for them for ever.
        store = PrefixStore(f"trace-transfer-{next(_MEETINGS)}", _launchers_store())
        torch.distributed.init_process_group(backend, store=store, rank=place.rank, world_size=place.size)

    try:
        endable(join, f"while it waited for the other processes ({who})")
    except RuntimeError as error:  # torch has several kinds
        raise TraceTransferError(
            f"{who}: the processes do not find each other ({first_line(error)}); do all of them run, with the same "
            "MASTER_ADDR and a free MASTER_PORT?"
        ) from error


_MEETINGS = count()  # the same number on all ranks, as they train the same tasks in the same order


@cache
def _launchers_store() -> Any:
    return next(rendezvous("env://"))[0]
