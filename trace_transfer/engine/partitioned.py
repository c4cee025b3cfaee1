"""A model for ZeRO 3, filled and cut into the ranks' parts a parameter at a time: no rank ever holds all of it.

The model is built on the meta device, its buffers real. Building it under `deepspeed.zero.Init` would come to the same
parameters, but casts what `torch.tensor` makes meanwhile, and buffers with it; so its conversion is called for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trace_transfer.engine.deepspeed_workarounds import deepspeed_library, quiet
from trace_transfer.engine.ranks import Ranks
from trace_transfer.engine.slices import places_of
from trace_transfer.errors import ModelError, TraceTransferError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fill_partitioned(
    model: PreTrainedModel, values: Iterable[tuple[str, Tensor]], config: dict[str, Any], ranks: Ranks
) -> None:
    """Give a meta-device model its weights, each rank its part of each; collective.

    Args:
        values: name and value of every parameter in the model's order; asked for on the first rank only.
        config: DeepSpeed's, for ZeRO 3.

    Raises:
        ModelError: the first rank could not read them; on all ranks.
    """
    with quiet():
        zero = deepspeed_library().zero.Init(config_dict_or_path=config)
    source = iter(values)
    for name, places in places_of(model).items():
        meta = model.get_parameter(name)
        problem, value = None, None
        if ranks.is_first:
            try:
                found, value = next(source)
                if (found, value.shape) != (name, meta.shape):
                    raise ModelError(f"{found} {list(value.shape)} was read for {name} {list(meta.shape)}")
            except (TraceTransferError, OSError, StopIteration) as error:
                problem = error
        if ranks.any(problem is not None):
            if isinstance(problem, StopIteration):
                problem = ModelError(f"the weights end before {name}")
            raise problem or ModelError(f"the first rank could not read {name}; it says why")
        if value is None:
            value = torch.empty(meta.shape, dtype=meta.dtype)
        parameter = nn.Parameter(value.to(ranks.device, meta.dtype), requires_grad=False)
        zero._convert_to_zero_parameters([parameter])  # takes the first rank's values, keeps this rank's part
        for module, attribute in places:
            setattr(module, attribute, parameter)
        del value, parameter
    if ranks.is_first:
        next(source, None)  # so that it lets go of the last one
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            setattr(module, name, buffer.to(ranks.device))


def gathered(parameter: nn.Parameter, modify: bool = False) -> AbstractContextManager[None]:
    """A parameter whole while it lasts, collective; does nothing to one that is not partitioned.

    Args:
        modify: keep what the first rank has written to it.
    """
    whole: AbstractContextManager[None] = deepspeed_library().zero.GatheredParameters(
        [parameter], modifier_rank=0 if modify else None
    )
    return whole


def shapes_of(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Name → shape of every parameter, partitioned or not (a partitioned one is empty, its shape kept elsewhere)."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()}
