"""The settings of a stream: the paper's defaults, and what cannot be used."""

import pytest

from trace_transfer.engine.settings import TrainSettings
from trace_transfer.errors import UserError
from trace_transfer.training.methods import LAYOUTS
from trace_transfer.training.settings import METHODS, StreamSettings


def test_defaults_are_those_of_the_paper():
    """A.4: 3 epochs, batch 256, length 1,024, ZeRO 3, LoRA 8 and 16."""
    settings = StreamSettings()
    assert (settings.train.epochs, settings.train.batch_size, settings.train.zero) == (3, 256, 3)
    assert (settings.max_length, settings.lora_rank, settings.lora_alpha, settings.method) == (1024, 8, 16, "trace")


def test_what_cannot_be_used_is_told_at_once():
    with pytest.raises(UserError, match=r"(?s)method: 'trase' is none of .*mean trace.*lora_alpha.*replay_share"):
        StreamSettings(method="trase", replay_share=2, lora_alpha=0)
    with pytest.raises(UserError, match="special: 'law' is for method dmt only"):
        StreamSettings(special="law")
    with pytest.raises(UserError, match="offload: 'parameters' needs zero 3 or more, and zero is 1"):
        TrainSettings(zero=1, offload="parameters")


def test_what_is_recorded_decides_the_result():
    recorded = StreamSettings().recorded()
    assert recorded["epochs"] == 3 and recorded["method"] == "trace" and recorded["deepspeed"] == {}
    for name in ("checkpoint_minutes", "keep_checkpoints", "track", "train"):
        assert name not in recorded
    assert METHODS.keys() == LAYOUTS.keys()
