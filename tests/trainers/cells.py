"""One cell of the matrix trainer × core set × parallelism: trains, proves and saves with the real libraries.

    torchrun --nproc_per_node 2 -m tests.trainers.cells PARALLELISM MODEL CORES OUT

does all cells of one parallelism, one after the other; CORES is a directory with a core file of each kind.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import trace_transfer as tt

TRAINERS = ("loop", "trainer", "sft")
CELLS = [*((trainer, kind) for trainer in TRAINERS for kind in ("tensors", "rows")), ("loop", "parameters")]
PARALLEL = ("ddp", "zero0", "zero1", "zero2", "zero3", "fsdp2")
STEPS, BATCH, LENGTH = 4, 2, 12
RATE, DECAY, NORM = 1e-2, 0.1, 0.3


def batches() -> torch.Tensor:
    """[steps, batch, tokens]."""
    return torch.randint(0, 300, (STEPS, BATCH, LENGTH), generator=torch.Generator().manual_seed(3))


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).train()


def deepspeed_config(stage: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": NORM,
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "bf16": {"enabled": False},
        "zero_optimization": {
            "stage": stage, "stage3_gather_16bit_weights_on_model_save": True, "reduce_bucket_size": 1_000_000,
            "allgather_bucket_size": 1_000_000, "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 1000,
        },
    }  # fmt: skip


def pretend_cpus_are_accelerators() -> None:
    """accelerate has DeepSpeed and FSDP on accelerators alone: here two processes on CPUs are two of them."""
    from accelerate.state import DistributedType, PartialState

    PartialState._prepare_backend = lambda self, cpu, *_: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


def groups(model: Any) -> list[dict[str, Any]]:
    """What is trained, without weight decay of norms and biases."""
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    plain = [one for name, one in trained if "norm" in name or "bias" in name]
    others = [one for name, one in trained if not ("norm" in name or "bias" in name)]
    return [{"params": others, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]


def in_a_loop(model: Any, core: Path, parallel: str, out: Path) -> tuple[Any, list[float]]:
    """accelerate's loop."""
    from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    plugins: dict[str, Any] = {"cpu": True}
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    if parallel.startswith("zero"):
        plugins = {"deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=deepspeed_config(int(parallel[-1])))}
    elif parallel == "fsdp2":
        plugins = {
            "fsdp_plugin": FullyShardedDataParallelPlugin(
                fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=True
            )
        }
    trained = tt.freeze_except(model, core)
    accelerator = Accelerator(**plugins)
    optimizer = torch.optim.AdamW(groups(model), lr=RATE)
    model, optimizer = accelerator.prepare(model, optimizer)
    losses = []
    size = accelerator.num_processes
    assert size == (1 if parallel == "one" else 2)
    for batch in batches():
        mine = batch.chunk(size)[accelerator.process_index]
        optimizer.zero_grad()
        loss = model(input_ids=mine, labels=mine, use_cache=False).loss
        accelerator.backward(loss)
        if not parallel.startswith("zero"):
            accelerator.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], NORM)
        optimizer.step()
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    state = accelerator.get_state_dict(model)
    accelerator.unwrap_model(model).save_pretrained(out, state_dict=state, is_main_process=accelerator.is_main_process)
    return trained, losses


def in_a_trainer(
    model: Any, core: Path, parallel: str, out: Path, *, sft: bool, **more: Any
) -> tuple[Any, list[float]]:
    from datasets import Dataset

    if sft:
        from transformers import AutoTokenizer
        from trl import SFTConfig as Arguments
        from trl import SFTTrainer as Trainer

        kinds = {"processing_class": AutoTokenizer.from_pretrained(model.name_or_path)}
    else:
        from transformers import Trainer
        from transformers import TrainingArguments as Arguments

        kinds = {}
    options: dict[str, Any] = {"use_cpu": parallel in ("one", "ddp")}
    if parallel.startswith("zero"):
        options["deepspeed"] = deepspeed_config(int(parallel[-1]))
    elif parallel == "fsdp2":
        options |= {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "state_dict_type": "FULL_STATE_DICT",
            },
        }
    arguments = Arguments(
        output_dir=str(out), per_device_train_batch_size=BATCH if parallel == "one" else 1, num_train_epochs=1,
        learning_rate=RATE, weight_decay=DECAY, max_grad_norm=NORM, lr_scheduler_type="constant", logging_steps=1,
        train_sampling_strategy="sequential", report_to="none", optim="adamw_torch", disable_tqdm=True,
        **{"bf16": False, "gradient_checkpointing": False, "save_strategy": "no", **options, **more},
    )  # fmt: skip
    rows = batches().flatten(0, 1).tolist()
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    callback = tt.CoreCallback(core)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback], **kinds)
    assert trainer.accelerator.num_processes == (1 if parallel == "one" else 2)
    trainer.train(resume_from_checkpoint=more.get("resume_from_checkpoint"))
    trainer.save_model(str(out))
    return callback.trained, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def cell(trainer: str, kind: str, parallel: str, model: Path, cores: Path, out: Path) -> dict[str, Any]:
    """Train; the model is saved into `out`, a patch beside it."""
    core = cores / f"{kind}.core.json"
    if trainer == "loop":
        trained, losses = in_a_loop(load(model), core, parallel, out)
    else:
        trained, losses = in_a_trainer(load(model), core, parallel, out, sft=trainer == "sft")
    trained.verify()
    trained.save_patch(out / "again.patch.safetensors")
    return {"losses": losses}


def resumed(parallel: str, model: Path, cores: Path, out: Path) -> dict[str, Any]:
    """Trained to the end, and from a checkpoint in the middle to the end once more."""
    core, losses = cores / "rows.core.json", []
    for directory, more in (
        (out, {}),
        (out / "again", {"resume_from_checkpoint": str(out / f"checkpoint-{STEPS // 2}")}),
    ):
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": STEPS // 2, **more}
        if parallel == "fsdp2":  # in a FULL_STATE_DICT torch looks for names of parameters, and rows have none there
            wrap = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
            saving["fsdp_config"] = {**wrap, "state_dict_type": "SHARDED_STATE_DICT"}
        trained, found = in_a_trainer(load(model), core, parallel, directory, sft=False, **saving)
        trained.verify()
        losses.append(found)
    return {"losses": losses}


def main(parallel: str, model: Path, cores: Path, out: Path) -> None:
    if parallel != "ddp":
        pretend_cpus_are_accelerators()
    results: dict[str, Any] = {}
    todo = {f"{trainer}-{kind}": partial(cell, trainer, kind) for trainer, kind in CELLS}
    for name, do in {**todo, "resumed": resumed}.items():
        try:
            results[name] = do(parallel, model, cores, out / name)
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    if os.environ["RANK"] == "0":
        (out / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], *map(Path, sys.argv[2:]))
