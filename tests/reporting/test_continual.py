"""Measures of continual learning against loops that follow the papers' formulas, and properties that must hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trace_transfer.reporting import continual as cl
from trace_transfer.reporting.intervals import interval

# Three tasks, one a stage, each measured by one column; the base is row 0.
R = np.array([
    [0.10, 0.20, 0.30],
    [0.80, 0.15, 0.30],
    [0.60, 0.70, 0.35],
    [0.70, 0.50, 0.90],
])  # fmt: skip


def first_stages(learned, num_columns):
    found = [next(stage for stage, of in enumerate(learned, 1) if column in of) for column in range(num_columns)]
    return np.array(found)


IN_TURN = first_stages([[0], [1], [2]], 3)


@st.composite
def streams(draw):
    """A matrix, and for each column the stages (one or more) that train it."""
    num_stages, num_columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    scores = draw(arrays(np.float64, (num_stages + 1, num_columns), elements=st.floats(-10, 10, width=32)))
    trained = draw(
        st.lists(st.sets(st.integers(1, num_stages), min_size=1), min_size=num_columns, max_size=num_columns)
    )
    return scores, [[e for e in range(num_columns) if stage in trained[e]] for stage in range(1, num_stages + 1)]


def slowly(R, learned):
    """All measures with loops and lists."""
    T, tasks = len(R) - 1, range(len(R[0]))
    first = [min(stage for stage, columns in enumerate(learned, 1) if task in columns) for task in tasks]

    def mean(values):
        return math.fsum(values) / len(values) if values else None

    backward, forgotten, forward, learned_ = [], [], [], []
    for task in tasks:
        learned_.append(R[first[task]][task] - R[0][task])
        if first[task] < T:
            backward.append(R[T][task] - R[first[task]][task])
            best = -math.inf
            for stage in range(first[task], T):
                best = max(best, R[stage][task])
            forgotten.append(best - R[T][task])
        if first[task] > 1:
            forward.append(R[first[task] - 1][task] - R[0][task])
    return {
        "average": mean([R[T][task] for task in tasks]), "backward_transfer": mean(backward),
        "forgetting": mean(forgotten), "forward_transfer": mean(forward), "learning": mean(learned_),
    }  # fmt: skip


def test_an_example_by_hand():
    assert cl.average(R, IN_TURN) == pytest.approx((0.7 + 0.5 + 0.9) / 3)
    assert cl.backward_transfer(R, IN_TURN) == pytest.approx(((0.7 - 0.8) + (0.5 - 0.7)) / 2)
    assert cl.forgetting(R, IN_TURN) == pytest.approx(((0.8 - 0.7) + (0.7 - 0.5)) / 2)
    assert cl.forward_transfer(R, IN_TURN) == pytest.approx(((0.15 - 0.2) + (0.35 - 0.3)) / 2)
    assert cl.learning(R, IN_TURN) == pytest.approx((0.7 + 0.5 + 0.6) / 3)


@given(streams())
def test_as_the_loops_say(stream):
    scores, learned = stream
    first = first_stages(learned, scores.shape[1])
    expected = slowly(scores.tolist(), learned)
    assert {one.name for one, _ in cl.MEASURES} == expected.keys()
    for one, of in cl.MEASURES:
        found = of(scores, first)
        assert (found is None) == (expected[one.name] is None), one.name
        assert found is None or found == pytest.approx(expected[one.name], abs=1e-9), one.name


# ---- over learning rates: made-up methods whose truth is known, and a slow twin of the interval

RATES = (0.25, 0.5, 1.0, 2.0)
LEARNED = np.array([1.0, 2.0, 3.0, 4.0])


def front(share, rng=None, num=12, learned=LEARNED):
    """Loses `share` of what it learns; a seed learns more or less, and loses more or less, at all rates alike."""
    noise = np.zeros((4, 2, num)) if rng is None else rng.normal(0, [[[0.4], [0.1]]], (4, 2, num))
    own = 0 if rng is None else rng.normal(0, 0.3, num)
    learned_RS = learned[:, None] + noise[:, 0] + own
    return cl.Front(RATES, tuple(range(num)), learned_RS, share * learned_RS + noise[:, 1])


def test_what_is_lost_at_the_same_learning_is_known():
    """One stands at its rate, where it learns 2; the other, which learns 3 at its own, is taken down to 2."""
    found = cl.matched(front(0.1), front(0.5), (0.5, 1.0), ("core", "all"))
    assert (found.level, found.reason) == (2.0, "")
    assert (found.difference.mean, found.difference.num) == (pytest.approx(0.1 * 2 - 0.5 * 2), 12)
    between = cl.matched(front(0.1, learned=LEARNED - 0.7), front(0.5), (1.0, 1.0), ("core", "all"))
    assert between.level == pytest.approx(2.3) and between.difference.mean == pytest.approx((0.1 - 0.5) * 2.3)


def test_lines_that_do_not_meet_are_told():
    fast, slow = front(0.1, learned=LEARNED + 10), front(0.5)
    reason = cl.matched(fast, slow, (1.0, 2.0), ("fast", "slow")).reason
    assert reason == "fast learns at least 11, and 4 was to be matched"
    assert cl.matched(slow, fast, (2.0, 1.0), ("slow", "fast")).difference is None
    others = cl.Front(RATES, (100, 101), fast.learned_RS[:, :2], fast.lost_RS[:, :2])
    assert cl.matched(slow, others, (1.0, 1.0), ("a", "b")).reason == "no seed trained all rates of both"


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
        found = interval(values)
        held += found.low <= (0.1 - 0.5) * 2.4 <= found.high
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
    assert cl.best_rate({0.5: [0.1, 0.9], 1.0: [0.6, 0.6], 0.25: [0.0, 0.2]}) == 1.0
    assert cl.best_rate({2.0: [0.5], 1.0: [0.5]}) == 1.0
