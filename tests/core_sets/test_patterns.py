"""One expression for exactly some names: short, and proved by trying all names."""

import re

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from tests.core_sets.full_size import names_of
from trace_transfer.core_sets.core_set import InexactExportError, natural_key
from trace_transfer.core_sets.patterns import exact_pattern

TOKENS = st.sampled_from(
    ["0", "1", "2", "7", "10", "11", "12", "21", "100", "a", "ab", "a+", "weight", "x-y", "[0:5]", ""]
)
NAMES = st.lists(TOKENS, min_size=1, max_size=5).map(".".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(NAMES, min_size=1, max_size=25), st.sets(NAMES, max_size=25))
def test_it_matches_what_is_in_the_set(names, others):
    pattern = exact_pattern(names, others)
    found = {name for name in names | others if re.fullmatch(pattern, name)}
    assert found == names


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(st.integers(0, 200).map(str), min_size=1))
def test_numbers(numbers):
    pattern = exact_pattern(numbers, map(str, range(250)))
    assert {number for number in map(str, range(250)) if re.fullmatch(pattern, number)} == numbers


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ({"a.b"}, r"a\.b"),
        ({"a.1.x", "a.2.x", "a.3.x", "a.12.x"}, r"a\.(?:1(?:2)?|[23])\.x"),
        ({f"l.{i}.{x}.w" for i in (3, 10, 11, 12, 13, 15) for x in "qk"}, r"l\.(?:1[0-35]|3)\.(?:k|q)\.w"),
        ({"l.1.q.w", "l.1.k.w", "l.2.q.w"}, r"l\.(?:1\.k|[12]\.q)\.w"),
        ({"l.1.k.w", "l.1.q.w", "l.1.v.w", "l.2.v.w"}, r"l\.(?:1\.(?:k|q|v)|2\.v)\.w"),
        ({"a", "a.b"}, r"a(?:\.b)?"),
        ({"b", "a.b"}, r"(?:a\.)?b"),
        ({"l.1.m.d.w", "l.2.m.d.w", "l.1.s.o.w", "l.7.s.o.w", "h.w"}, r"(?:l\.[12]\.m\.d|h|l\.[17]\.s\.o)\.w"),
    ],
)
def test_what_it_looks_like(names, pattern):
    assert exact_pattern(names, ()) == pattern


def test_all_of_a_model_is_short():
    names = names_of("qwen3-32b")
    assert len(exact_pattern(names, names)) < 300


def test_what_is_found_besides_is_told(monkeypatch):
    monkeypatch.setattr("trace_transfer.core_sets.patterns._written", lambda *_: "a.?")
    with pytest.raises(InexactExportError, match=r"(?s)not exact.*- abd: core, but .* - ac: not core, but would train"):
        exact_pattern({"a", "abd"}, {"ac"})


def test_numbers_are_sorted_as_numbers():
    assert sorted(["l.10.w", "l.2.w", "l.2", "a"], key=natural_key) == ["a", "l.2", "l.2.w", "l.10.w"]
