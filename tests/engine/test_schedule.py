import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from trace_transfer.engine.batches import num_warmup_steps, rate_factor


@pytest.mark.parametrize(("num_steps", "warmup"), [(2, 0.1), (10, 0.0), (11, 0.1), (40, 0.33), (100, 0.03)])
def test_as_transformers(num_steps, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, math.ceil(warmup * num_steps), num_steps)
    for step in range(num_steps):
        assert rate_factor(step, num_steps, num_warmup_steps(num_steps, warmup)) == scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()


def test_a_single_step_moves_something():
    assert num_warmup_steps(1, 0.5) == 0
    assert rate_factor(0, 1, 0) == 1.0
