"""What DeepSpeed leaves behind: nothing on stdout, no memory, no hooks, no compiled files."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from tests.engine.made_up import base_of, make_task, settings
from trace_transfer.engine.distributed import collect_garbage, open_ranks
from trace_transfer.engine.engine import open_engine
from trace_transfer.engine.settings import TrainSettings

ROOT = Path(__file__).parents[2]
OPTIMIZERS = {
    (0, "float32"): "AdamW", (0, "bfloat16"): "FP16_UnfusedOptimizer", (1, "float32"): "DeepSpeedZeroOptimizer",
    (1, "bfloat16"): "BF16_Optimizer", (2, "float32"): "DeepSpeedZeroOptimizer",
    (2, "bfloat16"): "DeepSpeedZeroOptimizer", (3, "float32"): "DeepSpeedZeroOptimizer_Stage3",
    (3, "bfloat16"): "DeepSpeedZeroOptimizer_Stage3",
}  # fmt: skip


@pytest.mark.parametrize(("zero", "precision"), OPTIMIZERS)
def test_is_deepspeed_and_is_gone_afterwards(tiny, zero, precision):
    hook = sys.excepthook
    for _ in range(3):
        with open_ranks() as ranks:
            model = base_of(tiny("llama")).load(getattr(torch, precision))
            with open_engine(model, settings(zero=zero), ranks) as built:
                assert type(built.deepspeed).__name__ == "DeepSpeedEngine"
                assert built.deepspeed.zero_optimization_stage() == zero
                assert type(built.deepspeed.optimizer).__name__ == OPTIMIZERS[zero, precision]
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


def test_a_fresh_process_prints_nothing_and_compiles_nothing(tiny, tmp_path):
    code = f"""
from pathlib import Path
from tests.engine.made_up import run
for zero, precision in ((1, "bfloat16"), (3, "float32")):
    run(Path({str(tiny("llama"))!r}), Path({str(tmp_path)!r}) / str(zero), zero=zero, precision=precision)
"""
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "extensions").exists()


def test_zero_3_lets_gathered_weights_go_and_torch_is_as_it_was(tiny):
    """torch's own `linear` keeps each weight for the backward pass: then all of the model is whole on each rank."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    before = torch.nn.functional.linear
    for zero in (0, 3):
        with open_ranks() as ranks:
            model = base_of(tiny("llama")).load(torch.float32)
            with open_engine(model, TrainSettings(zero=zero, micro_batch_size=1), ranks):
                assert (torch.nn.functional.linear is zero3_linear_wrap) == (zero == 3)
            assert torch.nn.functional.linear is before
