"""Intervals of a mean over few repetitions (seeds), and of differences that are paired by repetition.

Student's t, because a bootstrap of five values holds the truth in about 84 % of cases where it says 95: it takes their
spread for that of the population, and does not widen for the few degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special, stats

from trace_transfer.reporting.records import Interval

MIN_VALUES = 3
Values = Mapping[int, float]  # seed → value


def interval(values: Sequence[float]) -> Interval:
    """A mean and its 95 % interval, mean ± t(n − 1) · s / √n; without an interval for fewer than three values.

    Values that are all the same have an interval of no width: it says that nothing else was seen, not that nothing
    else can be. Of paired samples give the differences."""
    sample = np.asarray(values, dtype=np.float64)
    mean, num = float(sample.mean()), len(sample)
    if num < MIN_VALUES:
        return Interval(mean=mean, num=num)
    if np.ptp(sample) == 0:
        return Interval(mean=mean, low=float(sample[0]), high=float(sample[0]), num=num)
    low, high = stats.t.interval(0.95, num - 1, sample.mean(), stats.sem(sample))
    return Interval(mean=mean, low=float(low), high=float(high), num=num)


def paired(ones: Values, others: Values) -> Interval | None:
    """The mean difference over the seeds that both have, with its p; None where they have none in common."""
    differences = [ones[seed] - others[seed] for seed in ones if seed in others]
    return interval(differences).model_copy(update={"p": p_value(differences)}) if differences else None


def p_value(differences: Sequence[float]) -> float | None:
    """Two-sided p of "the mean difference is 0": Student's paired t test, the counterpart of `interval`.

    None for fewer than three differences. Where all are the same, t is not defined and it is that of the exact
    sign-flip test: 1 if they are 0, else 2 / 2^n. (Of five seeds that test never says less than 0.0625, so it cannot be
    the general one here.)"""
    sample = np.asarray(differences, dtype=np.float64)
    if len(sample) < MIN_VALUES:
        return None
    if np.ptp(sample) == 0:
        return 1.0 if sample[0] == 0 else 2.0 ** (1 - len(sample))
    return float(stats.ttest_1samp(sample, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p values adjusted for all being asked together (Holm, 1979): at 0.05 a false finding *anywhere* is that unlikely.

    The i-th smallest of m (from 1) is multiplied by m − i + 1, is at least the one before it, and at most 1."""
    ranked, adjusted = np.argsort(p_values, kind="stable"), np.array(p_values, np.float64)
    adjusted[ranked] = np.maximum.accumulate(np.minimum(adjusted[ranked] * np.arange(len(ranked), 0, -1), 1.0))
    return tuple(adjusted.tolist())


def smallest_found(half_width: float, num: int, alpha: float, power: float = 0.8) -> float:
    """The true mean difference that the two-sided paired t test at `alpha` finds with that power: less may be missed.

    Of t with n − 1 degrees of freedom, not central by δ √n / s: the δ with P(|t| > quantile of 1 − α / 2) = `power`.
    `half_width` is that of the 95 % interval of the mean difference, which says how much the pairs deviate (s)."""
    beyond = stats.t.isf(alpha / 2, num - 1)
    shift = special.ncfdtrinc(1, num - 1, 1 - power, beyond**2) ** 0.5  # t² is F, as far from central as t squared
    deviation = half_width * math.sqrt(num) / stats.t.isf((1 - 0.95) / 2, num - 1)
    return float(shift * deviation / math.sqrt(num))
