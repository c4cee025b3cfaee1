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

from trace_transfer.training.quiet import deepspeed_library, quiet
from trace_transfer.training.ranks import Ranks


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Join the processes that a launcher (torchrun, deepspeed) started, or be alone without any network port.

    Everything is undone at the end, so that the next task starts from nothing.
    """
    with quiet():
        deepspeed = deepspeed_library()
    hook, environment = sys.excepthook, os.environ.get("LOCAL_RANK")
    launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    local_rank = int(environment or 0)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    mine = not torch.distributed.is_initialized()
    try:
        os.environ["LOCAL_RANK"] = str(local_rank)
        with quiet():
            backend = "nccl" if cuda else "gloo"
            if mine:
                store, rank, size = _meeting_point(next(_MEETINGS)) if launched else (HashStore(), 0, 1)
                torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
            deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|deepspeed)(\.|$)")
            yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    finally:
        if mine and torch.distributed.is_initialized():
            with quiet():
                deepspeed.comm.destroy_process_group()
            sys.excepthook = hook
        if environment is None:
            os.environ.pop("LOCAL_RANK", None)


_MEETINGS = count()  # the same number on all ranks, as they train the same tasks in the same order


def _meeting_point(number: int) -> tuple[Any, int, int]:
    """Where the ranks of a launcher find each other for the n-th time, this rank, and how many there are.

    The launcher's store keeps the addresses of the groups before, and a second group of the same name would wait for
    them for ever.
    """
    store, rank, size = _launchers_store()
    return PrefixStore(f"trace-transfer-{number}", store), rank, size


@cache
def _launchers_store() -> tuple[Any, int, int]:
    store, rank, size = next(rendezvous("env://"))
    return store, rank, size
