"""Some rows, columns or depth of a parameter in training: a small parameter of their own, put into the frozen one.

It is put there on each use. So gradient, clipping, weight decay, momentum, optimizer state and checkpoints exist for
the slice alone, whatever DeepSpeed does with parameters, and no other element can move: nothing ever writes to the
frozen one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached, register_parametrization

from trace_transfer.core_sets.masks import Mask, MaskError, Slice
from trace_transfer.errors import listing

Places = list[tuple[nn.Module, str]]


def require_fitting(mask: Mask, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a mask of another model.

    Raises:
        MaskError: it is empty, names what the model lacks, or a slice beyond a parameter's shape; lists all of it.
    """
    if not mask.parts:
        raise MaskError("no parameter of the model is to be trained: the mask is empty")
    problems = [f"{name}: not a parameter of this model" for name in sorted(mask.parts.keys() - shapes.keys())]
    for name, part in sorted(mask.sliced.items()):
        shape = shapes.get(name)
        if shape is None:
            continue
        if part.dim >= len(shape):
            problems.append(f"{name}: a slice of dimension {part.dim} of a parameter of {list(shape)}")
        elif not part.ranges or min(part.indices, default=-1) < 0 or max(part.indices, default=0) >= shape[part.dim]:
            problems.append(f"{name}: {list(part.ranges)} in dimension {part.dim} of a parameter of {list(shape)}")
    if problems:
        raise MaskError("the mask does not fit the model to be trained:\n" + listing(problems))


def taken(value: Tensor, part: Slice | None) -> Tensor:
    """The trained part of a parameter's value: its rows (columns, depth) one after the other, or all of it."""
    return value if part is None else value.index_select(part.dim, torch.tensor(part.indices, device=value.device))


def outside(value: Tensor, part: Slice | None) -> Tensor:
    """All but the trained part of a parameter's value; all of it where no part is said."""
    if part is None:
        return value
    kept = torch.ones(value.shape[part.dim], dtype=torch.bool, device=value.device)
    kept[part.indices] = False
    return value.index_select(part.dim, kept.nonzero().flatten())


def put(parameter: Tensor, part: Slice | None, value: Tensor) -> None:
    """Write the trained part into a whole parameter, in place."""
    value = value.to(parameter.device, parameter.dtype)
    with torch.no_grad():
        if part is None:
            parameter.copy_(value)
        else:
            parameter.index_copy_(part.dim, torch.tensor(part.indices, device=parameter.device), value)


def places_of(model: nn.Module) -> dict[str, Places]:
    """Name → every module and attribute that holds this parameter: several where it is tied."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places: dict[str, Places] = {name: [] for name in names.values()}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places[names[id(parameter)]].append((module, attribute))
    return places


def splice(places: Places, part: Slice, values: nn.Parameter) -> None:
    """Let a frozen parameter be used with other values in some rows (columns, depth), in every module that holds it.

    Args:
        values: of those rows; a parameter of its own, from then on part of the model.
    """
    index = torch.tensor(part.indices, device=values.device)
    for module, attribute in places:
        # Not checked by running it: under ZeRO 3 the frozen one may not be there now. Shape and type cannot change.
        register_parametrization(module, attribute, _Spliced(part.dim, index, values), unsafe=True)
        _compute_once(module)


def _compute_once(module: nn.Module) -> None:
    """Let a module put its slices in once in each forward pass, however often it reads the parameter: experts may be
    read one by one."""
    if "forward" in vars(module):
        return
    forward = module.forward

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with cached():
            return forward(*args, **kwargs)

    module.forward = run


class _Spliced(nn.Module):
    """frozen → frozen with the trained rows (columns, depth) in it."""

    index: Tensor

    def __init__(self, dim: int, index: Tensor, values: nn.Parameter) -> None:
        super().__init__()
        self.dim, self.values = dim, values
        self.register_buffer("index", index, persistent=False)

    def forward(self, frozen: Tensor) -> Tensor:
        if frozen.numel() == 0:  # partitioned and only looked at: DeepSpeed prints the model while it is built
            return frozen
        return frozen.index_copy(self.dim, self.index, self.values)
