"""Values from Python: what means the same is taken, and what does not is named with what was expected."""

import json
from pathlib import Path

import numpy as np
import pytest

from trace_transfer.engine.settings import TrainSettings
from trace_transfer.errors import UserError
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ratio": "5%"}, "ratio: found '5%', expected a number, or None"),
        ({"batch_size": "8"}, "batch_size: found '8', expected a whole number"),
        ({"batch_size": 1.5}, "batch_size: found 1.5, expected a whole number"),
        ({"rows": 3}, "rows: found 3, expected a text"),
        ({"rules": ["a", 1]}, "rules.1.: found 1, expected a text"),
        ({"probe": b"x"}, "probe: found b'x', expected a text, or None"),
        ({"mtach": "argmax"}, "mtach: no such setting; did you mean match?"),
        ({"probe": ["x" * 1000] * 1000}, r"probe: found \[.{0,600}\.\.\.\], expected a text, or None$"),
    ],
)
def test_another_type_is_named(given, told):
    with pytest.raises(UserError, match=told):
        MapSettings.of(**given)


def test_all_at_once_whatever_is_wrong_with_each():
    with pytest.raises(UserError, match="settings that cannot be used") as refused:
        IdentifySettings.of("papr", epoch=1, batch_size="8", epochs=0, max_length=0, alpha="x", tokens_at_once=0)
    for told in (
        "profile: 'papr' is none of default, paper, authors-code; did you mean paper?",
        "epoch: no such setting; did you mean epochs?", "batch_size: found '8'", "epochs: 0 is not in [1",
        "max_length: 0 is not in [2", "alpha: found 'x', expected a number", "tokens_at_once: 0 is not in [1",
    ):  # fmt: skip
        assert told in str(refused.value)
    with pytest.raises(UserError, match="settings that cannot be used") as refused:
        MapSettings.of("paper", mtach=1, ratio=2, splits="x")
    assert all(told in str(refused.value) for told in ("mtach", "ratio: 2 is not in", "splits: found 'x'"))
    with pytest.raises(UserError, match="settings that cannot be used") as refused:
        StreamSettings.of(epohcs=1, epochs=0, max_length=0)
    assert all(told in str(refused.value) for told in ("epohcs", "epochs: 0", "max_length: 0"))


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
    assert StreamSettings.of(gradient_checkpointing=np.True_, lora_alpha=8).train.gradient_checkpointing is True
    assert type(StreamSettings.of(lora_alpha=8).lora_alpha) is float


def test_what_contradicts_is_told_apart_from_what_is_wrong_by_itself():
    with pytest.raises(UserError, match="offload: 'optimizer' needs zero 1 or more") as refused:
        TrainSettings(offload="optimizer", epochs=0)
    assert [one.partition(":")[0] for one in refused.value.alone] == ["epochs"]
    assert [one.partition(":")[0] for one in refused.value.problems] == ["epochs", "offload"]
