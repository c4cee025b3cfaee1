"""One expression for exactly some names, proved by trying all names."""

import re

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from tests.core_sets.full_size import names_of
from trace_transfer.core_sets.trainer_settings import exact_pattern

TOKENS = st.sampled_from(["0", "1", "2", "10", "12", "21", "a", "ab", "a+", "weight", "x-y", "[0:5]", ""])
NAMES = st.lists(TOKENS, min_size=1, max_size=5).map(".".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(NAMES, min_size=1, max_size=25), st.sets(NAMES, max_size=25))
def test_it_matches_what_is_in_the_set(names, others):
    pattern = exact_pattern(names, others)
    assert {name for name in names | others if re.fullmatch(pattern, name)} == names


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ({"a.b"}, r"a\.b"),
        ({"a.1.x", "a.2.x", "a.12.x"}, r"a\.(?:1|2|12)\.x"),
        ({f"l.{i}.{x}.w" for i in (3, 10) for x in "qk"} | {"h.w"}, r"(?:h\.w|l\.(?:3|10)(?:\.k\.w|\.q\.w))"),
        ({"l.1.q.w", "l.1.k.w", "l.2.q.w"}, r"(?:l\.1\.k\.w|l\.(?:1|2)\.q\.w)"),
    ],
)
def test_layers_that_are_alike_share_a_branch(names, pattern):
    assert exact_pattern(names, ()) == pattern


def test_all_of_a_model_is_short():
    names = names_of("qwen3-32b")
    assert len(exact_pattern(names, names)) < 1000
