"""Normalisations: each against its formula in plain Python, and what they have in common."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_transfer.identification.normalisation import NORMALISATIONS, normalise

VALUES = [3.0, -1.0, 3.0, 8.0, 0.5]


def by_hand(values, how):
    """The same without numpy, one value at a time."""
    if how == "min-max":
        return [(v - min(values)) / (max(values) - min(values)) for v in values]
    if how == "z-score":
        return [(v - statistics.fmean(values)) / statistics.pstdev(values) for v in values]
    ranks = [sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]
    return [rank / (len(values) - 1) for rank in ranks]


@pytest.mark.parametrize("how", NORMALISATIONS)
@given(values=st.lists(st.integers(-1000, 1000), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1))
def test_against_plain_python(how, values):
    assert normalise(np.array(values, float), how) == pytest.approx(by_hand(values, how), rel=1e-12, abs=1e-12)


def test_equal_values_share_a_rank():
    assert normalise(np.array(VALUES), "rank").tolist() == [0.625, 0.0, 0.625, 1.0, 0.25]


@pytest.mark.parametrize("how", NORMALISATIONS)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), data=st.data())
def test_order_is_kept_and_follows_the_entries(how, values, data):
    found = normalise(np.array(values), how)
    assert np.isfinite(found).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    shuffled = data.draw(st.permutations(range(len(values))))
    assert normalise(np.array(values)[shuffled], how) == pytest.approx(found[shuffled], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("how", NORMALISATIONS)
@pytest.mark.parametrize("values", [[7.0], [0.1] * 3, [0.1, math.nan, 0.1], [math.nan, 2.0]])
def test_what_is_constant_becomes_zero(how, values):
    found = normalise(np.array(values), how)
    assert np.array_equal(np.isnan(found), np.isnan(values))
    assert np.nan_to_num(found).tolist() == [0.0] * len(values)


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_nan_takes_no_part_and_stays(how):
    found = normalise(np.array([3.0, math.nan, -1.0, 3.0, 8.0, 0.5, math.nan]), how)
    assert np.flatnonzero(np.isnan(found)).tolist() == [1, 6]
    assert found[~np.isnan(found)] == pytest.approx(by_hand(VALUES, how), rel=1e-12)
    assert np.isnan(normalise(np.array([math.nan, math.nan]), how)).all()
    assert normalise(np.array([]), how).tolist() == []


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_within_kinds_each_kind_is_alone(how):
    values = np.array([1.0, 100.0, 2.0, math.nan, 300.0, 4.0, 5.0])
    kinds = ("a", "b", "a", "b", "b", "a", "c")
    found = normalise(values, how, kinds)
    for kind in "abc":
        members = [index for index, k in enumerate(kinds) if k == kind]
        assert np.array_equal(found[members], normalise(values[members], how), equal_nan=True)
    assert found[6] == 0
    assert np.array_equal(normalise(values, how, ("x",) * 7), normalise(values, how), equal_nan=True)
