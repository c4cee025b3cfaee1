"""Intervals: against formulas written out, against scipy's own paired bootstrap, and how often they hold the truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trace_transfer.reporting.intervals import deviation_of, holm, interval, p_value, sign_flip_p, smallest_found

FIVE = [0.41, 0.38, 0.44, 0.40, 0.47]


def test_students_interval_written_out():
    mean = sum(FIVE) / 5
    spread = math.sqrt(sum((value - mean) ** 2 for value in FIVE) / 4)
    half = 2.7764451 * spread / math.sqrt(5)  # the 97.5 % point of t with 4 degrees of freedom, from a table
    assert interval(FIVE) == pytest.approx((mean - half, mean + half), abs=1e-8)


def test_bootstrap_of_differences_is_the_paired_bootstrap():
    """Of twelve values: of five, one resample in 26 is the sample in another order, and rounding decides such ties."""
    ones, others = np.random.default_rng(0).normal(size=(2, 12))
    paired = stats.bootstrap(
        (ones, others), lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis), paired=True,
        method="BCa", vectorized=True, random_state=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    found = interval(ones - others, "bootstrap")
    assert found == pytest.approx((paired.low, paired.high), abs=1e-3)


def test_the_same_seed_gives_the_same_bootstrap():
    values = np.random.default_rng(0).normal(size=8)
    assert interval(values, "bootstrap", seed=1) == interval(values, "bootstrap", seed=1)
    assert interval(values, "bootstrap", seed=1) != interval(values, "bootstrap", seed=2)


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_less_than_three_values_have_none(method):
    assert interval([0.4], method) is None
    assert interval([0.4, 0.5], method) is None
    assert interval([0.4, 0.5, 0.45], method) is not None


@pytest.mark.parametrize("method", ["t", "bootstrap"])
def test_equal_values(method):
    assert interval([0.4] * 5, method) == (0.4, 0.4)
    low, high = interval([0.4, 0.4, 0.4, 0.4, 0.4 + 1e-15], method)
    assert low <= high and high == pytest.approx(0.4)


@given(st.lists(st.integers(-100, 100), min_size=3, max_size=8).map(lambda values: [v / 100 for v in values]))
def test_holds_its_mean_and_moves_with_its_values(values):
    low, high = interval(values)
    assert low - 1e-9 <= np.mean(values) <= high + 1e-9
    assert interval([value + 1 for value in values]) == pytest.approx((low + 1, high + 1), abs=1e-9)
    assert interval([-value for value in values]) == pytest.approx((-high, -low), abs=1e-9)


def share_that_hold(bounds, truth):
    low, high = np.asarray(bounds)
    return np.mean((low <= truth) & (truth <= high))


@pytest.mark.parametrize(
    ("kind", "num", "students", "bca", "percentile"),
    [
        ("normal", 3, 0.95, 0.73, 0.76),
        ("normal", 5, 0.95, 0.84, 0.84),
        ("normal", 10, 0.95, 0.90, 0.90),
        ("uniform", 5, 0.94, 0.85, 0.84),
        ("exponential", 5, 0.88, 0.80, 0.79),
    ],
)
def test_how_often_they_hold_the_truth(kind, num, students, bca, percentile):
    """The table of the module: Student's keeps its word with a few normal values, a bootstrap does not."""
    values = getattr(np.random.default_rng(0), kind)(size=(2000, num))
    truth = {"normal": 0.0, "uniform": 0.5, "exponential": 1.0}[kind]
    assert share_that_hold(np.transpose([interval(row) for row in values]), truth) == pytest.approx(students, abs=0.02)
    for method, expected in (("BCa", bca), ("percentile", percentile)):
        found = stats.bootstrap(
            (values,), np.mean, axis=1, n_resamples=999, method=method, vectorized=True, batch=100,
            random_state=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        assert share_that_hold((found.low, found.high), truth) == pytest.approx(expected, abs=0.025)
        if method == "BCa":  # ours is the same, with more resamples
            for row, low, high in zip(values[:3], found.low, found.high, strict=False):
                assert interval(row, "bootstrap") == pytest.approx((low, high), abs=0.2 * (high - low))


def test_p_value_says_what_the_interval_says():
    for seed in range(50):
        values = np.random.default_rng(seed).normal(0.8, size=5)
        low, high = interval(values)
        assert (p_value(values) < 0.05) == (low > 0 or high < 0)
    assert p_value([0.1, 0.2]) is None


@pytest.mark.parametrize("values", [[0.1, 0.2, -0.05, 0.3, 0.15], [0.1, 0.1, -0.1], [3.0, 1.0, 2.0, 5.0]])
def test_sign_flips_counted_one_by_one(values):
    means = [np.mean([s * v for s, v in zip(signs, values, strict=True)])
             for signs in itertools.product((1, -1), repeat=len(values))]  # fmt: skip
    expected = np.mean([abs(mean) >= abs(np.mean(values)) - 1e-12 for mean in means])
    assert sign_flip_p(values) == pytest.approx(expected)


def test_equal_differences_have_the_least_that_signs_can_say():
    assert p_value([0.0] * 5) == 1.0
    assert p_value([0.3] * 5) == pytest.approx(2 / 2**5)


@pytest.mark.parametrize(("num", "alpha"), [(3, 0.05), (5, 0.01), (12, 0.05), (20, 0.05 / 12)])
def test_the_smallest_difference_is_found_in_80_of_100_runs(num, alpha):
    """By the power of t that is not central, and by drawing."""
    least, beyond = smallest_found(0.3, num, alpha), stats.t.isf(alpha / 2, num - 1)
    shift = least / 0.3 * math.sqrt(num)
    if num != 5:  # where scipy's function is not a number
        power = 1 - stats.nct.cdf(beyond, num - 1, shift) + stats.nct.cdf(-beyond, num - 1, shift)
        assert power == pytest.approx(0.8, abs=1e-3)
    drawn = np.random.default_rng(0).normal(least, 0.3, (20_000, num))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < alpha) == pytest.approx(0.8, abs=0.01)


def test_twelve_pairs_find_what_tables_say():
    """Cohen's d for n = 12, two-sided 0.05, power 0.8 (G*Power: 0.8887)."""
    assert smallest_found(1.0, 12, 0.05) == pytest.approx(0.8887, abs=1e-4)


def test_the_deviation_of_an_interval():
    low, high = interval(FIVE)
    assert deviation_of((high - low) / 2, 5) == pytest.approx(np.std(FIVE, ddof=1))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.6, 0.5]) == (1.0, 1.0)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lowers_nothing_and_keeps_the_order(values):
    adjusted = holm(values)
    assert all(
        value <= high <= min(1, value * len(values)) + 1e-12 for value, high in zip(values, adjusted, strict=True)
    )
    for one, other in itertools.combinations(range(len(values)), 2):
        if values[one] < values[other]:
            assert adjusted[one] <= adjusted[other]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"finite, found .*nan"):
        interval([0.1, float("nan"), 0.2])
    with pytest.raises(ValueError, match="one or more numbers"):
        interval([])
    with pytest.raises(ValueError, match="found 'normal', expected t or bootstrap"):
        interval(FIVE, "normal")
    with pytest.raises(ValueError, match=r"confidence: found 95"):
        interval(FIVE, confidence=95)
