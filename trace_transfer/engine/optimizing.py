"""Makes what `optimizers` describes: an optimizer of parameters, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from typing import Any

import torch
from torch import nn

from trace_transfer.engine.distributed import quiet
from trace_transfer.engine.optimizers import OPTIMIZERS, Treatment
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.errors import first_line
from trace_transfer.launching import place_among_ranks


def build(
    parameters: Mapping[str, nn.Parameter], treated: Mapping[str, Treatment], settings: TrainSettings
) -> torch.optim.Optimizer:
    """The optimizer of some parameters, at a rate of 0; each of its groups has its highest rate as `peak`.

    Tensors that are treated alike are one group, in the order of the parameters.
    """
    order = list(dict.fromkeys(treated[name] for name in parameters))
    alike = {one: [p for name, p in parameters.items() if treated[name] == one] for one in order}
    built = []
    for name, several in groupby(order, key=lambda one: one.optimizer):
        chosen = list(several)
        groups = [
            {"params": alike[one], "peak": one.learning_rate, "weight_decay": one.weight_decay} for one in chosen
        ]  # fmt: skip
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in chosen[0].args(settings).items()}
        built.append(_class(name)(groups, lr=0.0, **{**OPTIMIZERS[name].fixed, **given}))
    return built[0] if len(built) == 1 else _Several(built)


def _class(name: str) -> Any:
    module, _, attribute = OPTIMIZERS[name].place.rpartition(".")
    with quiet():  # bitsandbytes tells which kernels it lacks
        return getattr(import_module(module), attribute)


class _Several(torch.optim.Optimizer):
    """Optimizers of different tensors as one: their groups and their state are the same objects."""

    def __init__(self, built: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for one in built for group in one.param_groups], {})
        self.built = built
        self.param_groups = [group for one in built for group in one.param_groups]
        for one in built:
            one.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for one in self.built:
            one.step()


def problems(settings: TrainSettings) -> list[str]:
    """What stands in the way of optimizer and schedule here: each is made and used for a step."""
    # torch's own work on a GPU, and would only begin its context there.
    on_gpu = "bitsandbytes" in OPTIMIZERS[settings.optimizer].place and torch.cuda.is_available()
    device = torch.device("cuda", place_among_ranks().local_rank) if on_gpu else torch.device("cpu")
    matrix = nn.Parameter(torch.ones(64, 64, device=device))
    matrix.grad = torch.ones_like(matrix)
    treated = {"matrix": Treatment(settings.optimizer, settings.learning_rate, settings.weight_decay)}
    found = []
    try:
        optimizer = build({"matrix": matrix}, treated, settings)
        with quiet():
            optimizer.step()
    except ModuleNotFoundError as error:
        found.append(f"optimizer: {settings.optimizer} needs {error.name}: pip install {error.name}")
    except Exception as error:  # each library has errors of its own
        found.append(f"optimizer: {settings.optimizer} cannot be used here: {first_line(error)}")
    try:
        share = schedule(settings, 100)
        if not all(math.isfinite(share(step)) for step in range(100)):
            found.append(f"schedule: {settings.schedule} gives rates that are no numbers")
    except Exception as error:
        found.append(f"schedule: {settings.schedule} cannot be used: {first_line(error)}")
    return found


def schedule(settings: TrainSettings, num_steps: int) -> Callable[[int], float]:
    """The share of its highest rate that each tensor has at a step, counted from 0: that of transformers' scheduler."""
    from transformers import get_scheduler

    rate = torch.optim.SGD([torch.zeros(1)], lr=settings.learning_rate)
    num_warmup = min(math.ceil(settings.warmup * num_steps), num_steps - 1)  # never all: the first step's rate is 0
    made: Any = get_scheduler(settings.schedule, rate, num_warmup, num_steps, dict(settings.schedule_args))
    share: Callable[[int], float] = made.lr_lambdas[0]
    return share
