"""Values by their bits: equality (-0.0 is not 0.0, and a NaN is itself), and whether all are finite."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; makes no copy of them.

    A sum is five times as fast as the extremes, and not finite if a value is not; it may overflow by itself.
    """
    if not values.is_floating_point() or not values.numel():
        return True
    if values.element_size() == 1:  # float8 knows neither sum nor extremes
        values = values.float()
    return bool(values.sum().isfinite()) or all(bool(one.isfinite()) for one in values.aminmax())


def differing(one: Tensor, other: Tensor) -> Tensor:
    """Where two tensors of one shape differ, as bool of that shape.

    Of different types, both are first widened to one that holds all values of both, which loses nothing.
    """
    if one.dtype != other.dtype:
        wide = torch.promote_types(one.dtype, other.dtype)
        one, other = one.to(wide), other.to(wide)
    integers = _INTEGERS[one.element_size()]
    return one.contiguous().view(integers) != other.contiguous().view(integers)


def converted(values: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The same values in another type, or None if that type does not hold all of them exactly."""
    if values.dtype == dtype:
        return values
    found = values.to(dtype)
    return None if differing(found, values).any() else found
