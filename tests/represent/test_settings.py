"""The settings of `represent` are strict."""

import json

import pytest

from trace_transfer.errors import UserError
from trace_transfer.represent.settings import RepresentSettings


def test_all_problems_at_once():
    with pytest.raises(UserError, match="settings that cannot be used") as refused:
        RepresentSettings(pool="means", max_examples=2, perplexity=float("nan"), batch_size=0, max_length=0, seed=-1)
    for expected in (
        "pool: 'means' is none of mean, last; did you mean mean?",
        "max_examples: 2 is not in [3, ",
        "perplexity: nan is not 1 or more",
        "batch_size: 0 is not in [1, ",
        "max_length: 0 is not in [1, ",
        "seed: -1 is not in [0, ",
    ):
        assert expected in str(refused.value)
    with pytest.raises(UserError, match="perplexity: inf is not 1 or more"):
        RepresentSettings(perplexity=float("inf"))


def test_recorded_settings_are_json():
    recorded = RepresentSettings(max_examples=None, rules=("a.yaml",)).recorded()
    assert json.loads(json.dumps(recorded)) == recorded
