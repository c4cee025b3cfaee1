"""What a layer match says of itself: margins, runner-ups, warnings, and how it depends on the texts."""

import pytest
import torch

from tests.run_files import layer_match
from tests.transfer.stacks import stack_rows
from trace_transfer.errors import ProbeError
from trace_transfer.transfer.matching import massive_warnings, match_layers
from trace_transfer.transfer.probing import Grams
from trace_transfer.transfer.similarity import GramStack


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


def matched(source, target, policy="argmax", num_splits=0, seed=0):
    said = layer_match(seed)[0]
    about = {name: getattr(said, name) for name in ("source", "target", "probe", "representation", "transform")}
    return match_layers(source, target, num_splits=num_splits, similarity="cka-debiased", policy=policy, **about)


def test_with_coverage_the_runner_up_is_another_source_and_margins_can_be_negative():
    source, target = stacks()
    deeper = GramStack(target.packed_LP[[0, 4, 1, 2, 3, 4]], target.texts)  # one layer out of order
    match, _ = matched(source, deeper, "coverage")
    assert match.chosen_by == "target"
    assert [p.target for p in match.pairs] == list(range(6))
    out_of_order = match.pairs[1]
    assert out_of_order.runner_up == 4
    assert out_of_order.margin < -0.5
    assert match.unmatched_sources == match.unmatched_targets == ()


def told(match, words):
    return [warning for warning in match.warnings if words in warning]


def test_layers_that_cannot_be_told_apart_are_named():
    source, target = stacks(noise=0.5)
    generator = torch.Generator().manual_seed(0)
    twin = target.packed_LP[2] + 1e-4 * torch.randn(target.packed_LP.shape[1], generator=generator)
    double = GramStack(torch.cat([target.packed_LP, twin[None]]), target.texts)
    (warning,) = told(matched(source, double, num_splits=10)[0], "pairs are ambiguous")
    assert "1 of 5 pairs" in warning and "2→" in warning
    assert not told(matched(source, target, num_splits=10)[0], "pairs are ambiguous")


def test_a_control_says_that_it_is_one_and_reports_what_its_pairs_are_worth():
    source, target = stacks()
    deeper = source, GramStack(target.packed_LP[[0, 1, 1, 2, 3, 3, 4]], target.texts)
    match, similarity = matched(*deeper, "shuffled", num_splits=3, seed=4)
    assert match.chosen_by == "target"
    assert told(match, "a control, not a match") and not told(match, "CKA adds little to depth")
    assert {pair.target for pair in match.pairs} == set(range(7))
    for pair in match.pairs:
        column = similarity[:, pair.target].copy()
        assert pair.similarity == column[pair.source]
        column[pair.source] = -9
        assert pair.margin == pair.similarity - column.max()
        assert column[pair.runner_up] == column.max()
    assert set(match.policy_agreement) == {"argmax", "one-to-one", "monotone", "coverage"}
    assert matched(*deeper, "shuffled", seed=1)[0].pairs != match.pairs


def test_few_texts_and_degenerate_layers_are_told():
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(20, 6, generator=generator), torch.ones(20, 6)]
    stack = stack_rows(rows, (torch.arange(20),))
    match, _ = matched(stack, stack, num_splits=2)
    assert match.degenerate_sources == match.degenerate_targets == (1,)
    assert [(p.source, p.target) for p in match.pairs] == [(0, 0)]
    assert told(match, "source layers 1 give the same row") and told(match, "only 20 texts")
    flat = stack_rows(rows[1:], (torch.arange(20),))
    for stacked, policy in ((flat, "argmax"), (stack_rows(rows[::-1], flat.texts), "shuffled")):
        with pytest.raises(ProbeError, match=f"no pair of the {policy} match has a similarity"):
            matched(stacked, stacked, policy)


def test_massive_activations_are_named():
    stack = stack_rows([torch.randn(8, 3)], (torch.arange(8),))
    grams = Grams({"stream": stack}, {"stream": torch.tensor([[5.0, 0.97], [2.0, 0.1], [5.0, 0.8]])})
    (warning,) = massive_warnings(grams, "stream", "target")
    assert "target layers 0, 2" in warning
    assert "(5)" in warning
    assert massive_warnings(Grams({}, {"stream": torch.tensor([[5.0, 0.2]])}), "stream", "source") == []


def test_a_clear_match_is_stable_and_better_than_depth():
    source, target = stacks()
    target = GramStack(target.packed_LP[[0, 0, 1, 2, 4, 3]], target.texts)  # an order that depth cannot guess
    match, _ = matched(source, target, num_splits=5)
    assert [pair.target for pair in match.pairs][1:] == [2, 3, 5, 4]
    assert match.pairs[2].flip_rate == 0 and match.stability.same >= 0.8
    mean, deviation = match.depth.held_out_gain
    assert mean > 3 * deviation > 0
