"""Gram matrices as norms and cosines and back, and of means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_transfer.identification.inner_products import averaged, cosines_of, from_pairs, pairs_of


def drawn(seed, num=4, width=7):
    rows_PKE = np.random.default_rng(seed).normal(size=(3, num, width))
    return rows_PKE, rows_PKE @ rows_PKE.transpose(0, 2, 1)


@given(st.integers(0, 1000), st.integers(1, 5))
def test_from_pairs_undoes_pairs_of(seed, num):
    _, gram_PKK = drawn(seed, num)
    norms_PK = np.sqrt(np.diagonal(gram_PKK, axis1=1, axis2=2))
    pairs = [pairs_of(cosines_KK) for cosines_KK in cosines_of(gram_PKK)]
    assert np.allclose(from_pairs(norms_PK, pairs), gram_PKK, rtol=1e-10)


def test_a_zero_delta_has_no_cosine_and_comes_back_as_zero():
    gram_PKK = np.array([[[4.0, 0.0], [0.0, 0.0]]])
    assert np.isnan(cosines_of(gram_PKK)[0, 1, 0])
    assert from_pairs(np.array([[2.0, 0.0]]), [[None]]) == pytest.approx(gram_PKK)


@given(st.integers(0, 1000))
def test_averaged_is_the_gram_matrix_of_means(seed):
    rows_PKE, gram_PKK = drawn(seed)
    groups = [(0, 2), (1,), (3,)]
    means_PGE = np.stack([rows_PKE[:, list(group)].mean(axis=1) for group in groups], axis=1)
    assert np.allclose(averaged(gram_PKK, groups), means_PGE @ means_PGE.transpose(0, 2, 1), rtol=1e-10)
