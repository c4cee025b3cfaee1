"""Every form against the gradient itself, group by group, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_transfer.identification.fisher import forms
from trace_transfer.identification.fisher.forms import PANEL


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def squares_by_loop(x_kti, g_kto):
    """Squared elements of each group's gradient, summed over groups: [o, i]."""
    return sum((g_to.T @ x_ti).square() for x_ti, g_to in zip(x_kti.double(), g_kto.double(), strict=True))


@pytest.mark.parametrize("num_tokens", [1, 7, PANEL, PANEL + 1, 2 * PANEL + 3])
@pytest.mark.parametrize("axis", [None, "in", "out"])
@pytest.mark.parametrize("way", [forms._by_two_grams, forms.by_gradients, forms.linear_squares])
def test_both_ways_are_the_squared_gradient(way, axis, num_tokens):
    x, g = draw(3, num_tokens, 6), draw(3, num_tokens, 5, seed=1)
    expected = squares_by_loop(x, g)
    expected = {None: expected.sum(), "in": expected.sum(dim=0), "out": expected.sum(dim=1)}[axis]
    torch.testing.assert_close(way(x, g, axis), expected)


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 5, 100]))
def test_any_shape_and_any_chunk(num_groups, num_tokens, num_in, num_out, chunk):
    x, g = draw(num_groups, num_tokens, num_in), draw(num_groups, num_tokens, num_out, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "CHUNK", chunk * num_tokens)
        found = forms.linear_squares(x, g)
    torch.testing.assert_close(found, squares_by_loop(x, g).sum())


@pytest.mark.parametrize("axis", [None, "out"])
def test_a_shared_gram_matrix_gives_the_same(axis):
    x, g = draw(2, 300, 4), draw(2, 300, 9, seed=1)
    torch.testing.assert_close(
        forms.linear_squares(x, g, axis, gram_x=forms.gram(x)), forms.linear_squares(x, g, axis), rtol=1e-12, atol=0
    )


def test_the_cheaper_way_is_chosen():
    assert forms.gram_is_cheaper(128, 768, 768)
    assert not forms.gram_is_cheaper(1024, 768, 768)
    assert forms.gram_is_cheaper(1024, 4096, 128_256)
    assert not forms.gram_is_cheaper(640, 768, 768)
    assert forms.gram_is_cheaper(640, 768, 768, sharing=3), "one Gram matrix for three layers"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sixteen_bit_inputs_are_multiplied_in_float32(dtype):
    """Gradients of which 99 % cancel: 16-bit products would be off by more than what is left."""
    x, g = draw(1, 64, 32), draw(1, 64, 32, seed=1)
    x[:, 32:], g[:, 32:] = x[:, :32], -0.9 * g[:, :32]
    x, g = x.to(dtype), g.to(dtype)
    expected = squares_by_loop(x, g).sum()
    assert expected < 0.02 * squares_by_loop(x[:, :32], g[:, :32]).sum()
    found = forms.linear_squares(x, g)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=3e-5, atol=0)  # 1e-7 of float32, times what cancelled


def test_biases_and_elementwise_weights():
    x, g = draw(3, 8, 5), draw(3, 8, 5, seed=1)
    torch.testing.assert_close(forms.vector_squares(forms.bias_gradient(g)), sum(one.sum(dim=0).square() for one in g))
    torch.testing.assert_close(
        forms.vector_squares(forms.scale_gradient(x, g)),
        sum((one * other).sum(dim=0).square() for one, other in zip(x, g, strict=True)),
    )


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


def test_silent_tokens_are_left_out_only_where_it_pays():
    x, g = draw(2, 20, 3), draw(2, 20, 4, seed=1)
    g[0, :15] = 0
    g[1, 3:17] = 0
    few_x, few_g = forms.without_silent_tokens(x, g)
    assert few_g.shape == (2, 6, 4)
    torch.testing.assert_close(forms.linear_squares(few_x, few_g), squares_by_loop(x, g).sum())
    g[1, 3:17] = 1
    assert forms.without_silent_tokens(x, g)[1] is g
    silent_x, silent_g = forms.without_silent_tokens(x, torch.zeros_like(g))
    assert float(forms.linear_squares(silent_x, silent_g)) == 0


def test_a_token_that_is_nan_is_not_silent():
    x, g = draw(1, 8, 3), torch.zeros(1, 8, 4)
    g[0, 2, 1] = float("nan")
    assert torch.isnan(forms.linear_squares(*forms.without_silent_tokens(x.float(), g)))
