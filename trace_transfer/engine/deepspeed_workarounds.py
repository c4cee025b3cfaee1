"""DeepSpeed's own noise and leftovers, kept from users: what it prints, compiles, logs and never frees."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import torch

from trace_transfer.models.checkpoints import return_freed_memory


def deepspeed_library() -> Any:
    """The library, kept from compiling and from logging to stdout."""
    import deepspeed

    logger = deepspeed.utils.logger
    logger.setLevel(logging.ERROR)
    logger.handlers[:] = [logging.lastResort]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # only used for inference; compiled when asked for
    return deepspeed


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing on stdout and stderr, from C++ neither: results go to stdout. What fails raises all the same."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    with Path(os.devnull).open("w") as nowhere:
        try:
            for number, _ in kept:
                os.dup2(nowhere.fileno(), number)
            with redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)


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
