"""Optimizers and schedules by the names that transformers gives them, and how each tensor is optimised.

An optimizer that reads a tensor as a matrix, or in blocks, needs it whole: ZeRO 1 to 3 lay tensors end to end and cut
them where a rank's part ends, so that it works with ZeRO 0 alone (`Optimizer.whole`).

Settings are checked with what is here, so that torch is imported only where an optimizer is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from trace_transfer.errors import UserError, first_line, listing
from trace_transfer.families.language import LAYER_COMPONENTS, OUTSIDE_COMPONENTS
from trace_transfer.launching import place_among_ranks
from trace_transfer.printable import quiet
from trace_transfer.settings import unknown_problems

if TYPE_CHECKING:
    import torch

    from trace_transfer.engine.settings import TrainSettings
    from trace_transfer.families.anatomy import Anatomy

Shape = tuple[int, ...]
State = Callable[[Shape, Mapping[str, Any]], dict[str, int]]
BETAS, EPS = (0.9, 0.999), 1e-8  # AdamW's, if not given
BLOCK, SMALLEST_8BIT = 256, 4096  # elements: bitsandbytes' blocks, and the smallest tensor whose state has 8 bits
_MATRIX = "reads each tensor as a matrix"
_BLOCKS = f"keeps a scale for each {BLOCK} elements of a tensor"


def _adamw(shape: Shape, args: Mapping[str, Any]) -> dict[str, int]:
    kinds = ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if args.get("amsgrad") else []))
    return dict.fromkeys(kinds, 4 * math.prod(shape))


def _momentum(default: float, shape: Shape, args: Mapping[str, Any]) -> dict[str, int]:
    return {"momentum_buffer": 4 * math.prod(shape)} if args.get("momentum", default) else {}


def _adafactor(shape: Shape, args: Mapping[str, Any]) -> dict[str, int]:
    found = {"exp_avg": 4 * math.prod(shape)} if args.get("beta1") is not None else {}
    if len(shape) < 2:
        return found | {"exp_avg_sq": 4 * math.prod(shape)}
    rows, columns = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
    return found | {"exp_avg_sq_row": 4 * rows, "exp_avg_sq_col": 4 * columns}


def _8bit(num_moments: int, shape: Shape, args: Mapping[str, Any]) -> dict[str, int]:
    numel, numbers = math.prod(shape), range(1, num_moments + 1)
    if numel < args.get("min_8bit_size", SMALLEST_8BIT):
        return {f"state{number}": 4 * numel for number in numbers}
    scales = {f"absmax{number}": 4 * math.ceil(numel / BLOCK) for number in numbers}
    return {f"state{number}": numel for number in numbers} | scales


@dataclass(frozen=True)
class Optimizer:
    """What is known of an optimizer, a class at a `place`, before it is made."""

    place: str
    state: State  # shape and arguments → bytes of each kind of state that it keeps of a tensor, beside its weights
    args: tuple[str, ...]  # names of arguments that a user may give
    fixed: Mapping[str, Any] = field(default_factory=dict)  # arguments that make it what its name says
    whole: str | None = None  # why it needs whole tensors; None where any part of them will do
    # the optimizer of the tensors that it does not take: it takes matrices but for embeddings and heads
    rest: str | None = None


_ADAMW8 = Optimizer("bitsandbytes.optim.AdamW8bit", partial(_8bit, 2), ("betas", "eps", "min_8bit_size"), whole=_BLOCKS)
OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw_torch": Optimizer("torch.optim.AdamW", _adamw, ("betas", "eps", "amsgrad")),
    "adamw_torch_fused": Optimizer("torch.optim.AdamW", _adamw, ("betas", "eps", "amsgrad"), {"fused": True}),
    "sgd": Optimizer("torch.optim.SGD", partial(_momentum, 0), ("momentum", "nesterov")),
    "adafactor": Optimizer(
        "transformers.Adafactor", _adafactor, ("eps", "clip_threshold", "decay_rate", "beta1", "scale_parameter"),
        {"relative_step": False, "scale_parameter": False}, whole=_MATRIX,
    ),
    "muon": Optimizer(
        "torch.optim.Muon", partial(_momentum, 0.95),
        ("momentum", "nesterov", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn"),
        {"adjust_lr_fn": "match_rms_adamw"}, whole=_MATRIX, rest="adamw_torch",
    ),
    "adamw_8bit": _ADAMW8,
    "adamw_bnb_8bit": _ADAMW8,
    "paged_adamw_8bit": Optimizer("bitsandbytes.optim.PagedAdamW8bit", _ADAMW8.state, _ADAMW8.args, whole=_BLOCKS),
    "lion_8bit": Optimizer("bitsandbytes.optim.Lion8bit", partial(_8bit, 1), ("betas", "min_8bit_size"), whole=_BLOCKS),
}  # fmt: skip
# Arguments of `transformers.get_scheduler`, by its names. Those that need a metric in each step are not here.
SCHEDULES: Mapping[str, tuple[str, ...]] = {
    "linear": (), "cosine": ("num_cycles",), "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"), "constant": (), "constant_with_warmup": (), "inverse_sqrt": ("timescale",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles",
    ),
}  # fmt: skip


def contradictions(settings: TrainSettings) -> list[str]:
    """What is wrong with the names and arguments of optimizer and schedule together with the other settings."""
    chosen, problems = OPTIMIZERS[settings.optimizer], []
    for name, given, known in (
        ("optimizer", settings.optimizer_args, chosen.args),
        ("schedule", settings.schedule_args, SCHEDULES[settings.schedule]),
    ):
        of = f"of {name} {getattr(settings, name)}"
        problems += [f"{name}_args: {one} ({of})" for one in unknown_problems(given, known or ["it has none"])]
    if chosen.whole and settings.zero:
        told = f"{settings.optimizer} {chosen.whole}, and ZeRO {settings.zero} cuts tensors into flat parts; use zero 0"
        problems.append(f"optimizer: {told}")
    return problems


class Treatment(NamedTuple):
    """How one tensor is optimised: by which optimizer, at which highest rate, with how much weight decay."""

    optimizer: str
    learning_rate: float
    weight_decay: float

    def args(self, settings: TrainSettings) -> Mapping[str, Any]:
        """What a user has given; the optimizer of what another one does not take has its defaults."""
        return settings.optimizer_args if self.optimizer == settings.optimizer else {}

    def state(self, shape: Shape, settings: TrainSettings) -> dict[str, int]:
        return OPTIMIZERS[self.optimizer].state(shape, self.args(settings))


Described = tuple[str, Collection[str]]  # the model's own name of a tensor, and its components
Describe = Callable[[str], Described]
BIAS = "bias"


def treatments(
    shapes: Mapping[str, Shape], settings: TrainSettings, describe: Describe = lambda name: (name, ())
) -> dict[str, Treatment]:
    """How each tensor is optimised, by the shape of what is trained of it; `describe` tells more where it is needed."""
    chosen, problems, found = OPTIMIZERS[settings.optimizer], [], {}
    for name, shape in shapes.items():
        own, components = describe(name)
        ranks = {key: rank(key, own, components) for key in settings.learning_rate_of}
        rates = {key: settings.learning_rate_of[key] for key in ranks if 0 < ranks[key] == max(ranks.values())}
        if len(set(rates.values())) > 1:
            problems.append(f"{name}: " + ", ".join(f"{rate:g} by '{key}'" for key, rate in rates.items()))
        outside = any(one.partition(".")[0] in ("embedding", "head") for one in components)
        taken = chosen.rest is None or (len(shape) == 2 and not outside)
        found[name] = Treatment(
            settings.optimizer if taken else str(chosen.rest),
            next(iter(rates.values()), settings.learning_rate),
            0.0 if any(rank(key, own, components) for key in settings.no_decay) else settings.weight_decay,
        )
    if problems:
        raise UserError("learning_rate_of: two rates for one tensor:\n" + listing(problems))
    return found


def rank(key: str, name: str, components: Collection[str]) -> int:
    """How closely a key of the settings means a tensor, 0 for not at all.

    From 1 on: by the beginning of its component (`attention`), by its component (of a fused tensor all), as `bias`, by
    a pattern of its whole name (`model.layers.0.*`), by the name itself."""
    if fnmatchcase(name, key):
        return 5 if name == key else 4
    if key == BIAS and name.endswith((f".{BIAS}", f"_{BIAS}")):
        return 3
    if components and all(one == key or one.startswith(f"{key}.") for one in components):
        return 2 if key in components else 1
    return 0


def require_known(settings: TrainSettings, anatomy: Anatomy) -> None:
    described = {name: anatomy.describe(name) for name in anatomy.inventory.shapes}
    components = (*LAYER_COMPONENTS, *OUTSIDE_COMPONENTS)
    known = [*described.values(), (f".{BIAS}", ()), *(("", (one,)) for one in components)]
    keys = dict.fromkeys((*settings.learning_rate_of, *settings.no_decay))
    if unknown := [key for key in keys if not any(rank(key, *one) for one in known)]:
        raise UserError(
            "learning_rate_of, no_decay: these mean no tensor of this model:\n" + listing(unknown)
            + "\nA key is bias, a tensor's name, a pattern of names with *, or a component: "
            + ", ".join(sorted(components))
        )  # fmt: skip
    treatments(anatomy.inventory.shapes, settings, described.__getitem__)


def build(
    parameters: Mapping[str, torch.nn.Parameter], treated: Mapping[str, Treatment], settings: TrainSettings
) -> torch.optim.Optimizer:
    """The optimizer, at a rate of 0: what is treated alike is one group, with its highest rate as `peak`."""
    order = list(dict.fromkeys(treated[name] for name in parameters))
    alike = {one: [p for name, p in parameters.items() if treated[name] == one] for one in order}
    built = []
    for name, several in groupby(order, key=lambda one: one.optimizer):
        chosen = list(several)
        groups = [{"params": alike[one], "peak": one.learning_rate, "weight_decay": one.weight_decay} for one in chosen]
        given = {key: tuple(v) if isinstance(v, list) else v for key, v in chosen[0].args(settings).items()}
        built.append(_class(name)(groups, lr=0.0, **{**OPTIMIZERS[name].fixed, **given}))
    return built[0] if len(built) == 1 else _as_one(built)


def _class(name: str) -> Any:
    module, _, attribute = OPTIMIZERS[name].place.rpartition(".")
    with quiet():  # bitsandbytes tells which kernels it lacks
        return getattr(import_module(module), attribute)


def _as_one(built: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Optimizers of different tensors as one: their groups and their state are the same objects."""
    from torch import no_grad
    from torch.optim import Optimizer

    class Several(Optimizer):
        built: Sequence[Optimizer]

        @no_grad()
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            for one in self.built:
                one.step()

    several = Several([group for one in built for group in one.param_groups], {})
    several.built = built
    several.param_groups = [group for one in built for group in one.param_groups]
    for one in built:
        one.state = several.state
    return several


def problems(settings: TrainSettings) -> list[str]:
    """What stands in the way of optimizer and schedule here: each is made and used for a step."""
    import torch

    # torch's own work on a GPU, and would only begin its context there.
    on_gpu = "bitsandbytes" in OPTIMIZERS[settings.optimizer].place and torch.cuda.is_available()
    device = torch.device("cuda", place_among_ranks().local_rank) if on_gpu else torch.device("cpu")
    matrix = torch.nn.Parameter(torch.ones(64, 64, device=device))
    matrix.grad = torch.ones_like(matrix)
    treated = {"matrix": Treatment(settings.optimizer, settings.learning_rate, settings.weight_decay)}

    def step() -> None:
        with quiet():
            build({"matrix": matrix}, treated, settings).step()

    found = []
    attempts: dict[str, Callable[[], object]] = {"optimizer": step, "schedule": lambda: schedule(settings, 100)(99)}
    for what, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:  # each library has errors of its own
            found.append(f"{what}: {getattr(settings, what)} cannot be used here: {first_line(error)}")
    return found


def schedule(settings: TrainSettings, num_steps: int) -> Callable[[int], float]:
    """The share of its highest rate that each tensor has at a step, counted from 0: that of transformers' scheduler."""
    import torch
    from transformers import get_scheduler

    rate = torch.optim.SGD([torch.zeros(1)], lr=settings.learning_rate)
    num_warmup = min(math.ceil(settings.warmup * num_steps), num_steps - 1)  # never all: the first step's rate is 0
    made: Any = get_scheduler(settings.schedule, rate, num_warmup, num_steps, dict(settings.schedule_args))
    share: Callable[[int], float] = made.lr_lambdas[0]
    return share
