"""Learned against lost over learning rates: made-up methods whose truth is known, and a slow twin of the interval."""

import numpy as np
import pytest

from trace_transfer.reporting.front import Front, best_rate, matched
from trace_transfer.reporting.intervals import interval

RATES = (0.25, 0.5, 1.0, 2.0)
LEARNED = np.array([1.0, 2.0, 3.0, 4.0])


def front(share, rng=None, num=12, learned=LEARNED):
    """Loses `share` of what it learns; a seed learns more or less, and loses more or less, at all rates alike."""
    noise = np.zeros((4, 2, num)) if rng is None else rng.normal(0, [[[0.4], [0.1]]], (4, 2, num))
    own = 0 if rng is None else rng.normal(0, 0.3, num)
    learned_RS = learned[:, None] + noise[:, 0] + own
    return Front(RATES, tuple(range(num)), learned_RS, share * learned_RS + noise[:, 1])


def test_what_is_lost_at_the_same_learning_is_known():
    """One stands at its rate, where it learns 2; the other, which learns 3 at its own, is taken down to 2."""
    found = matched(front(0.1), front(0.5), (0.5, 1.0), ("core", "all"))
    assert (found.level, found.reason) == (2.0, "")
    assert list(found.differences.values()) == pytest.approx([0.1 * 2 - 0.5 * 2] * 12)
    between = matched(front(0.1, learned=LEARNED - 0.7), front(0.5), (1.0, 1.0), ("core", "all"))
    assert between.level == pytest.approx(2.3) and between.differences[0] == pytest.approx((0.1 - 0.5) * 2.3)


def test_lines_that_do_not_meet_are_told():
    fast, slow = front(0.1, learned=LEARNED + 10), front(0.5)
    assert (
        matched(fast, slow, (1.0, 2.0), ("fast", "slow")).reason == "fast learns at least 11, and 4 was to be matched"
    )
    assert matched(slow, fast, (2.0, 1.0), ("slow", "fast")).differences is None
    others = Front(RATES, (100, 101), fast.learned_RS[:, :2], fast.lost_RS[:, :2])
    assert matched(slow, others, (1.0, 1.0), ("a", "b")).reason == "no seed trained all rates of both"


def test_a_line_is_followed_to_the_rate_that_learns_most():
    """Beyond it a higher rate learns less and loses more; that branch is not taken for the same learning."""
    falling = front(0.1, learned=np.array([1.0, 2.0, 3.0, 1.5]))
    assert falling.reach == (1.0, 3.0)
    assert falling.lost_at(1.5) == pytest.approx([0.15] * 12)
    assert front(0.1, learned=np.array([3.0, 2.0, 1.0, 0.5])).lost_at(3.0) == pytest.approx([0.3] * 12)


def test_the_interval_holds_the_truth_and_is_that_of_resampled_seeds():
    """The place on a line is an estimate. Left out, that noise of what was learned would make the interval too wide or
    too narrow; resampling seeds and finding the place anew for each, slowly, gives the same width."""
    rng, held, widths = np.random.default_rng(0), 0, []
    for draw in range(400):
        ours, theirs = front(0.1, rng), front(0.5, rng)
        values = ours.lost_at(2.4) - theirs.lost_at(2.4)
        low, high = interval(values)
        held += low <= (0.1 - 0.5) * 2.4 <= high
        if draw < 10:
            resampled = []
            for _ in range(400):
                seeds = rng.integers(0, 12, 12)
                lost = [np.interp(2.4, one.learned_RS[:, seeds].mean(1), one.lost_RS[:, seeds].mean(1))
                        for one in (ours, theirs)]  # fmt: skip
                resampled.append(lost[0] - lost[1])
            widths.append(np.std(resampled) / (np.std(values, ddof=1) / np.sqrt(12)))
    assert held / 400 == pytest.approx(0.95, abs=0.025)
    assert np.mean(widths) == pytest.approx(1.0, abs=0.1)


def test_the_best_rate_is_that_of_the_highest_mean():
    assert best_rate({0.5: [0.1, 0.9], 1.0: [0.6, 0.6], 0.25: [0.0, 0.2]}) == 1.0
    assert best_rate({2.0: [0.5], 1.0: [0.5]}) == 1.0
