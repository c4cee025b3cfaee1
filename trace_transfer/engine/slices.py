"""Some rows, columns or depth of a tensor in training, or single parameters: a small one of their own, put into the
frozen one.

It is put there on each use. So gradient, clipping, weight decay, momentum and optimizer state exist for the slice
alone, whatever DeepSpeed, FSDP or DDP do with tensors, and no other element can move: nothing ever writes to those of
the frozen one. State dicts have whole tensors under their ordinary names all the same.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.nn.utils.parametrize import cached, register_parametrization, remove_parametrizations
from torch.utils.hooks import RemovableHandle

from trace_transfer.core_sets.masks import Chosen, Mask, Part, Slice
from trace_transfer.engine.distributed import deepspeed_library

Places = list[tuple[nn.Module, str]]


def laid(value: Tensor, part: Part) -> Tensor:
    """A tensor as its part's places count: flattened for single parameters, else as it is."""
    return value.flatten() if isinstance(part, Chosen) else value


def index_of(part: Part, device: torch.device) -> Tensor:
    return torch.as_tensor(part.indices, dtype=torch.int64, device=device)


def taken(value: Tensor, part: Part | None) -> Tensor:
    """The trained part of a tensor's value, its rows (columns, depth, parameters) one after the other, or all of it."""
    return value if part is None else laid(value, part).index_select(part.dim, index_of(part, value.device))


def outside(value: Tensor, part: Part | None) -> Tensor:
    """All but the trained part of a tensor's value; all of it where no part is said."""
    if part is None:
        return value
    value = laid(value, part)
    kept = torch.ones(value.shape[part.dim], dtype=torch.bool, device=value.device)
    kept[index_of(part, value.device)] = False
    return value.index_select(part.dim, kept.nonzero().flatten())


def with_part(value: Tensor, part: Part, index: Tensor, trained: Tensor) -> Tensor:
    return laid(value, part).index_copy(part.dim, index, trained).view_as(value)


def put(parameter: Tensor, part: Part | None, value: Tensor) -> None:
    value = value.to(parameter.device, parameter.dtype)
    with torch.no_grad():
        if part is None:
            parameter.copy_(value)
        else:
            parameter.copy_(with_part(parameter, part, index_of(part, parameter.device), value))


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor, partitioned or not (a partitioned one is empty, its shape kept elsewhere)."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()}


def places_of(model: nn.Module) -> dict[str, Places]:
    """Name → every module and attribute that holds this tensor: several where it is tied."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places: dict[str, Places] = {name: [] for name in names.values()}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places[names[id(parameter)]].append((module, attribute))
    return places


def gathered(parameter: nn.Parameter, modify: bool = False) -> AbstractContextManager[None]:
    """A partitioned tensor whole while it lasts; collective. Keeps what the first rank writes, if asked to."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    whole: AbstractContextManager[None] = deepspeed_library().zero.GatheredParameters(
        [parameter], modifier_rank=0 if modify else None
    )
    return whole


def whole_of(parameter: nn.Parameter) -> Tensor:
    """The whole of a tensor on the CPU, wherever its parts are; collective."""
    value = parameter.detach()
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    with gathered(parameter):
        return parameter.detach().to("cpu", copy=hasattr(parameter, "ds_id"))


def freeze(model: nn.Module, mask: Mask, resident: bool = False) -> dict[str, nn.Parameter]:
    """Freeze everything but a mask's parts; name → what is trained of that tensor, in the model's order."""
    places = places_of(model)
    found: dict[str, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters()):
        parameter.requires_grad_(False)
        if name not in mask.parts:
            continue
        part, trained = mask.parts[name], parameter
        if part is not None:
            with gathered(parameter):
                trained = nn.Parameter(taken(parameter.detach(), part))
            splice(places[name], part, trained, resident)
        trained.requires_grad_(True)
        found[name] = trained
    return found


def splice(places: Places, part: Part, values: nn.Parameter, resident: bool = False) -> None:
    """Let a frozen tensor be used with other values in some rows (columns, depth), in every module that holds it.

    Where both are whole in memory all the time (`resident`), a linear layer or an embedding writes the values over the
    frozen rows and takes the gradient of these rows alone; else it copies the tensor and takes the gradient of it all.
    """
    spliced, first = Spliced(part, values), None
    for module, attribute in places:
        # Not checked by running it: under ZeRO 3 the frozen one may not be there now. Shape and type cannot change.
        register_parametrization(module, attribute, spliced, unsafe=True)
        chains: Any = module.parametrizations
        first = chains[attribute] = first or chains[attribute]  # one for all that are tied, whatever is loaded later
        if first.original.dim() > 2:
            _compute_once(module)
        kind: Any = type(module)  # of this module alone: a parametrization made it
        if resident and attribute == "weight" and isinstance(part, Slice):
            if kind.forward is nn.Linear.forward:
                kind.forward = _linear
            elif kind.forward is nn.Embedding.forward and part.dim == 0 and not module.max_norm:
                kind.forward = _embedding
        _tell_status(module, attribute)
        spliced.hooks += [
            module.register_state_dict_post_hook(partial(_join, attribute)),
            module.register_load_state_dict_pre_hook(partial(_cut, attribute)),
        ]


def unsplice(places: Places) -> None:
    """Make a spliced tensor an ordinary, frozen one again, with the trained values in it."""
    spliced = spliced_at(*places[0])
    assert spliced is not None
    original, chain = spliced
    original.data = joined(original.detach(), chain.part, chain.values.detach())
    for hook in chain.hooks:
        hook.remove()
    for module, attribute in places:
        remove_parametrizations(module, attribute, leave_parametrized=False)


def spliced_at(module: nn.Module, attribute: str) -> tuple[nn.Parameter, Spliced] | None:
    """The frozen tensor, and what is put into it; None where an attribute is not spliced."""
    chains: Any = getattr(module, "parametrizations", {})
    if attribute not in chains or not isinstance(chains[attribute][0], Spliced):
        return None
    return chains[attribute].original, chains[attribute][0]


def joined(frozen: Tensor, part: Part, values: Tensor) -> Tensor:
    """A frozen tensor with the trained part in it: a new tensor, sharded as the frozen one is."""
    if frozen.is_meta:
        return frozen
    if isinstance(frozen, DTensor) and isinstance(values, DTensor):
        whole = joined(frozen.full_tensor(), part, values.full_tensor())
        return distribute_tensor(whole, frozen.device_mesh, frozen.placements, src_data_rank=None)
    whole = frozen.to(torch.promote_types(frozen.dtype, values.dtype), copy=True)
    return with_part(whole, part, index_of(part, frozen.device), values.to(whole.dtype))


def ordinary(model: nn.Module, state: MutableMapping[str, Tensor]) -> None:
    """Join, in place, what is still in parts in a state dict that was gathered past the modules' own hooks (ZeRO 3)."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute in getattr(module, "parametrizations", ()):
            _join(attribute, module, state, f"{prefix}." if prefix else "")


def _keys(prefix: str, attribute: str) -> tuple[str, str]:
    return f"{prefix}parametrizations.{attribute}.original", f"{prefix}parametrizations.{attribute}.0.values"


def _join(attribute: str, module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: Any) -> None:
    """One whole tensor under its ordinary name, in place of the frozen one and the slice."""
    keys, spliced = _keys(prefix, attribute), spliced_at(module, attribute)
    frozen, values = (state.get(key) for key in keys)
    if spliced is None or frozen is None or values is None or not frozen.numel() or not values.numel():
        return  # ZeRO 3 has parts of them elsewhere
    for key in keys:
        del state[key]
    whole = spliced[1].last()
    if whole is None or not any(one is whole for one in state.values()):  # else it is tied: one tensor, two names
        whole = joined(frozen, spliced[1].part, values)
        spliced[1].last = ref(whole)
    state[prefix + attribute] = whole


def _cut(attribute: str, module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: Any) -> None:
    whole, spliced = state.pop(prefix + attribute, None), spliced_at(module, attribute)
    if whole is None or spliced is None:
        return
    if isinstance(whole, DTensor) and not whole.is_meta:
        values = taken(whole.full_tensor(), spliced[1].part)
        values = distribute_tensor(values, whole.device_mesh, whole.placements, src_data_rank=None)
    else:
        values = taken(whole, spliced[1].part)
    state.update(zip(_keys(prefix, attribute), (whole, values), strict=True))


def _compute_once(module: nn.Module) -> None:
    """Let experts put their slices in once in each forward pass: they may read the tensor one by one."""
    kind: Any = type(module)  # of this module alone: a parametrization made it
    forward = kind.forward

    @wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with cached():
            return forward(self, *args, **kwargs)

    kind.forward = run


def _tell_status(module: nn.Module, attribute: str) -> None:
    """Let what is read say that it is here, as whoever reads a head's weight for himself asks under ZeRO 3 (TRL)."""
    kind: Any = type(module)
    made = getattr(kind, attribute)

    def read(self: Any) -> Any:
        whole, values = made.fget(self), self.parametrizations[attribute][0].values
        if hasattr(values, "ds_status"):
            whole.ds_status = type(values.ds_status).AVAILABLE
        return whole

    setattr(kind, attribute, property(read, made.fset))


def _written(module: Any) -> tuple[Tensor, Spliced]:
    """The frozen weight with the values written into it, and where."""
    frozen, spliced = module.parametrizations.weight.original, module.parametrizations.weight[0]
    frozen.data.index_copy_(spliced.part.dim, spliced.index, spliced.values.data)
    return frozen, spliced


def _linear(self: Any, x: Tensor) -> Any:
    frozen, spliced = _written(self)
    apply: Any = _LinearInPart.apply  # which torch does not type
    return apply(x, frozen, self.bias, spliced.values, spliced.index, spliced.part.dim)


def _embedding(self: Any, ids: Tensor) -> Any:
    frozen, spliced = _written(self)
    apply: Any = _EmbeddingInPart.apply
    return apply(ids, frozen, spliced.values, spliced.index, self.padding_idx)


class _LinearInPart(torch.autograd.Function):
    """x W' + b with a gradient for some rows or columns of W alone; their values are in W already."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, index: Tensor, dim: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight, index)
        ctx.dim = dim
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (g,) = upstream
        x, weight, index = ctx.saved_tensors
        wants_x, _, wants_bias, *_ = ctx.needs_input_grad
        g_no, x_ni = g.flatten(end_dim=-2), x.flatten(end_dim=-2)
        values = g_no[:, index].T @ x_ni if ctx.dim == 0 else g_no.T @ x_ni[:, index]
        return g @ weight if wants_x else None, None, g_no.sum(dim=0) if wants_bias else None, values, None, None


class _EmbeddingInPart(torch.autograd.Function):
    """Looks up rows of W, which holds the trained values; some have a gradient, the row `padding` never has one."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, values: Tensor, index: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids, index)
        ctx.padding = padding
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        ids, index = ctx.saved_tensors
        places = torch.searchsorted(index, ids).clamp_(max=len(index) - 1)
        frozen = (index[places] != ids) | (ids == (-1 if ctx.padding is None else ctx.padding))
        places = places.masked_fill_(frozen, len(index))  # one row more, which is said to be padding
        values = torch.ops.aten.embedding_dense_backward(upstream[0], places, len(index) + 1, len(index), False)
        return None, None, values[:-1], None, None


class Spliced(nn.Module):
    """frozen → frozen with the trained part in it."""

    index: Tensor

    def __init__(self, part: Part, values: nn.Parameter) -> None:
        super().__init__()
        self.part, self.values = part, values
        self.hooks: list[RemovableHandle] = []
        self.last: Callable[[], Tensor | None] = lambda: None  # what was last written of it into a state dict
        self.register_buffer("index", index_of(part, values.device), persistent=False)

    def forward(self, frozen: Tensor) -> Tensor:
        if frozen.numel() == 0 or frozen.is_meta:  # only looked at while DeepSpeed or accelerate prepare the model
            return frozen
        values = self.values.to(frozen.dtype)
        if isinstance(frozen, DTensor) and isinstance(values, DTensor):  # outside of what FSDP gathers
            whole = with_part(frozen.full_tensor(), self.part, self.index, values.full_tensor())
            mesh = frozen.device_mesh
            return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return with_part(frozen, self.part, self.index, values)
