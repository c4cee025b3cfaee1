import math

import pytest
import torch

from trace_transfer.models.tensors import converted, differing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_bits_and_not_values(dtype):
    nan = torch.tensor([math.nan], dtype=dtype)
    other_nan = (nan.view(torch.uint8) ^ torch.tensor([1] + [0] * (dtype.itemsize - 1), dtype=torch.uint8)).view(dtype)
    assert other_nan.isnan().all()
    one = torch.cat([torch.tensor([1.0, 0.0, math.inf], dtype=dtype), nan, nan])
    other = torch.cat([torch.tensor([1.0, -0.0, math.inf], dtype=dtype), nan, other_nan])
    assert differing(one, other).tolist() == [False, True, False, False, True]
    assert not differing(one, one.clone()).any()


def test_types_are_compared_after_widening():
    exact = torch.tensor([1.0, 0.5, -0.0, 3.140625])
    assert not differing(exact, exact.bfloat16()).any()
    assert not differing(exact.bfloat16(), exact.half()).any()
    assert differing(torch.tensor([1.001, -0.0]), torch.tensor([1.0, 0.0]).bfloat16()).tolist() == [True, True]


def test_parts_and_scalars():
    whole = torch.arange(12.0).reshape(3, 4)
    assert not differing(whole.t(), whole.t().contiguous()).any()
    assert differing(torch.tensor(1.0), torch.tensor(2.0)).item()


def test_conversions_that_lose_something():
    assert converted(torch.tensor([1.0, 0.5]), torch.bfloat16).dtype == torch.bfloat16
    assert converted(torch.tensor([1.001]), torch.bfloat16) is None
    assert converted(torch.tensor([1e30]).bfloat16(), torch.float16) is None
    assert converted(torch.tensor([1e30]).bfloat16(), torch.float32) is not None
