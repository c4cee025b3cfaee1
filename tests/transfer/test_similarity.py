"""Every similarity against loops from its formula, and what the mathematics says about it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import cka_loops
from tests.transfer.stacks import stack_rows
from trace_transfer.transfer.similarity import SIMILARITIES, debiased_cka, linear_cka, split_halves, subset, unpacked


def texts_of(sizes):
    return tuple(torch.arange(n) for n in sizes)


def draw_layers(generator, widths, sizes):
    """Rows that the layers share in part, so that similarities are neither 0 nor 1."""
    common = torch.randn(sum(sizes), 6, generator=generator)
    return [
        common @ torch.randn(6, width, generator=generator) + torch.randn(sum(sizes), width, generator=generator) + 3
        for width in widths
    ]


@pytest.mark.parametrize(
    ("measure", "gram", "hsic"),
    [
        (linear_cka, cka_loops.linear_gram, cka_loops.hsic_biased),
        (debiased_cka, cka_loops.linear_gram, cka_loops.hsic_debiased),
    ],
    ids=["linear", "debiased"],
)
@pytest.mark.parametrize("sizes", [(5,), (12,), (9, 7, 4)])
def test_equals_loops_from_the_formula(measure, gram, hsic, sizes):
    generator = torch.Generator().manual_seed(sum(sizes))
    source = draw_layers(generator, (3, 7), sizes)
    target = draw_layers(generator, (5, 2, 4), sizes)
    found = measure(stack_rows(source, texts_of(sizes)), stack_rows(target, texts_of(sizes)))
    for s, x in enumerate(source):
        for t, y in enumerate(target):
            x_parts = [part.double().numpy() for part in x.split(list(sizes))]
            y_parts = [part.double().numpy() for part in y.split(list(sizes))]
            # Rows are float32, and so is the Gram matrix: 1e-7 of it remains after the ratio.
            assert float(found[s, t]) == pytest.approx(cka_loops.cka(x_parts, y_parts, gram, hsic), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 300), width=st.integers(1, 40), seed=st.integers(0, 1000))
def test_packing_keeps_the_gram_matrix(n, width, seed):
    rows = torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + 5
    found = unpacked(stack_rows([rows], texts_of((n,))).packed_LP, n, torch.arange(n))
    centred = rows.double() - rows.double().mean(0)
    assert torch.allclose(found[0].double(), centred @ centred.T, atol=1e-4 * max(1.0, width**0.5))


def test_a_large_constant_offset_costs_no_precision():
    generator = torch.Generator().manual_seed(5)
    x, y = draw_layers(generator, (30, 30), (50,))
    shifted = x.clone()
    shifted[:, 3] += 1500
    plain, moved = (
        debiased_cka(stack_rows([r], texts_of((50,))), stack_rows([y], texts_of((50,)))) for r in (x, shifted)
    )
    assert float(plain) == pytest.approx(float(moved), abs=1e-4)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_layer_whose_rows_do_not_differ_is_nan(name):
    other = torch.randn(20, 8, generator=torch.Generator().manual_seed(6))
    layers = [other, torch.full((20, 8), 0.1), torch.zeros(20, 8)]
    result = SIMILARITIES[name](stack_rows(layers, texts_of((20,))), stack_rows([other], texts_of((20,))))
    assert result.isnan().flatten().tolist() == [False, True, True]


@pytest.mark.parametrize("sizes", [(30,), (150, 140), (30, 5)])  # the last one gets too small
def test_subset_is_the_stack_of_those_rows(sizes):
    generator = torch.Generator().manual_seed(8)
    layers = draw_layers(generator, (6, 11, 3), sizes)
    texts = tuple(torch.randperm(max(sizes) + 5, generator=generator)[:n] for n in sizes)
    keep = torch.rand(max(sizes) + 5, generator=generator) < 0.6
    found = subset(stack_rows(layers, texts), keep)
    stay = [index if keep[index].sum() >= 4 else index[:0] for index in texts]
    rows = torch.cat([keep[index] & (len(kept) > 0) for index, kept in zip(texts, stay, strict=True)])
    expected = stack_rows([layer[rows] for layer in layers], tuple(i[keep[i]] for i in stay if len(i)))
    assert found.sizes == expected.sizes
    assert all(torch.equal(a, b) for a, b in zip(found.texts, expected.texts, strict=True))
    assert torch.allclose(found.packed_LP, expected.packed_LP, atol=1e-3, rtol=1e-4)


def test_the_same_bits_with_any_number_of_threads():
    texts = [torch.arange(240)] * 2
    generator = torch.Generator().manual_seed(0)
    stacks = [
        stack_rows([torch.randn(480, 32, generator=generator) for _ in range(count)], texts) for count in (28, 36)
    ]
    found = []
    before = torch.get_num_threads()
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        found.append(debiased_cka(*stacks))
        assert torch.get_num_threads() == num_threads
    torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_halves_have_no_text_in_common_and_are_the_same_for_a_seed():
    """With several minibatches a text is in all of them; halves must part texts, not rows."""
    generator = torch.Generator().manual_seed(2)
    stack = stack_rows([torch.randn(57, 8, generator=generator)], (torch.arange(31), torch.arange(5, 31)))
    seen = []

    def record(a, b):
        seen.append([set(index.tolist()) for index in a.texts])
        return debiased_cka(a, b)

    first = split_halves(stack, stack, record, num_splits=3, seed=5)
    assert len(seen) == 6
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert not set.union(*one) & set.union(*other)
        assert set.union(*one, *other) == set(range(31))
    assert np.array_equal(first, split_halves(stack, stack, debiased_cka, num_splits=3, seed=5))
