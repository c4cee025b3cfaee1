"""Values from Python: what means the same is taken, and what does not is named with what was expected."""

import json
from pathlib import Path

import numpy as np
import pytest

from trace_transfer.errors import UserError
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings


def test_all_at_once_whatever_is_wrong_with_each():
    with pytest.raises(UserError, match="settings that cannot be used") as refused:
        IdentifySettings.of("papr", epoch=1, batch_size=1.5, epochs=0, max_length=0, alpha="x", exclude=["a", 1])
    for told in (
        "profile: 'papr' is none of default, paper, authors-code; did you mean paper?",
        "epoch: no such setting; did you mean epochs?", "batch_size: found 1.5, expected a valid integer",
        "epochs: found 0, expected greater than or equal to 1", "max_length: found 0, expected greater",
        "alpha: found 'x', expected a valid number", "exclude[1]: found 1, expected a valid string",
    ):  # fmt: skip
        assert told in str(refused.value)


def test_what_means_the_same_is_taken():
    found = MapSettings.of(
        ratio=np.float32(0.5), batch_size=np.int64(8), splits=3.0, rules="mine.yaml", probe=Path("texts.txt"),
        cache="here", seed=np.uint8(3),
    )  # fmt: skip
    assert found == MapSettings(
        ratio=0.5, batch_size=8, splits=3, rules=("mine.yaml",), probe="texts.txt", cache=Path("here"), seed=3
    )
    assert json.loads(json.dumps(found.recorded()))["batch_size"] == 8
    assert IdentifySettings.of(alpha=1, exclude=["norm", "bias"]).score.exclude == ("norm", "bias")
    assert IdentifySettings.of(alpha=1, exclude="norm").score.recorded()["exclude"] == ["norm"]
    assert IdentifySettings.of(exclude={"norm", "bias"}).score.exclude == ("bias", "norm")
    assert StreamSettings.of(optimizer_args={"betas": (0.9, 0.95)}).recorded()["optimizer_args"] == {
        "betas": [0.9, 0.95]
    }
    assert StreamSettings.of(gradient_checkpointing=np.True_, lora_alpha=8).train.gradient_checkpointing is True
    assert type(StreamSettings.of(lora_alpha=8).lora_alpha) is float
