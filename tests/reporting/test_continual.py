"""Measures of continual learning against loops that follow the papers' formulas, and properties that must hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trace_transfer.reporting import continual as cl

# Three tasks, one a stage, each measured by one column; the base is row 0.
R = np.array([
    [0.10, 0.20, 0.30],
    [0.80, 0.15, 0.30],
    [0.60, 0.70, 0.35],
    [0.70, 0.50, 0.90],
])  # fmt: skip
IN_TURN = cl.first_stages([[0], [1], [2]], 3)


@st.composite
def streams(draw, min_stages=1):
    """A matrix, and for each column the stages (one or more) that train it."""
    num_stages, num_columns = draw(st.integers(min_stages, 5)), draw(st.integers(1, 5))
    scores = draw(arrays(np.float64, (num_stages + 1, num_columns), elements=st.floats(-10, 10, width=32)))
    trained = draw(
        st.lists(st.sets(st.integers(1, num_stages), min_size=1), min_size=num_columns, max_size=num_columns)
    )
    learned = [[e for e in range(num_columns) if stage in trained[e]] for stage in range(1, num_stages + 1)]
    return scores, learned


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
    assert cl.after_learning(R, IN_TURN, 0).tolist() == [0.8, 0.6, 0.7]
    assert cl.after_learning(R, IN_TURN, 2).tolist() == [0.9]


@given(streams())
def test_as_the_loops_say(stream):
    scores, learned = stream
    first = cl.first_stages(learned, scores.shape[1])
    expected = slowly(scores.tolist(), learned)
    assert {one.name for one, _ in cl.MEASURES} == expected.keys()
    for one, of in cl.MEASURES:
        found = of(scores, first)
        assert (found is None) == (expected[one.name] is None), one.name
        assert found is None or found == pytest.approx(expected[one.name], abs=1e-9), one.name


@given(streams())
def test_what_was_gained_is_what_was_learned_less_what_was_lost(stream):
    scores, learned = stream
    first = cl.first_stages(learned, scores.shape[1])
    before_last = np.mean(first < len(scores) - 1)
    lost = cl.backward_transfer(scores, first)
    gained = cl.average(scores, first) - scores[0].mean()
    assert gained == pytest.approx(cl.learning(scores, first) + before_last * (lost or 0.0), abs=1e-6)


@given(streams(min_stages=2))
def test_forgetting_is_at_least_what_is_lost_since_it_was_learned(stream):
    scores, learned = stream
    first = cl.first_stages(learned, scores.shape[1])
    found, lost = cl.forgetting(scores, first), cl.backward_transfer(scores, first)
    assert (found is None) == (lost is None)
    assert found is None or found >= -lost - 1e-6


def test_what_the_base_knew_and_lost_before_its_turn_is_not_forgotten():
    """RWalk's maximum would reach back to 0.9, which no stage taught."""
    scores = np.array([[0.1, 0.9], [0.5, 0.2], [0.5, 0.4], [0.5, 0.4]])
    first = cl.first_stages([[0], [1], [0]], 2)
    assert cl.forgetting(scores, first) == pytest.approx(0.0)
    assert cl.forward_transfer(scores, first) == pytest.approx(-0.7)


def test_joint_training_and_one_task_have_nothing_to_forget():
    joint, alone = cl.first_stages([[0, 1, 2]], 3), cl.first_stages([[0]], 1)
    for scores, first, learned in ((R[[0, 3]], joint, 0.5), (R[:2, :1], alone, 0.7)):
        assert cl.learning(scores, first) == pytest.approx(learned)
        for measure in (cl.backward_transfer, cl.forgetting, cl.forward_transfer):
            assert measure(scores, first) is None


def test_replay_counts_from_the_first_time():
    """Two tasks mixed, then the third with some of both again."""
    first = cl.first_stages([[0, 1], [2, 0, 1]], 3)
    assert first.tolist() == [1, 1, 2]
    scores = R[[0, 2, 3]]
    assert cl.backward_transfer(scores, first) == pytest.approx(((0.7 - 0.6) + (0.5 - 0.7)) / 2)
    assert cl.forward_transfer(scores, first) == pytest.approx(0.05)
