"""Standard errors beside their definitions; batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_transfer.evaluation.backends import batches_by_length
from trace_transfer.evaluation.own_data import mean_and_stderr, ratio_and_stderr

FLOATS = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


@given(FLOATS)
def test_as_numpy_and_as_the_harness(values):
    from lm_eval.api.metrics import mean_stderr

    mean, stderr = mean_and_stderr(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert stderr == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5, abs=1e-9)
    assert stderr == pytest.approx(mean_stderr(values), abs=1e-9)


def test_the_error_of_a_ratio_is_that_of_many_draws():
    """Samples drawn again and again: their ratios spread as far as one sample says, on average."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        counts = generator.integers(1, 30, 60)
        levels = generator.normal(2, 0.5, 60)  # tokens of one example are alike
        found.append(ratio_and_stderr((levels * counts).tolist(), counts.tolist()))
    ratios, errors = np.array(found).T
    assert errors.mean() == pytest.approx(ratios.std(), rel=0.05)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 7), st.none() | st.integers(1, 120))
def test_batches(lengths, batch_size, most):
    batches = batches_by_length(lengths, batch_size, most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert [lengths[index] for batch in batches for index in batch] == sorted(lengths, reverse=True)
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert most is None or len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= most
