"""The learning rate of each step: a linear warm-up, then half a cosine down to 0."""

from __future__ import annotations

import math


def num_warmup_steps(num_steps: int, warmup: float) -> int:
    """Steps in which the rate rises: `warmup` of all, rounded up, but never all (the first step's rate is 0)."""
    return min(math.ceil(warmup * num_steps), num_steps - 1)


def rate_factor(step: int, num_steps: int, num_warmup: int) -> float:
    """Share of the peak rate at a step counted from 0, in [0, 1]; as `transformers.get_cosine_schedule_with_warmup`."""
    if step < num_warmup:
        return step / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
