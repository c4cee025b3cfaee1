"""Overlap of core sets, against counting by hand."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_transfer.core_sets.overlap import Reproducibility, jaccard, jaccard_by_chance, reproducibility

KEYS = st.sets(st.integers(0, 12))


def core(*names):
    return dict.fromkeys(names, 1)


@given(one=KEYS, other=KEYS)
def test_jaccard_against_counting_elements(one, other):
    sizes = {key: key % 4 + 1 for key in range(13)}
    parts = {key: (size + 1) // 2 for key, size in sizes.items()}  # where single parameters of a tensor are chosen
    elements_one = {(key, e) for key in one for e in range(sizes[key])}
    elements_other = {(key, e) for key in other for e in range(parts[key])}
    mine, theirs = {key: sizes[key] for key in one}, {key: parts[key] for key in other}
    if one or other:
        expected = len(elements_one & elements_other) / len(elements_one | elements_other)
        assert jaccard(mine, theirs) == expected == jaccard(theirs, mine)
        assert jaccard(dict.fromkeys(mine, 1), dict.fromkeys(theirs, 1)) == len(one & other) / len(one | other)
    else:
        assert jaccard(mine, theirs) == 0


@pytest.mark.parametrize("ratio", [0.05, 0.3, 1.0])
def test_chance_is_what_random_sets_share(ratio):
    rng, members = random.Random(0), range(400)
    count = round(ratio * len(members))
    drawn = [jaccard(core(*rng.sample(members, count)), core(*rng.sample(members, count))) for _ in range(400)]
    assert sum(drawn) / len(drawn) == pytest.approx(jaccard_by_chance(ratio), abs=0.005)


def test_within_a_task_beside_between_tasks():
    found = reproducibility(
        {
            "math": (core("a", "b", "c"), core("a", "b", "c")),
            "code": (core("a", "d", "e"), core("d", "e", "f")),
            "law": (core("c", "d", "g"), core("x", "y", "z")),
        }
    )
    # math_a with code_b: 0; code_a with math_b: a of five; math_a with law_b: 0; law_a with math_b: c of five
    assert found["math"] == Reproducibility(1.0, pytest.approx(0.1), 0.2)
    # code_a with math_b: 1/5; math_a with code_b: 0; code_a with law_b: 0; law_a with code_b: d of five
    assert found["code"] == Reproducibility(0.5, pytest.approx(0.1), 0.2)
    assert found["law"] == Reproducibility(0.0, pytest.approx(0.1), 0.2)
    assert [task for task, one in found.items() if one.clearly_higher] == ["math", "code"]


def test_what_is_not_clearly_higher():
    """A tie, where replicates of one side are not compared; a single task; two empty sets."""
    tie = reproducibility(dict.fromkeys(("math", "code"), (core("a", "b"), core("c", "d"))))["math"]
    single = reproducibility({"math": (core("a", "b"), core("a"))})["math"]
    empty = reproducibility({"math": (core("a"), {}), "code": (core("a"), {}), "law": ({}, {})})["law"]
    assert tie == Reproducibility(0.0, 0.0, 0.0)
    assert single == Reproducibility(0.5, None, None)
    assert empty == Reproducibility(0.0, 0.0, 0.0)
    assert not any(one.clearly_higher for one in (tie, single, empty))
