"""Intervals: against formulas written out, and how often they hold the truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from trace_transfer.reporting.intervals import holm, p_value, smallest_found
from trace_transfer.reporting.intervals import interval as interval_of

FIVE = [0.41, 0.38, 0.44, 0.40, 0.47]


def interval(values):
    found = interval_of(values)
    return (found.low, found.high) if len(values) > 2 else found.low


def test_students_interval_written_out():
    mean = sum(FIVE) / 5
    spread = math.sqrt(sum((value - mean) ** 2 for value in FIVE) / 4)
    half = 2.7764451 * spread / math.sqrt(5)  # the 97.5 % point of t with 4 degrees of freedom, from a table
    assert interval(FIVE) == pytest.approx((mean - half, mean + half), abs=1e-8)


def test_few_and_equal_values():
    assert interval([0.4]) is interval([0.4, 0.5]) is None is p_value([0.1, 0.2])
    assert interval([0.4] * 5) == (0.4, 0.4)
    low, high = interval([0.4, 0.4, 0.4, 0.4, 0.4 + 1e-15])
    assert low <= high and high == pytest.approx(0.4)


def test_how_often_they_hold_the_truth():
    low, high = np.transpose([*map(interval, np.random.default_rng(0).normal(size=(2000, 3)))])
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(0.95, abs=0.025)


def test_p_value_says_what_the_interval_says():
    for seed in range(50):
        values = np.random.default_rng(seed).normal(0.8, size=5)
        low, high = interval(values)
        assert (p_value(values) < 0.05) == (low > 0 or high < 0)


def test_equal_differences_have_the_least_that_signs_can_say():
    assert p_value([0.0] * 5) == 1.0
    means = [np.mean(np.multiply(signs, 0.3)) for signs in itertools.product((1, -1), repeat=5)]
    assert p_value([0.3] * 5) == np.mean([abs(mean) >= 0.3 - 1e-12 for mean in means])


def half_width(deviation, num):
    return deviation * stats.t.isf(0.025, num - 1) / math.sqrt(num)


@pytest.mark.parametrize(("num", "alpha"), [(3, 0.05), (5, 0.01), (20, 0.05 / 12)])
def test_the_smallest_difference_is_found_in_80_of_100_runs(num, alpha):
    least = smallest_found(half_width(0.3, num), num, alpha)
    drawn = np.random.default_rng(0).normal(least, 0.3, (20_000, num))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < alpha) == pytest.approx(0.8, abs=0.01)


def test_twelve_pairs_find_what_tables_say():
    """Cohen's d for n = 12, two-sided 0.05, power 0.8 (G*Power: 0.8887)."""
    assert smallest_found(half_width(1.0, 12), 12, 0.05) == pytest.approx(0.8887, abs=1e-4)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.6, 0.5]) == (1.0, 1.0)
    assert holm([]) == ()
