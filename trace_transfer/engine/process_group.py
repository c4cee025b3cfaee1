"""How the processes that train together find each other, and part again after each training."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any

import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]  # documented, not marked as exported
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from trace_transfer.engine.deepspeed_workarounds import deepspeed_library, quiet
from trace_transfer.engine.ranks import Ranks
from trace_transfer.errors import TraceTransferError, UserError, first_line
from trace_transfer.launching import Place, place_among_ranks
from trace_transfer.stopping import endable


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Join the processes that a launcher (torchrun, deepspeed) started, or be alone without any network port.

    Everything is undone at the end, so that the next task starts from nothing.

    Raises:
        UserError: what a launcher has set contradicts itself, or this machine's GPUs.
        StopRequested: SIGTERM came before all were there.
        TraceTransferError: they do not find each other, or lose each other while they train.
    """
    with quiet():
        deepspeed = deepspeed_library()
    place, hook, environment = place_among_ranks(), sys.excepthook, os.environ.get("LOCAL_RANK")
    device = _device_of(place)
    mine = not torch.distributed.is_initialized()
    try:
        os.environ["LOCAL_RANK"] = str(place.local_rank)
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
        if environment is None:
            os.environ.pop("LOCAL_RANK", None)


def _device_of(place: Place) -> torch.device:
    """A GPU of its own for each rank of this machine, where there are any."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if place.local_rank >= (num_gpus := torch.cuda.device_count()):
        raise UserError(
            f"LOCAL_RANK is {place.local_rank}, and this process sees {num_gpus} GPU(s): each rank of a machine needs "
            "one of its own; start as many as there are, or set LOCAL_RANK to 0 where each sees its own alone"
        )
    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    return device


def _meet(place: Place, backend: str) -> None:
    """Be one of a process group; waits for all others, however long they take to come."""

    def join() -> None:
        store = _meeting_point(next(_MEETINGS)) if place.launched else HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=place.rank, world_size=place.size)

    if not place.launched:
        join()
        return
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    who = f"rank {place.rank} of {place.size}, at {where}"
    try:
        endable(join, f"while it waited for the other processes ({who})")
    except RuntimeError as error:  # torch has several kinds
        raise TraceTransferError(
            f"{who}: the processes do not find each other ({first_line(error)}); do all of them run, with the same "
            "MASTER_ADDR and a free MASTER_PORT?"
        ) from error


_MEETINGS = count()  # the same number on all ranks, as they train the same tasks in the same order


def _meeting_point(number: int) -> PrefixStore:
    """Where the ranks of a launcher find each other for the n-th time.

    The launcher's store keeps the addresses of the groups before, and a second group of the same name would wait for
    them for ever.
    """
    return PrefixStore(f"trace-transfer-{number}", _launchers_store())


@cache
def _launchers_store() -> Any:
    return next(rendezvous("env://"))[0]
