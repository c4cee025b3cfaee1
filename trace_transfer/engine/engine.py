"""DeepSpeed, driven directly: an engine for one stage of training.

An exact training needs some care, measured on DeepSpeed 0.19.8:

- DeepSpeed's own accumulation divides by a fixed number of micro-batches. The engine sets that number to one and says
  itself where a step ends; so a step may have any number of micro-batches, and only the ranks enter the loss.
- bfloat16 without ZeRO takes one step of the optimizer with zero gradients while it is built, which counts for the bias
  correction and applies weight decay. It is built with a learning rate of 0, and forgets that step.
- ZeRO 3 treats the experts' blocks of some families as one leaf, without hooks on the modules in it, and frees slices
  there before their gradients come. It gets an empty list of leaf modules.
- ZeRO 1 and 2 let tensors find their optimizer state after the step of the first group of tensors, when the others have
  none yet. The engine does it again after all of the first step.
- Master weights are made from weights rounded to bfloat16. The true ones are set afterwards.
- For ZeRO 3 the model is built on the meta device, its buffers real, and filled a tensor at a time: no rank ever
  holds all of it. `deepspeed.zero.Init` around the building would give the same tensors, but it also casts what
  `torch.tensor` makes meanwhile, and buffers with it; so its conversion is called for each tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from trace_transfer.core_sets.masks import Mask
from trace_transfer.data.examples import Example, collate, packed
from trace_transfer.engine.deepspeed_json import configuration
from trace_transfer.engine.distributed import Ranks, deepspeed_library, forget_models
from trace_transfer.engine.optimizers import Treatment, build
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.engine.slices import freeze, outside, places_of, shapes_of, whole_of
from trace_transfer.engine.supervised_loss import give_loss
from trace_transfer.errors import UserError
from trace_transfer.models.running import resolve_device, resolve_dtype
from trace_transfer.printable import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MASTER = "master"
TRIAL = 24  # tokens of each text on which packing is tried
TRIAL_TOLERANCE, COARSE_TOLERANCE = {torch.float32: 1e-4}, 0.05  # relative; the coarse one is bfloat16's


class Engine:
    """A model in training. Build it with `open_engine`; its methods are collective: all ranks call them alike."""

    def __init__(
        self, model: PreTrainedModel, settings: TrainSettings, ranks: Ranks, mask: Mask,
        treated: Mapping[str, Treatment],
    ) -> None:  # fmt: skip
        shapes = shapes_of(model)
        trained = mask.trained_shapes(shapes)
        self.kinds = {name: (MASTER, *treated[name].state(shape, settings)) for name, shape in trained.items()}
        known = dict(model.named_parameters())
        self.frozen = {name: p for name, p in known.items() if not mask.trains(name) or name in mask.sliced}
        self.sliced = mask.sliced
        self.parameters = freeze(model, mask, resident=settings.zero < 3)
        config = configuration(settings, ranks, model.dtype, mask.numel(shapes))
        model.train()
        give_loss(getattr(model, "get_base_model", lambda: model)(), partitioned=settings.zero == 3)  # peft's wrapper
        with quiet():
            if settings.gradient_checkpointing:  # transformers 5.23 warns of a new name that older ones do not know
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.deepspeed, *_ = deepspeed_library().initialize(
                model=model, optimizer=build(self.parameters, treated, settings), config=config
            )
        if settings.zero == 0 and ranks.size == 1:
            self.deepspeed.enable_backward_allreduce = False  # it would copy all gradients together and back
        self.device = ranks.device
        self.stage, self.packing = settings.zero, settings.packing
        self._plain, self._linked = self._plain_masters(), False
        self.set_steps(0)

    def _plain_masters(self) -> dict[str, Tensor]:
        """Without ZeRO: name → its float32 master weight, which is the tensor itself unless that is bfloat16."""
        if self.stage > 0:
            return {}
        groups = getattr(self.deepspeed.optimizer, "fp16_groups", None)
        if groups is None:
            return dict(self.parameters)
        pairs = zip(chain(*groups), chain(*self.deepspeed.optimizer.fp32_groups), strict=True)
        masters = {id(parameter): master for parameter, master in pairs}
        return {name: masters[id(parameter)] for name, parameter in self.parameters.items()}

    def loss(self, examples: Sequence[Example], weight: float = 1.0) -> Tensor:
        """The weighted sum of the cross-entropies of all supervised tokens of some examples, in float64."""
        total: Tensor = self.deepspeed(**self._inputs(examples, self.packing), weight=weight)
        return total

    def _inputs(self, examples: Sequence[Example], packing: bool) -> dict[str, Any]:
        if packing:
            row = packed(examples)
            found = {"input_ids": row.input_ids_1t, "position_ids": row.position_ids_1t, "targets_bt": row.targets_1t}
        else:
            batch = collate(examples)
            found = {"input_ids": batch.input_ids_bt, "targets_bt": batch.targets_bt}
            # Nothing is masked: the padding is behind, where no token looks, and attention is faster without a mask.
            found["attention_mask"] = torch.ones_like(batch.input_ids_bt)
        return {name: value.to(self.device) for name, value in found.items()} | {"use_cache": False}

    def require_packing(self, examples: Sequence[Example]) -> None:
        """Raise `UserError` unless a text has the same logits alone and behind another one in a row."""
        first, second = (
            replace(one, input_ids=one.input_ids[:TRIAL], labels=one.labels[:TRIAL])
            for one in (examples[0], examples[-1])
        )

        def logits(rows: Sequence[Example]) -> Tensor:
            inputs = self._inputs(rows, packing=True)
            del inputs["targets_bt"]
            found: Tensor = self.deepspeed(**inputs).logits[0, -len(second.input_ids) :]
            return found

        with self.evaluating():
            alone_tv, behind_tv = logits([second]), logits([first, second])
        apart = float((alone_tv.double() - behind_tv.double()).norm() / alone_tv.double().norm())
        if not apart <= TRIAL_TOLERANCE.get(alone_tv.dtype, COARSE_TOLERANCE):
            name = self.deepspeed.module.config.model_type
            raise UserError(f"--packing: {name} cannot be trained so: behind another text logits differ by {apart:.1%}")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.deepspeed.eval()
        with torch.no_grad():
            yield
        self.deepspeed.train()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient; the step's is the mean over ranks of the sums over micro-batches."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss)

    def step(self, share: float) -> float:
        """Clip, update at a share of the highest rates; the norm before clipping, not finite where nothing was done."""
        for group in self.deepspeed.basic_optimizer.param_groups:
            group["lr"] = group["peak"] * share
        norm = None
        if self.stage == 0 and self.deepspeed.optimizer is self.deepspeed.basic_optimizer:  # which tells no norm
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if not torch.isfinite(torch.tensor(norm)):
                return norm
        self.deepspeed.step()
        if not self._linked:
            self._link_state()
        if norm is None:
            norm = float(self.deepspeed.get_global_grad_norm())
        return norm if self.deepspeed.was_step_applied() else float("nan")

    def frozen_values(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value in use of all that is frozen of each tensor, one at a time, on the CPU."""
        return ((name, outside(whole_of(p), self.sliced.get(name))) for name, p in self.frozen.items())

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Name and float32 master weight of all that is trained of each tensor, one at a time, on the CPU."""
        return ((name, self.get(name, MASTER)) for name in self.parameters)

    def _plain_value(self, name: str, kind: str) -> Tensor:
        master = self._plain[name]
        found: Tensor = master if kind == MASTER else self.deepspeed.basic_optimizer.state[master][kind]
        return found

    def get(self, name: str, kind: str) -> Tensor:
        """One of the `kinds` of what is trained of a tensor (master weight, optimizer state); a copy on the CPU."""
        from deepspeed import utils

        if self.stage == 0:
            found = self._plain_value(name, kind)
        elif kind == MASTER:
            found = utils.safe_get_full_fp32_param(self.parameters[name])
        else:
            found = utils.safe_get_full_optimizer_state(self.parameters[name], kind)
        return found.detach().to("cpu", copy=True)

    def set(self, kind: str, values: Iterable[tuple[str, Tensor]]) -> None:
        """Masters must round to the weights that the model was built with."""
        from deepspeed import utils

        for name, value in values:
            parameter, value = self.parameters[name], value.to(self.device)
            if self.stage == 0:
                with torch.no_grad():
                    self._plain_value(name, kind).copy_(value)
                continue
            reach = "full" if self.stage < 3 else "local"  # of ZeRO 3's the full one fails where ranks do not divide
            value = value if self.stage < 3 else _partition(parameter, value)
            if kind == MASTER:
                getattr(utils, f"safe_set_{reach}_fp32_param")(parameter, value)
            else:
                getattr(utils, f"safe_set_{reach}_optimizer_state")(parameter, value, kind)

    def set_steps(self, count: int) -> None:
        """Say how many steps the optimizer has taken; if any, its state is made and waits to be set."""
        optimizer = self.deepspeed.basic_optimizer
        kinds = {kind for kinds in self.kinds.values() for kind in kinds}
        if self.stage == 0:
            if count:  # a step with gradients of 0, at the rate of 0 that it is built with
                for master in self._plain.values():
                    master.grad = torch.zeros_like(master)
                optimizer.step()
                optimizer.zero_grad()
            for state in optimizer.state.values():
                for kind in state.keys() & kinds:
                    state[kind].zero_()
                if "step" in state:
                    state["step"] = state["step"] * 0 + count  # a tensor, or a number
        elif count:
            flat = getattr(self.deepspeed.optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO 3 lends them
            for master in flat or [p for group in optimizer.param_groups for p in group["params"]]:
                place = master.device if optimizer.defaults.get("fused") else None
                optimizer.state[master]["step"] = torch.tensor(float(count), device=place)
                for kind in next(iter(self.kinds.values()))[1:]:  # they are the same of any part of any tensor
                    optimizer.state[master][kind] = torch.zeros_like(master, requires_grad=False)
            self._link_state()

    def _link_state(self) -> None:
        if self.stage in (1, 2):
            self.deepspeed.optimizer._hp_optimizer_states_linked = False
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
        self._linked = True

    def close(self) -> None:
        with quiet():
            self.deepspeed.destroy()
            if self.stage == 3:
                forget_models()
            self.parameters, self._plain, self.frozen = {}, {}, {}
            del self.deepspeed


@contextmanager
def open_engine(
    model: PreTrainedModel, settings: TrainSettings, ranks: Ranks, mask: Mask, treated: Mapping[str, Treatment]
) -> Iterator[Engine]:
    """A new engine for one stage of training. The model, for ZeRO 3 as `fill_partitioned` leaves it, belongs to it."""
    with _releasing_linear() if settings.zero == 3 else nullcontext():
        engine = Engine(model, settings, ranks, mask, treated)
        try:
            yield engine
        finally:
            engine.close()


def _releasing_linear() -> AbstractContextManager[object]:
    """DeepSpeed's own `linear` in torch's place, as `zero.Init` puts it there for good: torch's keeps every gathered
    weight from the forward to the backward pass, and with them the whole model on each rank."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    return patch.object(nn.functional, "linear", zero3_linear_wrap)


def resolve_precision(settings: TrainSettings) -> torch.dtype:
    return resolve_dtype(settings.precision, resolve_device("auto"))


def _partition(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of a tensor under ZeRO 3, padded with zeros."""
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    mine = value.flatten()[size * rank : size * (rank + 1)]
    return nn.functional.pad(mine, (0, size - mine.numel()))


def fill_partitioned(
    model: PreTrainedModel, values: Iterable[tuple[str, Tensor]], config: dict[str, Any], ranks: Ranks
) -> None:
    """Give a meta-device model its weights, each rank its part of each; collective. The values come in the model's
    order, and are asked for on the first rank only; what they raise there is a TrainingError on the others."""
    with quiet():
        zero = deepspeed_library().zero.Init(config_dict_or_path=config)
    source = iter(values)
    for name, places in places_of(model).items():
        meta = model.get_parameter(name)
        read = ranks.first_alone(lambda: next(source)[1], f"the first rank could not read {name}; it says why")
        value = torch.empty(meta.shape, dtype=meta.dtype) if read is None else read
        parameter = nn.Parameter(value.to(ranks.device, meta.dtype), requires_grad=False)
        zero._convert_to_zero_parameters([parameter])  # takes the first rank's values, keeps this rank's part
        for module, attribute in places:
            setattr(module, attribute, parameter)
        del read, value, parameter
    if ranks.is_first:
        next(source, None)  # so that it lets go of the last one
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            setattr(module, name, buffer.to(ranks.device))
