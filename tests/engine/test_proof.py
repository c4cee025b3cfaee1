"""A frozen weight that moves while training is found, though the saved model would not show it."""

import pytest
import torch

from tests.engine.made_up import make_task, settings
from trace_transfer.core_sets.masks import Mask, Slice
from trace_transfer.engine.engine import gathered
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.loop import Run, train
from trace_transfer.errors import FrozenMovedError
from trace_transfer.models.sources import ModelSource

NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("name", [NORM, UP])
def test_one_bit_of_a_frozen_weight(tiny, tmp_path, monkeypatch, zero, name):
    """Of a whole parameter, and of the frozen rows of a sliced one."""
    start, handed, one_step = BaseModel(ModelSource.parse(tiny("llama"))), [], Run.one_step
    mask = Mask({"model.layers.1.mlp.down_proj.weight": None, UP: Slice(0, ((0, 2),))})

    def run(directory):
        train(start, make_task(6), settings(zero=zero), directory=directory, finish=handed.extend, mask=mask)

    run(tmp_path / "undisturbed")
    assert len(handed) == 2

    def step_and_move(self, number, batch):
        parameter = self.engine.frozen[name]
        with torch.no_grad(), gathered(parameter, modify=True):
            parameter[-1] = torch.nextafter(parameter[-1], torch.full_like(parameter[-1], 9.0))
        return one_step(self, number, batch)

    monkeypatch.setattr(Run, "one_step", step_and_move)
    with pytest.raises(FrozenMovedError, match=f"(?s)nothing of this stage is kept.*{name}"):
        run(tmp_path / "moved")
    assert len(handed) == 2
