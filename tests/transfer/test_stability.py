"""Split halves over texts: what they say of a clear match, of noise, and of dependent rows."""

import numpy as np
import pytest
import torch

from tests.transfer.stacks import stack_rows
from trace_transfer.transfer.assignment import POLICIES, argmax, coverage
from trace_transfer.transfer.cka import debiased_cka
from trace_transfer.transfer.stability import (
    agreement,
    chosen_by_target,
    depth_pairs,
    split_half_stability,
    split_halves,
)


def layers_of(num_texts, width, num_layers, seed, noise=0.3):
    """Layers that drift apart from each other step by step; the second model is a rotation of the first with noise."""
    generator = torch.Generator().manual_seed(seed)
    steps = [torch.randn(num_texts, width, generator=generator) for _ in range(num_layers)]
    first = [sum(steps[max(0, i - 1) : i + 1]) for i in range(num_layers)]
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    return first, [layer @ turn + noise * torch.randn(num_texts, width, generator=generator) for layer in first]


def stacks(num_texts=120, noise=0.3, num_layers=5):
    texts = (torch.arange(num_texts),)
    return [stack_rows(layers, texts) for layers in layers_of(num_texts, 24, num_layers, 0, noise)]


def test_a_clear_match_is_stable_and_better_than_depth():
    source, target = stacks()
    target = type(target)(target.packed_LP[[0, 0, 1, 2, 4, 3]], target.texts)  # an order that depth cannot guess
    halves = split_halves(source, target, debiased_cka, num_splits=5, seed=0)
    full = argmax(debiased_cka(source, target).values.numpy())
    split = split_half_stability(halves, argmax, full, by_target=False)
    assert [t for _, t in full][1:] == [2, 3, 5, 4]
    assert split.flip_rates[2] == 0
    assert split.same >= 0.8
    mean, deviation = split.gain_over_depth
    assert mean > 3 * deviation > 0


def test_noise_is_not_stable_and_no_better_than_depth():
    generator = torch.Generator().manual_seed(1)
    texts = (torch.arange(60),)
    source, target = (stack_rows([torch.randn(60, 30, generator=generator) for _ in range(8)], texts) for _ in range(2))
    halves = split_halves(source, target, debiased_cka, num_splits=6, seed=0)
    full = argmax(debiased_cka(source, target).values.numpy())
    split = split_half_stability(halves, argmax, full, by_target=False)
    assert split.same < 0.4
    assert max(split.flip_rates.values()) > 0.5
    mean, deviation = split.gain_over_depth
    assert mean < 2 * deviation


def test_halves_have_no_text_in_common_and_are_the_same_for_a_seed():
    source, target = stacks(num_texts=41)
    seen = []

    def record(a, b):
        seen.append(set(torch.cat(a.texts).tolist()))
        return debiased_cka(a, b)

    first = split_halves(source, target, record, num_splits=3, seed=5)
    assert len(seen) == 6
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert not one & other
        assert one | other == set(range(41))
    again = split_halves(source, target, debiased_cka, num_splits=3, seed=5)
    for (a, b), (c, d) in zip(first.pairs, again.pairs, strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)


def test_all_rows_of_a_text_go_to_the_same_half():
    """With several minibatches a text is in all of them; halves must part texts, not rows."""
    generator = torch.Generator().manual_seed(2)
    texts = (torch.arange(30), torch.arange(5, 30))
    stack = stack_rows([torch.randn(55, 8, generator=generator)], texts)
    seen = []

    def record(a, b):
        seen.append([set(index.tolist()) for index in a.texts])
        return debiased_cka(a, b)

    split_halves(stack, stack, record, num_splits=2, seed=0)
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert not set.union(*one) & set.union(*other)


def test_too_few_texts_are_refused():
    source, target = stacks(num_texts=12)
    with pytest.raises(ValueError, match="12 texts are too few"):
        split_halves(source, target, debiased_cka, num_splits=2, seed=0)


@pytest.mark.parametrize(("shape", "by_target"), [((4, 9), True), ((9, 4), False), ((5, 5), True)])
def test_with_coverage_the_deeper_model_chooses(shape, by_target):
    assert chosen_by_target("coverage", shape) is by_target
    assert chosen_by_target("argmax", shape) is False
    pairs = coverage(np.random.default_rng(0).uniform(size=shape))
    chosen = [t if by_target else s for s, t in pairs]
    assert sorted(chosen) == list(range(max(shape)))
    assert len(depth_pairs(shape, by_target)) == max(shape)


def test_agreement_counts_the_choosing_side():
    assert agreement(((0, 0), (1, 2)), ((0, 0), (1, 3)), by_target=False) == (0.5, 1.0)
    assert agreement(((0, 0), (0, 1)), ((0, 0), (2, 1)), by_target=True) == (0.5, 0.5)
    assert agreement(((0, 0),), ((1, 1),), by_target=False) == (0.0, 0.0)


@pytest.mark.parametrize("name", POLICIES)
def test_identical_halves_would_be_perfectly_stable(name):
    from trace_transfer.transfer.stability import Halves

    matrix = np.random.default_rng(3).uniform(size=(6, 8))
    pairs = POLICIES[name](matrix)
    split = split_half_stability(
        Halves(((matrix, matrix),)), POLICIES[name], pairs, chosen_by_target(name, matrix.shape)
    )
    assert split.same == split.within_one == 1.0
    assert set(split.flip_rates.values()) == {0.0}
