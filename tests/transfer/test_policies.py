"""The match policies against trying everything, and their promises; what the controls keep and what they destroy."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import matching_by_force as force
from trace_transfer.transfer.policies import (
    POLICIES,
    argmax,
    by_depth,
    coverage,
    depth_pairs,
    monotone,
    one_to_one,
    shuffled,
)

BY_SIMILARITY = [name for name, one in POLICIES.items() if one.control is None]

shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))


def draw(shape, seed):
    """Similarities lie in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, size=shape)


@settings(max_examples=120, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10_000))
def test_totals_are_the_best_there_are(shape, seed):
    matrix = draw(shape, seed)
    assert force.total(matrix, one_to_one(matrix)) == pytest.approx(force.best_one_to_one(matrix), abs=1e-9)
    assert force.total(matrix, monotone(matrix)) == pytest.approx(force.best_monotone(matrix), abs=1e-9)
    assert force.total(matrix, coverage(matrix)) == pytest.approx(force.best_coverage(matrix), abs=1e-9)
    assert [t for _, t in argmax(matrix)] == [max(range(shape[1]), key=lambda t: row[t]) for row in matrix]


@settings(max_examples=60, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10_000))
def test_every_policy_keeps_its_promise(shape, seed):
    matrix = draw(shape, seed)
    for name, policy in POLICIES.items():
        pairs = policy(matrix, seed)
        assert list(pairs) == sorted(set(pairs)), name
        sources, targets = [s for s, _ in pairs], [t for _, t in pairs]
        if name == "argmax":
            assert sources == list(range(shape[0]))
        if name in ("one-to-one", "monotone"):
            assert len(pairs) == min(shape) == len(set(sources)) == len(set(targets))
        if name in ("monotone", "coverage"):
            assert targets == sorted(targets), name
        if policy.deeper_chooses:
            assert set(sources) == set(range(shape[0]))
            assert set(targets) == set(range(shape[1]))
            assert len(pairs) == max(shape)
            chosen = targets if policy.target_chooses(shape) else sources
            assert sorted(chosen) == list(range(max(shape)))


def test_a_degenerate_layer_is_never_the_most_similar_but_passed_where_order_is_kept():
    matrix = np.array([[0.2, np.nan, 0.1], [np.nan, np.nan, np.nan], [0.1, np.nan, 0.3]])
    assert argmax(matrix) == one_to_one(matrix) == ((0, 0), (2, 2))
    matrix = np.eye(4)
    matrix[2] = np.nan
    assert coverage(matrix) == monotone(matrix) == ((0, 0), (1, 1), (2, 2), (3, 3))


@pytest.mark.parametrize("name", BY_SIMILARITY)
def test_ties_go_to_equal_depth_and_the_identity_is_found(name):
    assert {(0, 0), (1, 2), (2, 4)} <= set(POLICIES[name](np.full((3, 5), 0.5)))
    assert POLICIES[name](np.eye(7) + 0.01 * draw((7, 7), 0)) == tuple((i, i) for i in range(7))


@settings(max_examples=50, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10_000))
def test_shuffled_uses_each_layer_as_often_as_coverage_and_is_another_match(shape, seed):
    matrix = draw(shape, seed)
    pairs, covering = shuffled(matrix, seed), coverage(matrix)
    assert Counter(s for s, _ in pairs) == Counter(s for s, _ in covering)
    assert sorted(Counter(t for _, t in pairs).values()) == sorted(Counter(t for _, t in covering).values())
    assert (pairs != covering) == (min(shape) > 1)
    assert pairs == shuffled(matrix, seed)


def test_shuffled_destroys_the_order_and_hangs_on_the_seed():
    drawn = [shuffled(np.eye(30), seed) for seed in range(40)]
    assert len(set(drawn)) == 40
    assert abs(np.mean([np.corrcoef(np.array(pairs).T)[0, 1] for pairs in drawn])) < 0.1


@pytest.mark.parametrize("num_choosing", [1, 2, 5, 30, 64])
@pytest.mark.parametrize("num_other", [1, 2, 7, 48, 64])
def test_depth_is_the_formula(num_choosing, num_other):
    expected = [(i, int(i * (num_other - 1) / max(num_choosing - 1, 1) + 0.5)) for i in range(num_choosing)]
    assert depth_pairs((num_choosing, num_other), by_target=False) == tuple(expected)
    turned = tuple(sorted((s, t) for t, s in expected))
    assert depth_pairs((num_other, num_choosing), by_target=True) == turned
    if num_choosing >= num_other:
        assert by_depth(draw((num_other, num_choosing), 0)) == turned
