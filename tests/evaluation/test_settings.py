"""Settings of `evaluate`: defaults, refusals, and which of them decide a result."""

import pytest

from trace_transfer.errors import UserError
from trace_transfer.evaluation.settings import EvaluateSettings


def test_limits():
    settings = EvaluateSettings.of(limit=5)
    assert [settings.limit_of(own) for own in (None, 3, 9)] == [5, 3, 5]
    assert EvaluateSettings().limit_of(None) is None and EvaluateSettings().limit_of(4) == 4


def test_refusals():
    with pytest.raises(UserError, match="batchsize: no such setting; did you mean batch_size"):
        EvaluateSettings.of(batchsize=3)
    with pytest.raises(UserError, match="settings that cannot be used") as caught:
        EvaluateSettings.of(batch_size=0, limit=0, dtype="float61", max_length=1, seed=-1)
    for name in ("batch_size: 0", "limit: 0", "dtype: 'float61' is none of auto, float32", "max_length: 1", "seed: -1"):
        assert name in str(caught.value)
