"""A program's verdict: what crosses between its process and its test's, and that no pass is faked."""

import collections
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.faking import FAKES, OURS
from tests.evaluation.sandbox.test_programs import SHORT, needs_landlock
from trace_transfer.evaluation.paper_tasks import LIMITS
from trace_transfer.evaluation.sandbox.programs import run_program
from trace_transfer.evaluation.sandbox.trial import decoded, encoded

ADD = "def add(x, y): return x + y"


@needs_landlock
@pytest.mark.parametrize("name", FAKES)
def test_a_fake_does_not_pass(name):
    outcome = run_program(FAKES[name], OURS, SHORT)
    assert outcome.status != "passed"
    assert outcome.reason


# ---- values

KEYS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    KEYS | st.complex_numbers(allow_nan=False) | st.fractions() | st.decimals(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(KEYS)
        | st.frozensets(KEYS)
        | st.dictionaries(KEYS | st.tuples(KEYS), inner)
    ),
    max_leaves=20,
)


def crossed(value: object) -> object:
    return decoded(json.loads(json.dumps(encoded(value))))


@given(VALUES)
def test_a_value_crosses_as_it_is(value):
    assert repr(crossed(value)) == repr(value) or crossed(value) == value
    assert type(crossed(value)) is type(value)


def test_values_of_other_types():
    pair = collections.namedtuple("pair", "a b")
    assert crossed(pair(1, [2.5])) == (1, [2.5]) and type(crossed(pair(1, 2))) is tuple
    assert crossed(collections.Counter("aab")) == {"a": 2, "b": 1}
    assert list(crossed(n * n for n in range(4))) == [0, 1, 4, 9]
    assert list(crossed(np.arange(3))) == [0, 1, 2]
    assert (crossed(np.int64(3)), crossed(np.float64(0.5)), crossed(np.bool_(True))) == (3, 0.5, True)
    assert math.isnan(crossed(math.nan)) and str(crossed(-0.0)) == "-0.0"
    assert crossed(10**5000) == 10**5000
    assert crossed("half a character: \ud800") == "half a character: \ud800"
    with pytest.raises(TypeError, match="a function is no plain value"):
        encoded([math.gcd, lambda: 1][1])


@needs_landlock
@pytest.mark.parametrize(
    ("program", "test"),
    [
        (ADD, OURS),
        ("def f(x, *, y=2): return [x, {y: (x,)}]", "assert __program__.f(1, y=3) == [1, {3: (1,)}]"),
        ("def f(x): x.append(1)", "x = []\n__program__.f(x)\nassert x == []"),  # by value
        (
            "calls = []\ndef f(): calls.append(1); return len(calls)",
            "assert [__program__.f() for _ in '123'] == [1, 2, 3]",
        ),
        ("f = max\ng = f(1, 2)", "assert __program__.f([3, 1]) == 3\nassert __program__.f.__name__ == 'f'"),
        ("def f(x): return len(x)", "assert __program__.f('x' * 10 ** 6) == 10 ** 6"),
        (
            "def f(x): return {}[x]",
            "try: __program__.f(3)\nexcept KeyError as error: assert str(error) == \"'3'\"\nelse: assert False",
        ),
        (
            "class Own(Exception): pass\ndef f(): raise Own('a')",
            "try: __program__.f()\nexcept RuntimeError as error: assert str(error) == 'a'\nelse: assert False",
        ),
    ],
)
def test_a_test_calls_the_program(program, test):
    outcome = run_program(program, test, LIMITS)
    assert (outcome.status, outcome.reason) == ("passed", ""), outcome.stderr


@needs_landlock
@pytest.mark.parametrize(
    ("program", "test", "status", "reason"),
    [
        (ADD, "assert __program__.add(1, 1) == 3", "failed", "its test failed"),
        (ADD, "while True: pass", "timed out", "used more than 1 s of processor time"),
        ("import os\ndef f(): os._exit(3)", "try: __program__.f()\nexcept: pass", "failed", "ended with code 3"),
        ("import os\ndef f(): os.abort()", "__program__.f()", "killed", "ended by signal 6"),
    ],
)
def test_how_a_trial_failed_is_said(program, test, status, reason):
    outcome = run_program(program, test, type(SHORT)(wall_seconds=30, cpu_seconds=1))
    assert (outcome.status, outcome.reason) == (status, reason), outcome.stderr
