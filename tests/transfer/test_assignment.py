"""The matching policies against trying everything, and their promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import matching_by_force as force
from trace_transfer.transfer.assignment import POLICIES, argmax, coverage, monotone, one_to_one

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


@settings(max_examples=120, deadline=None)
@given(shape=shapes, seed=st.integers(0, 10_000))
def test_every_policy_keeps_its_promise(shape, seed):
    matrix = draw(shape, seed)
    for name, policy in POLICIES.items():
        pairs = policy(matrix)
        assert list(pairs) == sorted(set(pairs)), name
        sources, targets = [s for s, _ in pairs], [t for _, t in pairs]
        if name == "argmax":
            assert sources == list(range(shape[0]))
        if name in ("one-to-one", "monotone"):
            assert len(pairs) == min(shape) == len(set(sources)) == len(set(targets))
        if name in ("monotone", "coverage"):
            assert targets == sorted(targets), name
        if name == "coverage":
            assert set(sources) == set(range(shape[0]))
            assert set(targets) == set(range(shape[1]))
            assert len(pairs) == max(shape)


def test_a_degenerate_layer_is_never_the_most_similar():
    matrix = np.array([[0.2, np.nan, 0.1], [np.nan, np.nan, np.nan], [0.1, np.nan, 0.3]])
    assert argmax(matrix) == ((0, 0), (2, 2))
    assert one_to_one(matrix) == ((0, 0), (2, 2))


def test_coverage_and_monotone_go_on_past_a_degenerate_layer():
    matrix = np.eye(4)
    matrix[2] = np.nan
    assert coverage(matrix) == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert monotone(matrix) == ((0, 0), (1, 1), (2, 2), (3, 3))


@pytest.mark.parametrize("name", POLICIES)
def test_ties_go_to_equal_depth(name):
    flat = np.full((3, 5), 0.5)
    pairs = POLICIES[name](flat)
    assert {(0, 0), (1, 2), (2, 4)} <= set(pairs)


def test_argmax_ties_at_equal_distance_go_to_the_lower_layer():
    assert argmax(np.full((3, 4), 0.5)) == ((0, 0), (1, 1), (2, 3))


@pytest.mark.parametrize("name", POLICIES)
def test_the_identity_is_found(name):
    assert POLICIES[name](np.eye(7) + 0.01 * draw((7, 7), 0)) == tuple((i, i) for i in range(7))
