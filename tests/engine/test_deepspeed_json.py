"""A user's DeepSpeed JSON: files that people use are taken, what contradicts is named, and DeepSpeed agrees."""

import copy

import torch

from tests.engine.made_up import make_task, run
from trace_transfer.engine import engine
from trace_transfer.engine.deepspeed_json import configuration, contradictions, merged
from trace_transfer.engine.distributed import Ranks
from trace_transfer.engine.settings import TrainSettings

# transformers/tests/deepspeed/ds_config_zero3.json, in which Hugging Face's integration fills in "auto"
HUGGING_FACE = {
    "fp16": {
        "enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "zero_optimization": {
        "stage": 3, "offload_optimizer": {"device": "none", "pin_memory": True},
        "offload_param": {"device": "none", "pin_memory": True}, "overlap_comm": True, "contiguous_gradients": True,
        "sub_group_size": 1e9, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9, "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "steps_per_print": 2000,
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
}  # fmt: skip
WARMUP = {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}}
SETTINGS = TrainSettings(batch_size=8, micro_batch_size=3, zero=3, weight_decay=0.1)
ALONE = Ranks(0, 1, torch.device("cpu"))
OWN = configuration(SETTINGS, ALONE, torch.bfloat16, 5000)  # what the engine gives DeepSpeed when there is no JSON


def problems(given: dict, num_ranks: int = 1, dtype=torch.bfloat16, **changes: object) -> list[str]:
    return contradictions(given, TrainSettings(**{**SETTINGS.recorded(), "zero": 3, **changes}), num_ranks, dtype)


def test_the_file_that_people_use_is_taken():
    assert problems(HUGGING_FACE) == problems({}) == []


def test_what_the_options_decide_may_be_said_again():
    said = {
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2,
        "gradient_clipping": 1, "communication_data_type": "fp32", "bf16": {"enabled": False},
        "optimizer": {
            "type": "Adam", "params": {"lr": 2e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
        },
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
    }  # fmt: skip
    assert problems(said, 2, torch.float32, zero=2, offload="optimizer") == []
    before, offloaded = copy.deepcopy(said), TrainSettings(zero=2, offload="optimizer")
    own = configuration(offloaded, ALONE, torch.float32, 5000)
    result = merged(own, said)
    own["zero_optimization"]["offload_optimizer"]["pin_memory"] = True  # all that the file adds
    assert result == own
    assert said == before


def test_every_contradiction_is_named_at_once():
    given = {
        "train_batch_size": 16, "gradient_accumulation_steps": 8, "gradient_clipping": 0.5,
        "bf16": {"enabled": False}, "data_types": {"params_dtype": "bf16"},
        "optimizer": {"type": "Lion", "params": {"betas": [0.9, 0.95], "amsgrad": True}},
        "zero_optimization": {
            "stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x", "ratio": 0.5},
            "zero_quantized_nontrainable_weights": True, "compute_grad_norm": False, "stage3_max_life_parameters": 1,
        },
        "fp16": {"enabled": True, "loss_scale": 0}, "zero_optimisation": {"stage": 3}, "scheduler": WARMUP,
        "tensorboard": {"enabled": True},
    }  # fmt: skip
    every = problems(given)
    assert "train_batch_size: 16 there, 8 by the options" in every
    assert "zero_optimization.stage3_max_life_parameters: Extra inputs are not permitted (DeepSpeed)" in every
    assert sum(" there, " in line for line in every) == 11
    told = {line.partition(": trace-transfer decides this")[0] for line in every if "decides this" in line}
    assert told == {
        "data_types.params_dtype", "optimizer.params.amsgrad", "fp16", "zero_optimisation", "scheduler"
    }  # fmt: skip
    assert len(every) == 17
    assert problems({"zero_optimization": True}) == ["zero_optimization: expected an object, {…}, found true"]


def test_what_is_switched_off_is_no_contradiction_and_is_left_out():
    for given in (
        {"elasticity": {"enabled": False, "max_train_batch_size": 4}}, {"compile": {"deepcompile": False}},
        {"zero_optimization": {"zero_quantized_weights": False}}, {"scheduler": {"type": "auto"}}, {"amp": None},
    ):  # fmt: skip
        assert problems(given) == []
        assert merged(OWN, given) == OWN


def test_the_rest_is_merged_key_by_key():
    given = {
        "zero_optimization": {"reduce_bucket_size": 9, "overlap_comm": False, "stage3_prefetch_bucket_size": None},
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}, "train_batch_size": 8,
    }  # fmt: skip
    zero = {**OWN["zero_optimization"], "reduce_bucket_size": 9, "overlap_comm": False}
    assert merged(OWN, given) == {
        **OWN, "zero_optimization": zero, "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}
    }  # fmt: skip


def test_deepspeed_takes_the_merged_configuration(tiny, tmp_path, monkeypatch):
    seen, close = [], engine.Engine.close

    def look_and_close(self):
        seen.append(self.deepspeed._config.zero_config)
        close(self)

    monkeypatch.setattr(engine.Engine, "close", look_and_close)
    run(tiny("llama"), tmp_path, make_task(3), zero=3, precision="bfloat16", deepspeed=HUGGING_FACE)
    assert (seen[0].stage, seen[0].max_live_parameters) == (3, 1_000_000_000)
