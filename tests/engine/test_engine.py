"""What DeepSpeed leaves behind: no memory, no hooks; test_two_ranks: nothing on stdout, no compiled files."""

import os
import sys
import weakref

import pytest
import torch

from tests.engine.made_up import base_of, make_task, settings
from trace_transfer.core_sets.masks import Mask
from trace_transfer.engine.distributed import collect_garbage, open_ranks
from trace_transfer.engine.engine import open_engine
from trace_transfer.engine.optimizers import treatments
from trace_transfer.engine.slices import shapes_of


@pytest.mark.parametrize(("zero", "precision"), [(0, "bfloat16"), (2, "float32"), (3, "bfloat16")])
def test_is_deepspeed_and_is_gone_afterwards(tiny, zero, precision):
    hook = sys.excepthook
    for _ in range(2):
        with open_ranks() as ranks:
            model = base_of(tiny("llama")).load(getattr(torch, precision))
            shapes, chosen = shapes_of(model), settings(zero=zero)
            with open_engine(model, chosen, ranks, Mask.everything(shapes), treatments(shapes, chosen)) as built:
                assert type(built.deepspeed).__name__ == "DeepSpeedEngine"
                assert built.deepspeed.zero_optimization_stage() == zero
                assert type(built.deepspeed.basic_optimizer) is torch.optim.AdamW
                for last in (False, True):
                    built.backward(built.loss(make_task().examples[:2]), last)
                assert built.step(1e-3) > 0
                states = built.deepspeed.basic_optimizer.state.values()
                assert {float(state["step"]) for state in states} == {1.0}
                held = [weakref.ref(built.deepspeed.optimizer), *map(weakref.ref, model.parameters())]
            del model, built, states
        collect_garbage()
        assert [reference for reference in held if reference() is not None] == []
        assert not torch.distributed.is_initialized()
    assert sys.excepthook is hook
    assert "LOCAL_RANK" not in os.environ
