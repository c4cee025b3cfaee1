"""DeepSpeed, driven directly: the only module that imports it.

What it needs to be exact, measured on 0.19.8:

- Its own accumulation divides by a fixed number of micro-batches. It is told that there is one, and where the last
  micro-batch of a step is; so a step may have any number of them, and the loss needs no correction but for the ranks.
- bfloat16 without ZeRO takes one AdamW step with zero gradients while it is built (it counts for the bias correction
  and applies weight decay): it is built with a learning rate of 0, and the count is taken back.
- Master weights are made from the weights rounded to bfloat16: they are set to the true ones afterwards.
- A group of processes installs `sys.excepthook` each time, ZeRO 3 keeps every model of the process alive in two global
  places, and one extension is compiled on a CPU when a group is made (half a minute): each is undone or prevented.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trace_transfer.checkpoints import return_freed_memory
from trace_transfer.examples import Batch
from trace_transfer.settings.training import TrainSettings
from trace_transfer.training.errors import TrainingError
from trace_transfer.training.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BETAS, EPS = (0.9, 0.999), 1e-8
MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")
LARGEST_BUCKET = 500_000_000  # elements, DeepSpeed's default; allocated whole, so that small models get a smaller one
PERSISTENT = 100_000  # elements up to which ZeRO 3 does not partition a parameter, DeepSpeed's default


def resolve_precision(settings: TrainSettings) -> torch.dtype:
    """The type of the weights in the forward and backward pass."""
    if settings.precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, settings.precision)


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Join the processes that a launcher (torchrun, deepspeed) started, or be alone without any network port.

    Everything is undone at the end, so that the next task starts from nothing.
    """
    with _quiet():
        deepspeed = _deepspeed()
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
        with _quiet():
            backend = "nccl" if cuda else "gloo"
            if mine:
                store, rank, size = (
                    _meeting_point(next(_MEETINGS)) if launched else (torch.distributed.HashStore(), 0, 1)
                )
                torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
            deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|deepspeed)(\.|$)")
            yield Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    finally:
        if mine and torch.distributed.is_initialized():
            with _quiet():
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
    return torch.distributed.PrefixStore(f"trace-transfer-{number}", store), rank, size


@cache
def _launchers_store() -> tuple[Any, int, int]:
    return next(torch.distributed.rendezvous("env://"))


class Engine:
    """A model in training. Build it with `open_engine`; its methods are collective: all ranks call them alike."""

    def __init__(
        self, model: PreTrainedModel, settings: TrainSettings, ranks: Ranks, trainable: Callable[[str], bool] | None
    ) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable is None or trainable(name))
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise TrainingError("no parameter of the model is to be trained")
        model.train()
        with _quiet():
            if settings.gradient_checkpointing:  # transformers 5.23 warns of a new name that older ones do not know
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.deepspeed, *_ = _deepspeed().initialize(
                model=model,
                model_parameters=list(self.parameters.values()),
                config=_config(settings, ranks, model.dtype, sum(p.numel() for p in model.parameters())),
            )
        self.device = ranks.device
        self.stage = settings.zero
        self._plain = self._plain_masters()
        self.set_steps(0)

    def _plain_masters(self) -> dict[str, Tensor]:
        """Without ZeRO: name → its float32 master weight, which is the parameter itself unless that is bfloat16."""
        if self.stage > 0:
            return {}
        groups = getattr(self.deepspeed.optimizer, "fp16_groups", None)
        if groups is None:
            return dict(self.parameters)
        pairs = zip(chain(*groups), chain(*self.deepspeed.optimizer.fp32_groups), strict=True)
        masters = {id(parameter): master for parameter, master in pairs}
        return {name: masters[id(parameter)] for name, parameter in self.parameters.items()}

    def logits(self, batch: Batch) -> Tensor:
        """[b, t, v] for a batch padded on the right."""
        ids_bt, mask_bt = batch.input_ids_bt.to(self.device), batch.attention_mask_bt.to(self.device)
        return self.deepspeed(input_ids=ids_bt, attention_mask=mask_bt, use_cache=False).logits

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient; the step's is the mean over ranks of the sums over micro-batches."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Clip, update, forget the gradient; returns its norm before clipping, NaN or Inf if it could not be used."""
        for group in self.deepspeed.basic_optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self.stage == 0 and self.deepspeed.optimizer is self.deepspeed.basic_optimizer:  # which tells no norm
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if not torch.isfinite(torch.tensor(norm)):
                return norm
        self.deepspeed.step()
        if norm is None:
            norm = float(self.deepspeed.get_global_grad_norm())
        return norm if self.deepspeed.was_step_applied() else float("nan")

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Name and float32 master weight of each trained parameter, one at a time, whole, on the CPU."""
        return ((name, self.get(name, MASTER)) for name in self.parameters)

    def get(self, name: str, kind: str) -> Tensor:
        """One parameter's master weight or one of its `MOMENTS`: float32, whole, a copy on the CPU."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.stage == 0:
            master = self._plain[name]
            found = master if kind == MASTER else self.deepspeed.basic_optimizer.state[master][kind]
        elif kind == MASTER:
            found = safe_get_full_fp32_param(self.parameters[name])
        else:
            found = safe_get_full_optimizer_state(self.parameters[name], kind)
        return found.detach().to("cpu", torch.float32, copy=True)

    def set(self, kind: str, values: Iterable[tuple[str, Tensor]]) -> None:
        """Set master weights or moments. Masters must round to the weights that the model was built with."""
        for name, value in values:
            self._set(name, kind, value.to(self.device, torch.float32))

    def _set(self, name: str, kind: str, value: Tensor) -> None:
        from deepspeed import utils

        parameter = self.parameters[name]
        if self.stage == 0:
            master = self._plain[name]
            found = master if kind == MASTER else self.deepspeed.basic_optimizer.state[master][kind]
            with torch.no_grad():
                found.copy_(value)
        elif self.stage < 3 and kind == MASTER:
            utils.safe_set_full_fp32_param(parameter, value)
        elif self.stage < 3:
            utils.safe_set_full_optimizer_state(parameter, value, kind)
        else:  # the setter of whole values fails where the ranks do not divide the elements
            part = _partition(parameter, value)
            if kind == MASTER:
                utils.safe_set_local_fp32_param(parameter, part)
            else:
                utils.safe_set_local_optimizer_state(parameter, part, kind)

    def set_steps(self, count: int) -> None:
        """Say how many steps the optimizer has taken, for its bias correction; moments of 0 are made where none are."""
        optimizer = self.deepspeed.basic_optimizer
        if count == 0 and not optimizer.state:
            return  # made by the first step
        flat = getattr(self.deepspeed.optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO 3 lends them to a step
        for master in flat or [p for group in optimizer.param_groups for p in group["params"]]:
            state = optimizer.state[master]
            state["step"] = torch.tensor(float(count))
            for kind in MOMENTS:
                if kind not in state:
                    state[kind] = torch.zeros_like(master, requires_grad=False)
        if self.stage in (1, 2):
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()

    def close(self) -> None:
        """Free everything that DeepSpeed holds; the engine cannot be used afterwards."""
        with _quiet():
            self.deepspeed.destroy()
            if self.stage == 3:
                _forget_models()
            self.parameters, self._plain = {}, {}
            del self.deepspeed


@contextmanager
def open_engine(
    model: PreTrainedModel, settings: TrainSettings, ranks: Ranks, trainable: Callable[[str], bool] | None = None
) -> Iterator[Engine]:
    """A new engine for one stage of training. The model belongs to it: let go of it afterwards.

    Args:
        trainable: which parameters (by name) are trained; None is all. Fixed for the life of the engine.
    """
    engine = Engine(model, settings, ranks, trainable)
    try:
        yield engine
    finally:
        engine.close()


def _config(settings: TrainSettings, ranks: Ranks, dtype: torch.dtype, num_elements: int) -> dict[str, Any]:
    bucket = min(LARGEST_BUCKET, num_elements + num_elements % 2)  # must be even
    adamw = {"torch_adam": True, "lr": 0.0, "betas": BETAS, "eps": EPS, "weight_decay": settings.weight_decay}
    config = {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "train_batch_size": settings.micro_batch_size * ranks.size,
        "gradient_clipping": settings.max_grad_norm or 0.0,
        "optimizer": {"type": "AdamW", "params": adamw},
        "zero_optimization": {
            "stage": settings.zero,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_param_persistence_threshold": PERSISTENT,
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
        "communication_data_type": "fp32",
        "steps_per_print": None,
    }
    if dtype == torch.bfloat16 and settings.zero > 0:  # without ZeRO there is no float32 accumulation to be had
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _partition(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a parameter under ZeRO 3, padded with zeros."""
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    part = torch.zeros(size, dtype=value.dtype, device=value.device)
    mine = value.flatten()[size * rank : size * (rank + 1)]
    part[: mine.numel()] = mine
    return part


def _deepspeed() -> Any:
    """The library, kept from compiling and from logging to stdout."""
    import deepspeed

    logger = deepspeed.utils.logger
    logger.setLevel(logging.ERROR)
    logger.handlers[:] = [logging.lastResort]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # only used for inference; compiled when asked for
    return deepspeed


def _forget_models() -> None:
    """Empty the two places in which DeepSpeed keeps the models of ZeRO 3 until the process ends."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    for method in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            with suppress(AttributeError):
                cell.cell_contents.cache_clear()


@contextmanager
def _quiet() -> Iterator[None]:
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


def collect_garbage() -> None:
    """Give back what an engine held: its parts refer to each other, and weights to themselves once those are gone."""
    gc.collect()
    gc.collect()
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
