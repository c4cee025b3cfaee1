"""A ratio becomes a core set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_transfer.artefacts import CoreParameter
from trace_transfer.stages.selection import select


def parameters(scores, sizes=None):
    sizes = sizes or [10] * len(scores)
    return [
        CoreParameter(name=f"p{i}", shape=(size,), score=score)
        for i, (score, size) in enumerate(zip(scores, sizes, strict=True))
    ]


def names(selected):
    return [p.name for p in selected if p.core]


@pytest.mark.parametrize(
    ("count", "ratio", "expected"), [(291, 0.05, 14), (579, 0.05, 28), (707, 0.05, 35), (10, 0.01, 1), (100, 0.29, 29)]
)
def test_counts_tensors_as_the_paper(count, ratio, expected):
    assert len(names(select(parameters([float(i) for i in range(count)]), ratio))) == expected


def test_best_first_and_without_a_score_last():
    selected = select(parameters([0.1, None, 0.9, 0.5]), 0.5)
    assert [p.name for p in selected] == ["p2", "p3", "p0", "p1"]
    assert names(selected) == ["p2", "p3"]


def test_ties_keep_the_order_given():
    assert names(select(parameters([0.5, 0.5, 0.5, 0.5]), 0.5)) == ["p0", "p1"]


def test_all_is_everything_with_a_score():
    assert names(select(parameters([0.1, None, -0.9]), 1.0)) == ["p0", "p2"]
    assert names(select(parameters([0.1, None, -0.9]), 1.0, "elements")) == ["p0", "p2"]


def test_elements_skip_what_does_not_fit():
    selected = select(parameters([0.9, 0.8, 0.7, 0.6], [30, 50, 15, 5]), 0.5, "elements")
    assert names(selected) == ["p0", "p2", "p3"]


def test_the_best_is_core_even_if_it_alone_is_over_the_budget():
    assert names(select(parameters([0.9, 0.1], [100, 1]), 0.01, "elements")) == ["p0"]


@given(
    scores=st.lists(st.floats(-5, 5), min_size=1, max_size=40),
    ratio=st.integers(1, 1000).map(lambda thousandths: thousandths / 1000),
    unit=st.sampled_from(["tensors", "elements"]),
)
def test_larger_ratio_never_loses_a_parameter_in_tensors_and_no_budget_is_passed(scores, ratio, unit):
    selected = select(parameters(scores), ratio, unit)
    core = [p for p in selected if p.core]
    assert len(selected) == len(scores)
    assert len(core) == max(1, int(ratio * len(scores) + 1e-9))
    assert min(p.score for p in core) >= max((p.score for p in selected if not p.core), default=-9)
