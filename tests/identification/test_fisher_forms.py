"""Every form against the gradient itself, group by group, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_transfer.identification import fisher_forms as forms


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_both_ways_are_the_squared_gradient(num_groups, num_tokens, num_in, num_out):
    x, g = draw(num_groups, num_tokens, num_in), draw(num_groups, num_tokens, num_out, seed=1)
    squares_oi = sum((g_to.T @ x_ti).square() for x_ti, g_to in zip(x, g, strict=True))
    for axis, expected in ((None, squares_oi.sum()), ("in", squares_oi.sum(dim=0)), ("out", squares_oi.sum(dim=1))):
        torch.testing.assert_close(forms.linear_squares(x, g, axis), expected)
    for way in (forms.by_grams, forms.by_gradients):
        torch.testing.assert_close(way(x, g, by_output=False), squares_oi.sum())
        torch.testing.assert_close(way(x, g, by_output=True), squares_oi.sum(dim=1))


def test_the_cheaper_way_is_chosen():
    assert forms.gram_is_cheaper(128, 768, 768)
    assert not forms.gram_is_cheaper(1024, 768, 768)
    assert forms.gram_is_cheaper(1024, 4096, 128_256)


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 6))
def test_embedding_and_tied_head(num_groups, num_tokens, num_rows):
    """Rows of the embedding's gradient, and of a head's that shares its weight, meet at the same places."""
    ids = torch.randint(0, num_rows, (num_groups, num_tokens), generator=torch.Generator().manual_seed(2))
    g, x, logit_g = draw(num_groups, num_tokens, 4), draw(num_groups, 7, 4, seed=1), draw(num_groups, 7, num_rows)
    keys, places = forms.row_keys(ids, num_rows)
    embedding, head = forms.embedding_rows(places, g, len(keys)), forms.linear_rows(x, logit_g, keys)
    expected_e, expected_h = torch.zeros(num_groups, num_rows, 4).double(), logit_g.mT @ x
    for group in range(num_groups):
        for token, row in enumerate(ids[group]):
            expected_e[group, row] += g[group, token]
    used = (keys // num_rows, keys % num_rows)
    torch.testing.assert_close(embedding, expected_e[used])
    torch.testing.assert_close(head, expected_h[used])
    assert expected_e.square().sum() == pytest.approx(float(embedding.square().sum()))
