"""A ratio becomes a core set."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_transfer.core_sets.core_file import CoreTensor, Unit
from trace_transfer.core_sets.selection import select

UNITS = get_args(Unit)


def parameters(scores, sizes=None):
    sizes = sizes or [10] * len(scores)
    return [
        CoreTensor(name=f"p{i}", shape=(size,), score=score)
        for i, (score, size) in enumerate(zip(scores, sizes, strict=True))
    ]


def names(selected):
    return [p.name for p in selected if p.core]


@pytest.mark.parametrize(
    ("count", "ratio", "expected"), [(291, 0.05, 14), (579, 0.05, 28), (707, 0.05, 35), (10, 0.01, 1), (100, 0.29, 29)]
)
def test_counts_tensors_as_the_paper(count, ratio, expected):
    assert len(names(select(parameters([float(i) for i in range(count)]), ratio))) == expected


@pytest.mark.parametrize("unit", UNITS)
def test_best_first_ends_ties_and_what_has_no_score(unit):
    assert [p.name for p in select(parameters([0.1, None, 0.9, 0.5]), 0.5, unit)] == ["p2", "p3", "p0", "p1"]
    given_ = parameters([0.5, 0.5, None, 0.5, 0.5])
    assert names(select(given_, 0.4, unit)) == ["p0", "p1"]
    assert names(given_) == []  # not changed
    assert names(select(parameters([0.1, None, -0.9]), 1.0, unit)) == ["p0", "p2"]
    assert names(select(parameters([None, None]), 1.0, unit)) == []


def test_elements_skip_what_does_not_fit():
    """The best one, too: an embedding of a fifth of all elements would otherwise be a core set of 5 % by itself."""
    assert names(select(parameters([0.9, 0.5, 0.1], [100, 1, 1]), 0.01, "elements")) == ["p1"]
    assert names(select(parameters([0.9, 0.1], [100, 50]), 0.01, "elements")) == ["p0"]  # nothing fits
    selected = select(parameters([0.9, 0.8, 0.7, 0.6], [30, 50, 15, 5]), 0.5, "elements")
    assert names(selected) == ["p0", "p2", "p3"]


def in_rows(scores, size=4):
    """Heads of `size` rows each of one tensor, and a norm that has none."""
    shape = (size * (len(scores) - 1), 3)
    heads = [
        CoreTensor(name="q", shape=shape, rows=((i * size, (i + 1) * size),), score=score)
        for i, score in enumerate(scores[:-1])
    ]
    return [*heads, CoreTensor(name="norm", shape=(6,), score=scores[-1])]


def test_rows_count_the_elements_of_heads_and_whole_parameters():
    selected = select(in_rows([0.1, 0.9, 0.3, 0.2, 0.5]), 0.6, "rows")  # 32 of 54 elements: 12 + 6 + 12
    assert [(p.name, p.rows) for p in selected if p.core] == [("q", ((4, 8),)), ("norm", None), ("q", ((8, 12),))]
    assert sum(p.num_elements for p in selected if p.core) == 30


@given(
    scores=st.lists(st.floats(-5, 5), min_size=1, max_size=40),
    ratio=st.integers(1, 1000).map(lambda thousandths: thousandths / 1000),
    unit=st.sampled_from(UNITS),
)
def test_the_best_are_core_whatever_was_before(scores, ratio, unit):
    selected = select(select(parameters(scores), 1, unit), ratio, unit)
    assert selected == select(parameters(scores), ratio, unit)
    core = [p for p in selected if p.core]
    assert len(selected) == len(scores)
    assert len(core) == max(1, int(ratio * len(scores) + 1e-9))
    assert min(p.score for p in core) >= max((p.score for p in selected if not p.core), default=-9)
