"""What is known of the names in a DeepSpeed JSON: who decides, what is passed on, what is refused and why.

Names are those of DeepSpeed 0.17 to 0.19, nested ones joined by dots. `settings.deepspeed_json` states the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ZERO = "zero_optimization"
OWN_OPTIMIZER = "trains with AdamW, which is the method's"
OWN_RATE = "has a learning rate of its own, a linear warm-up and then a cosine; leave it out and give --warmup"
OWN_CHECKPOINTS = "writes checkpoints of its own, of what is trained alone"
OWN_DATA = "decides itself which examples are read in which step"
ONE_KIND = "spreads data over the ranks, not the model, but for ZeRO"

# Name → the option that decides it; the values are in `_decided`.
DECIDED: Mapping[str, str] = {
    "train_batch_size": "--batch-size",
    "train_micro_batch_size_per_gpu": "--micro-batch-size",
    "gradient_accumulation_steps": "--batch-size, --micro-batch-size and the number of ranks",
    "gradient_clipping": "--max-grad-norm",
    "optimizer.type": "the method",
    "optimizer.params.lr": "--learning-rate",
    "optimizer.params.betas": "the method",
    "optimizer.params.eps": "the method",
    "optimizer.params.weight_decay": "--weight-decay",
    "optimizer.params.torch_adam": "the engine",
    "optimizer.params.adam_w_mode": "the method",
    "bf16.enabled": "--precision",
    "bfloat16.enabled": "--precision",
    "communication_data_type": "the engine",
    "data_types.grad_accum_dtype": "the engine",
    f"{ZERO}.stage": "--zero",
    f"{ZERO}.offload_optimizer.device": "--offload",
    f"{ZERO}.offload_param.device": "--offload",
    f"{ZERO}.cpu_offload": "--offload",
    f"{ZERO}.cpu_offload_param": "--offload",
}
PASSED = frozenset(
    {
        "activation_checkpointing", "aio", "bf16.check_grad_overflow", "comms_logger", "dataloader_drop_last",
        "disable_allgather", "disable_python_gc", "flops_profiler", "gradient_predivide_factor", "memory_breakdown",
        "prescale_gradients", "timers", "use_data_before_expert_parallelism", "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
    }
    | {
        f"{ZERO}.{name}"
        for name in (
            "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "enable_sanity_checks",
            "ignore_unused_parameters", "leaf_module", "load_from_fp32_weights", "log_trace_cache_warnings",
            "memory_efficient_linear", "offload_optimizer.buffer_count", "offload_optimizer.fast_init",
            "offload_optimizer.pin_memory", "offload_optimizer.pipeline_read", "offload_optimizer.pipeline_write",
            "offload_param.buffer_count", "offload_param.buffer_size", "offload_param.max_in_cpu",
            "offload_param.pin_memory", "overlap_comm", "override_module_apply", "parameter_alignment",
            "pipeline_loading_checkpoint", "reduce_bucket_size", "reduce_scatter", "round_robin_gradients",
            "stage3_allgather_sequential", "stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters",
            "stage3_max_reuse_distance", "stage3_model_persistence_threshold", "stage3_module_granularity_threshold",
            "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size",
            "stage3_use_all_reduce_for_fetch_params", "sub_group_size", "use_multi_rank_bucket_allreduce",
            "zero_hpz_partition_size",
        )
    }
)  # fmt: skip
DROPPED = frozenset({"steps_per_print", "dump_state", "log_level", "vocabulary_size"})
# Name → why not: "trace-transfer …".
REFUSED: Mapping[str, str] = {
    "fp16": "trains in bfloat16 or float32, which need no loss scaling: --precision",
    "amp": "trains in bfloat16 or float32: --precision",
    "torch_autocast": "trains in bfloat16 or float32: --precision",
    "bf16.immediate_grad_update": "sums gradients in float32 at the moment that suits exact accumulation",
    "bf16.bf16_master_weights_and_grads": "keeps float32 master weights, without which small steps are lost",
    "bf16.bf16_optimizer_states": "keeps float32 moments, without which small steps are lost",
    "data_types": "sums gradients in float32",
    "optimizer": OWN_OPTIMIZER,
    "scheduler": OWN_RATE,
    "checkpoint": OWN_CHECKPOINTS,
    "nebula": OWN_CHECKPOINTS,
    "datastates_ckpt": OWN_CHECKPOINTS,
    "elasticity": "fixes the batch size, so that results do not depend on the number of machines",
    "autotuning": "runs one training at a time; tune with DeepSpeed's own command and give the result here",
    "compression_training": "must leave what is frozen bit-identical, and compression rounds it",
    "weight_quantization": "must leave what is frozen bit-identical, and quantization rounds it",
    "quantize_training": "must leave what is frozen bit-identical, and quantization rounds it",
    "eigenvalue": "does not quantize while training",
    "sparse_gradients": "adds up dense gradients (DeepSpeed has removed sparse ones)",
    "sparse_attention": "leaves the model's attention as it is (DeepSpeed has removed sparse attention)",
    "progressive_layer_drop": "trains with all layers",
    "curriculum_learning": OWN_DATA,
    "data_efficiency": OWN_DATA,
    "hybrid_engine": "generates nothing while training",
    "pipeline": ONE_KIND,
    "tensor_parallel": ONE_KIND,
    "sequence_parallel_size": ONE_KIND,
    "seq_parallel_communication_data_type": ONE_KIND,
    "expert_parallel": ONE_KIND,
    "compile": "does not compile models: that is not tested with masks",
    "graph_harvesting": "does not capture graphs (DeepSpeed has removed it)",
    "managed_gradient_accumulation": "says itself where a step ends",
    "gradient_allreduce_op": "averages gradients over the ranks",
    "tensorboard": "logs the true loss itself, and DeepSpeed a scaled one: --track tensorboard",
    "wandb": "logs the true loss itself, and DeepSpeed a scaled one: --track wandb",
    "comet": "logs the true loss itself, and DeepSpeed a scaled one: --track comet",
    "csv_monitor": "writes loss.csv itself",
    f"{ZERO}.zero_quantized_weights": "computes with the weights themselves, and this rounds them to 8 bits",
    f"{ZERO}.zero_quantized_nontrainable_weights": "must leave what is frozen bit-identical, and this rounds it",
    f"{ZERO}.zero_quantized_gradients": "sums gradients in float32, and this rounds them to 4 bits",
    f"{ZERO}.zeropp_loco_param": "sums gradients in float32, and this is for rounded ones",
    f"{ZERO}.zenflow": "updates all of what is trained in every step, and ZenFlow delays a part",
    f"{ZERO}.elastic_checkpoint": OWN_CHECKPOINTS,
    f"{ZERO}.mics_shard_size": "shards over all ranks (DeepSpeed has removed MiCS)",
    f"{ZERO}.mics_hierarchical_params_gather": "shards over all ranks (DeepSpeed has removed MiCS)",
    f"{ZERO}.legacy_stage1": "uses the present ZeRO 1",
    f"{ZERO}.save_muon_momentum_buffer_in_memory": OWN_OPTIMIZER,
    f"{ZERO}.offload_optimizer.nvme_path": "offloads to the memory of the CPU alone: --offload",
    f"{ZERO}.offload_param.nvme_path": "offloads to the memory of the CPU alone: --offload",
    f"{ZERO}.offload_optimizer.super_offload": "has not been tested with it",
    f"{ZERO}.offload_optimizer.cpuadam_cores_perc": "has not been tested with it",
}
# What is refused when its switch is on: DeepSpeed has it off where nothing is said.
SWITCHES: Mapping[str, str] = {
    **dict.fromkeys(
        ("fp16", "amp", "torch_autocast", "elasticity", "autotuning", "data_efficiency", "curriculum_learning",
         "hybrid_engine", "progressive_layer_drop", "eigenvalue", "quantize_training", "nebula", "tensorboard",
         "wandb", "comet", "csv_monitor", "expert_parallel", "datastates_ckpt"),
        "enabled",
    ),
    "compile": "deepcompile",
}  # fmt: skip
# Name → what it must be where it is given at all, and why.
REQUIRED: Mapping[str, tuple[Any, str]] = {
    "zero_force_ds_cpu_optimizer": (False, "uses torch's AdamW, so that offloading changes no result"),
    f"{ZERO}.compute_grad_norm": (True, "needs the norm of each gradient"),
    f"{ZERO}.offload_optimizer.ratio": (1.0, "offloads the optimizer wholly or not at all"),
}
