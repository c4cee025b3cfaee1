"""What the control matches keep of the match that they stand beside, and what they destroy."""

from collections import Counter
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_transfer.transfer.assignment import POLICIES, coverage
from trace_transfer.transfer.control_matches import CONTROLS, by_depth, policy_named, shuffled

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def draw(shape, seed):
    return np.random.default_rng(seed).uniform(-1, 1, size=shape)


@settings(max_examples=100, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10_000))
def test_both_leave_no_layer_out(shape, seed):
    matrix = draw(shape, seed)
    for control in CONTROLS.values():
        pairs = control(matrix, seed)
        assert list(pairs) == sorted(set(pairs))
        assert len(pairs) == max(shape)
        assert {s for s, _ in pairs} == set(range(shape[0]))
        assert {t for _, t in pairs} == set(range(shape[1]))


@settings(max_examples=100, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10_000))
def test_depth_is_the_formula_of_the_deeper_model(shape, seed):
    pairs = by_depth(draw(shape, seed), seed)
    deeper, other = max(shape), min(shape)
    expected = [floor(i * (other - 1) / max(deeper - 1, 1) + 0.5) for i in range(deeper)]
    chosen = {t: s for s, t in pairs} if shape[1] >= shape[0] else dict(pairs)
    assert [chosen[layer] for layer in range(deeper)] == expected
    assert pairs == by_depth(-draw(shape, seed + 1), seed + 1)


@settings(max_examples=100, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10_000))
def test_shuffled_uses_each_layer_as_often_as_coverage_and_is_another_match(shape, seed):
    matrix = draw(shape, seed)
    pairs, covering = shuffled(matrix, seed), coverage(matrix)
    assert Counter(s for s, _ in pairs) == Counter(s for s, _ in covering)
    assert sorted(Counter(t for _, t in pairs).values()) == sorted(Counter(t for _, t in covering).values())
    assert (pairs != covering) == (min(shape) > 1)
    assert pairs == shuffled(matrix, seed)


def test_shuffled_destroys_the_order_and_hangs_on_the_seed():
    matrix = np.eye(30)
    drawn = [shuffled(matrix, seed) for seed in range(40)]
    assert len(set(drawn)) == 40
    kept = [np.mean([s == t for s, t in pairs]) for pairs in drawn]
    assert np.mean(kept) < 0.1  # one layer in thirty is expected to stay
    order = [np.corrcoef(np.array(pairs).T)[0, 1] for pairs in drawn]
    assert abs(np.mean(order)) < 0.1


def test_a_policy_by_name():
    matrix = draw((4, 6), 0)
    assert {name: policy_named(name, 3)(matrix) for name in POLICIES} == {n: p(matrix) for n, p in POLICIES.items()}
    assert policy_named("shuffled", 3)(matrix) == shuffled(matrix, 3)
    assert not set(CONTROLS) & set(POLICIES)
    with pytest.raises(KeyError, match="best"):
        policy_named("best", 0)
