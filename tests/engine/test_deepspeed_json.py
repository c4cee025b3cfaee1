"""A user's DeepSpeed JSON: files that people use are taken, what contradicts is named, and DeepSpeed agrees."""

import contextlib
import copy
import io
import json

import pytest
import torch

from tests.engine.made_up import make_task
from trace_transfer.data.examples import collate
from trace_transfer.engine.deepspeed_json import contradictions, merged, read_deepspeed_json
from trace_transfer.engine.distributed import open_ranks
from trace_transfer.engine.loading import BaseModel
from trace_transfer.engine.settings import TrainSettings
from trace_transfer.errors import UserError
from trace_transfer.models.sources import ModelSource

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
# axolotl/deepspeed_configs/zero3_bf16.json
AXOLOTL = {
    "zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True,
    "zero_optimization": {
        "stage": 3, "overlap_comm": True, "contiguous_gradients": True, "sub_group_size": 0,
        "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "bf16": {"enabled": True},
    "fp16": {"enabled": False, "auto_cast": False, "loss_scale": 0, "initial_scale_power": 32},
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
}  # fmt: skip
SETTINGS = TrainSettings(batch_size=8, micro_batch_size=3, zero=3, weight_decay=0.1)


def own_config(settings: TrainSettings = SETTINGS, bfloat16: bool = True, **zero: object) -> dict:
    """What the engine gives DeepSpeed when there is no JSON, as far as it matters here."""
    adamw = {"torch_adam": True, "lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": settings.weight_decay}
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size, "gradient_accumulation_steps": 1,
        "train_batch_size": settings.micro_batch_size, "gradient_clipping": settings.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": adamw},
        "zero_optimization": {"stage": settings.zero, "reduce_bucket_size": 5000, **zero},
        "bf16": {"enabled": bfloat16}, "communication_data_type": "fp32", "steps_per_print": None,
        **({"data_types": {"grad_accum_dtype": "fp32"}} if bfloat16 else {}),
    }  # fmt: skip


def problems(given: dict, num_ranks: int = 1, precision: str = "bfloat16", **changes: object) -> list[str]:
    return contradictions(given, TrainSettings(**{**SETTINGS.recorded(), "zero": 3, **changes}), num_ranks, precision)


@pytest.mark.parametrize("given", [HUGGING_FACE, AXOLOTL, {}])
def test_files_that_people_use_are_taken(given):
    assert problems(given) == []


def test_the_schedule_of_hugging_faces_file_is_not_dropped_in_silence():
    (found,) = problems({**HUGGING_FACE, "scheduler": WARMUP})
    assert found.startswith("scheduler: trace-transfer has schedules of its own")


def test_what_the_options_decide_may_be_said_again():
    said = {
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2,
        "gradient_clipping": 1, "communication_data_type": "fp32", "bf16": {"enabled": False},
        "optimizer": {
            "type": "Adam", "params": {"lr": 2e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
        },
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}},
    }  # fmt: skip
    assert problems(said, 2, "float32", zero=2, offload="optimizer") == []
    before = copy.deepcopy(said)
    own = own_config(bfloat16=False, offload_optimizer={"device": "cpu", "pin_memory": True})
    result = merged(own, said)
    own["zero_optimization"]["offload_optimizer"]["pin_memory"] = False  # all that the file adds
    assert result == own
    assert said == before


def test_a_precision_that_only_the_machine_decides():
    assert [contradictions({"bf16": {"enabled": on}}, SETTINGS, 1) for on in (True, False)] == [[], []]
    bfloat16 = TrainSettings(precision="bfloat16")
    assert contradictions({"bf16": {"enabled": False}}, bfloat16, 1) == [
        "bf16.enabled: false there, true by --precision"
    ]


def test_every_contradiction_is_named_at_once():
    given = {
        "train_batch_size": 16, "gradient_accumulation_steps": 8, "gradient_clipping": 0.5,
        "bf16": {"enabled": False, "bf16_master_weights_and_grads": True},
        "optimizer": {"type": "Lion", "params": {"betas": [0.9, 0.95], "amsgrad": True}},
        "zero_optimization": {
            "stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x", "ratio": 0.5},
            "zero_quantized_nontrainable_weights": True, "compute_grad_norm": False, "stage3_max_life_parameters": 1,
        },
        "fp16": {"enabled": True, "loss_scale": 0}, "zero_optimisation": {"stage": 3},
        "flops_profiler": {"enabled": True}, "tensorboard": {"enabled": True},
    }  # fmt: skip
    every = contradictions(given, SETTINGS, 1, "bfloat16")
    for expected in (
        "train_batch_size: 16 there, 8 by --batch-size",
        "gradient_accumulation_steps: 8 there, 3 by --batch-size, --micro-batch-size and the number of ranks",
        "gradient_clipping: 0.5 there, 1.0 by --max-grad-norm",
        "bf16.enabled: false there, true by --precision",
        'optimizer.type: "Lion" there, "AdamW" by --optimizer',
        "optimizer.params.betas: [0.9, 0.95] there, [0.9, 0.999] by --optimizer-args",
        "optimizer.params.amsgrad: trace-transfer makes the optimizer itself: --optimizer, --optimizer-args",
        "zero_optimization.stage: 2 there, 3 by --zero",
        'zero_optimization.offload_optimizer.device: "nvme" there, "none" by --offload',
        "zero_optimization.compute_grad_norm: trace-transfer needs the norm of each gradient",
        "zero_optimization.stage3_max_life_parameters: Extra inputs are not permitted (DeepSpeed)",
        "zero_optimisation: did you mean zero_optimization?",
        "fp16: trace-transfer trains in bfloat16 or float32, which need no loss scaling: --precision",
        "flops_profiler: needs an output_file, as stdout is kept for results",
    ):
        assert expected in every
    told = {line.partition(":")[0] for line in every}
    assert "bf16.bf16_master_weights_and_grads" in told and "zero_optimization.offload_optimizer.ratio" in told
    assert len(every) == 17


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"zero_optimization": True}, "zero_optimization: expected an object, {…}, found true"),
        ({"bf16": True}, "bf16: expected an object, {…}, found true"),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, "adam_w_mode: false there, true by"),
        ({"compression_training": {"weight_quantization": {"x": 1}}}, "compression_training: trace-transfer must"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, '"cpu" there, "none" by --offload'),
        ({"zero_force_ds_cpu_optimizer": True}, "trace-transfer uses the same optimizer"),
        ({"zero_optimization": {"cpu_offload": True}}, "cpu_offload: true there, false by --offload"),
    ],
)
def test_single_contradictions(given, said):
    (found,) = problems(given)
    assert said in found


@pytest.mark.parametrize(
    "given",
    [
        {"elasticity": {"enabled": False, "max_train_batch_size": 4}}, {"sequence_parallel_size": 1},
        {"gradient_allreduce_op": "mean"}, {"zero_optimization": {"zero_quantized_weights": False}},
        {"compile": {"deepcompile": False}}, {"scheduler": {"type": "auto"}}, {"fp16": {}},
        {"amp": None}, {"fp16": {"enabled": "auto", "loss_scale": 0}},
    ],
)  # fmt: skip
def test_what_is_switched_off_is_no_contradiction_and_is_left_out(given):
    assert problems(given) == []
    assert merged(own_config(), given) == own_config()


def test_the_rest_is_merged_key_by_key():
    own = own_config(allgather_bucket_size=7)
    given = {
        "zero_optimization": {"reduce_bucket_size": 9, "overlap_comm": False, "stage3_prefetch_bucket_size": None},
        "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}, "train_batch_size": 8,
    }  # fmt: skip
    zero = {**own["zero_optimization"], "reduce_bucket_size": 9, "overlap_comm": False}
    assert merged(own, given) == {
        **own, "zero_optimization": zero, "comms_logger": {"enabled": True, "prof_ops": ["all_reduce"]}
    }  # fmt: skip


def test_reading(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text("\ufeff" + json.dumps(AXOLOTL), "utf-8")
    assert read_deepspeed_json(file) == AXOLOTL
    file.write_text('{\n  "bf16": {"enabled": true},\n}')
    with pytest.raises(UserError, match=r"ds\.json:3: not valid JSON: .*comma"):
        read_deepspeed_json(file)


def quietly() -> contextlib.redirect_stdout:
    """DeepSpeed prints when it is imported."""
    return contextlib.redirect_stdout(io.StringIO())


@pytest.mark.parametrize(
    ("given", "bfloat16"),
    [(HUGGING_FACE, False), (AXOLOTL, True), ({"activation_checkpointing": {"partition_activations": False}}, False)],
)
def test_deepspeed_takes_the_merged_configuration(tiny, monkeypatch, given, bfloat16):
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)  # ZeRO 3 replaces it for ever
    with quietly():
        import deepspeed
    config = merged(own_config(bfloat16=bfloat16), given)
    with open_ranks() as ranks:
        model = BaseModel(ModelSource.parse(tiny("llama"))).load(torch.bfloat16 if bfloat16 else torch.float32)
        with quietly():
            built, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
        zero = built._config.zero_config
        assert (zero.stage, zero.reduce_bucket_size, built.bfloat16_enabled()) == (3, 5000, bfloat16)
        assert zero.max_live_parameters == (0 if given is AXOLOTL else 1_000_000_000)
        batch = collate(make_task().examples[:2])
        logits_btv = built(input_ids=batch.input_ids_bt, attention_mask=batch.attention_mask_bt, use_cache=False).logits
        built.backward(logits_btv.float().mean())
        built.step()
        assert built.get_global_grad_norm() > 0
        assert ranks.size == 1
        built.destroy()
