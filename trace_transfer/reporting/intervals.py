"""Intervals of a mean over few repetitions (seeds), and of differences that are paired by repetition.

Share of 2,000 simulated samples whose 95 % interval holds the true mean (`tests/reporting/test_intervals.py` makes it
again, to ± 0.02):

| n  | draws       | Student's t | bootstrap, BCa | bootstrap, percentile |
|----|-------------|-------------|----------------|-----------------------|
| 3  | normal      | 0.95        | 0.73           | 0.76                  |
| 5  | normal      | 0.95        | 0.84           | 0.84                  |
| 10 | normal      | 0.96        | 0.90           | 0.90                  |
| 5  | uniform     | 0.93        | 0.85           | 0.84                  |
| 5  | exponential | 0.88        | 0.81           | 0.79                  |

A bootstrap of five values takes their spread for that of the population, and it is on average √(4/5) of it; nor does it
widen for the few degrees of freedom. So at five seeds a "95 %" bootstrap interval misses one time in six, and a
difference that is not there is found three times as often as said. `t` is therefore the default; `bootstrap` is there
beside it because many papers report it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import special, stats

METHODS = ("t", "bootstrap")
MIN_VALUES = 3
NUM_RESAMPLES = 9999

IntervalMethod = Literal["t", "bootstrap"]
Bounds = tuple[float, float]


def interval(
    values: Sequence[float], method: IntervalMethod = "t", *, confidence: float = 0.95, seed: int = 0
) -> Bounds | None:
    """The interval of a mean; None for fewer than three values, of which no spread can be told honestly.

    `t`: mean ± t(n − 1) · s / √n (exact for normal values). `bootstrap`: bias-corrected and accelerated (Efron, 1987),
    the percentile interval where that is not defined; 9,999 resamples, drawn by `seed`. Values that are all the same
    have an interval of no width by either: it says that nothing else was seen, not that nothing else can be.

    Of paired samples give the differences: resampling pairs and taking the mean of the differences is the same thing.

    Raises:
        ValueError: values that are not finite, a method or confidence that is not one.
    """
    sample = _finite(values)
    if method not in METHODS:
        raise ValueError(f"method: found {method!r}, expected {' or '.join(METHODS)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: found {confidence}, expected a share between 0 and 1")
    if len(sample) < MIN_VALUES:
        return None
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    if method == "t":
        low, high = stats.t.interval(confidence, len(sample) - 1, sample.mean(), stats.sem(sample))
        return float(low), float(high)
    return _bootstrap(sample, confidence, seed)


def _bootstrap(sample: np.ndarray, confidence: float, seed: int) -> Bounds:
    for kind in ("BCa", "percentile"):
        with warnings.catch_warnings():
            # BCa of nearly equal values is NaN, and scipy warns of it; then the percentile interval is taken.
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                (sample,), np.mean, confidence_level=confidence, n_resamples=NUM_RESAMPLES, method=kind,
                vectorized=True, random_state=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        if math.isfinite(found.low) and math.isfinite(found.high):
            return float(found.low), float(found.high)
    raise ValueError(f"no bootstrap interval of {sample.tolist()}")  # percentiles of finite values are finite


def p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p of "the mean difference is 0": Student's paired t test, the counterpart of the `t` interval.

    None for fewer than three differences. Where all are the same, t is not defined and it is that of the exact
    sign-flip test: 1 if they are 0, else 2 / 2^n. (That test needs no normal values, but of five seeds it can never say
    less than 0.0625, so it cannot be the general one here; `sign_flip_p` gives it.)
    """
    sample = _finite(differences)
    if len(sample) < MIN_VALUES:
        return None
    if np.ptp(sample) == 0:
        return sign_flip_p(differences)
    return float(stats.ttest_1samp(sample, 0.0).pvalue)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the exact sign-flip permutation test: share of all 2^n signs whose mean is as far from 0."""
    sample = _finite(differences)
    found = stats.permutation_test(
        (sample, np.zeros_like(sample)), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples",
        n_resamples=np.inf, vectorized=True,
    )  # fmt: skip
    return min(1.0, float(found.pvalue))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p values adjusted for all being asked together (Holm, 1979): at 0.05 a false finding *anywhere* is that unlikely.

    The i-th smallest of m (from 1) is multiplied by m − i + 1, is at least the one before it, and at most 1.
    """
    ranked = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(ranked):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - place)))
        adjusted[index] = highest
    return tuple(adjusted)


def smallest_found(deviation: float, num: int, alpha: float, power: float = 0.8) -> float:
    """The true mean difference that the two-sided paired t test at `alpha` finds with that power: less may be missed.

    Of t with n − 1 degrees of freedom, not central by δ √n / s: the δ with P(|t| > quantile of 1 − α / 2) = `power`.

    Args:
        deviation: standard deviation s of the paired differences, taken for that of all pairs that there might be.
    """
    beyond = stats.t.isf(alpha / 2, num - 1)
    shift = special.ncfdtrinc(1, num - 1, 1 - power, beyond**2) ** 0.5  # t² is F, as far from central as t squared
    return float(shift * deviation / math.sqrt(num))


def deviation_of(half_width: float, num: int, confidence: float = 0.95) -> float:
    """The standard deviation of the values of which Student's interval has that half width."""
    return float(half_width * math.sqrt(num) / stats.t.isf((1 - confidence) / 2, num - 1))


def _finite(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"expected one or more numbers, found {values!r}")
    if not np.isfinite(sample).all():
        raise ValueError(f"values must be finite, found {sample.tolist()}")
    return sample
