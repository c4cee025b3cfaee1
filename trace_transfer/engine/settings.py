"""How a model is fine-tuned: warm start, masked stage and baselines share these settings and one loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from trace_transfer.engine.optimizers import OPTIMIZERS, SCHEDULES, contradictions
from trace_transfer.settings import Count, Seed, Settings, Texts, setting

LARGEST_BUCKET = 500_000_000  # elements, DeepSpeed's default; allocated whole, so that small models get a smaller one
PERSISTENT = 100_000  # elements up to which ZeRO 3 does not partition a tensor, DeepSpeed's default
LOGITS_AT_ONCE = 1 << 24  # of the supervised tokens that meet the head together
WHICH_ATTENTION = (
    "Implementation of attention, as transformers names them: sdpa, eager, flash_attention_2, flex_attention …; auto: "
    "what transformers chooses for the model."
)
ZERO_FOR_OFFLOAD = {"none": 0, "optimizer": 1, "parameters": 3}
Rate = Annotated[float, Gt(0)]
if TYPE_CHECKING:
    OptimizerName = str
    ScheduleName = str
else:
    OptimizerName, ScheduleName = Literal[tuple(OPTIMIZERS)], Literal[tuple(SCHEDULES)]


class TrainSettings(Settings):
    """One stage of fine-tuning on DeepSpeed."""

    UNRECORDED: ClassVar[frozenset[str]] = frozenset({"checkpoint_minutes", "keep_checkpoints", "track"})
    LATER: ClassVar[frozenset[str]] = frozenset(
        {"optimizer", "optimizer_args", "learning_rate_of", "no_decay", "schedule", "schedule_args"}
        | {"attention", "packing"}
    )
    GROUP: ClassVar[str] = "Training"

    epochs: Count = setting(
        1, "Passes over the data. The paper has 1 for a warm start and 3 for a task of a stream.", common=True
    )
    learning_rate: Rate = setting(2e-5, "Peak learning rate.", common=True, allow_inf_nan=False)
    learning_rate_of: Mapping[str, Rate] = setting(
        dict, "Another peak for some tensors. WHAT is a component (attention, mlp.down, norm, embedding …), bias, or a "
        "pattern of names ('model.layers.0.*'). May be repeated.", metavar="WHAT=RATE",
    )  # fmt: skip
    batch_size: Count = setting(32, "Examples per step. This is the sum over all processes.", common=True)
    micro_batch_size: Count = setting(4, "Examples per forward pass and process.", group="Hardware", common=True)
    warmup: Annotated[float, Ge(0), Lt(1)] = setting(0.1, "Share of the steps in which the learning rate rises.")
    schedule: ScheduleName = setting("cosine", "Learning rate after the warm-up, by the names of transformers.")
    schedule_args: Mapping[str, Any] = setting(
        dict, "Arguments of the schedule, as transformers.get_scheduler takes them: min_lr_rate=0.1. May be repeated.",
        metavar="NAME=VALUE",
    )  # fmt: skip
    optimizer: OptimizerName = setting(
        "adamw_torch", "Optimizer, by the names of transformers. adafactor, muon and those in 8 bits (bitsandbytes) "
        "need ZeRO 0. muon trains matrices but embeddings and heads, adamw_torch the rest.",
    )  # fmt: skip
    optimizer_args: Mapping[str, Any] = setting(
        dict, "Arguments of the optimizer: betas=[0.9,0.95], momentum=0.9. May be repeated.", metavar="NAME=VALUE"
    )
    weight_decay: Annotated[float, Ge(0)] = setting(0.0, "Weight decay.", allow_inf_nan=False)
    no_decay: Texts = setting(
        (), "No weight decay on these tensors: norm, bias, or what --learning-rate-of takes. May be repeated.",
        metavar="WHAT",
    )  # fmt: skip
    max_grad_norm: Annotated[float, Gt(0)] | None = setting(
        1.0, "Clip gradients to this norm; 0 for no clipping (None in Python)."
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "Number format of weights and activations. bfloat16 keeps float32 master weights; auto: bfloat16 on a "
        "GPU, else float32.", group="Hardware",
    )  # fmt: skip
    zero: Annotated[int, Ge(0), Le(3)] = setting(
        0, "ZeRO stage of DeepSpeed. It spreads optimizer state (1), gradients (2) and weights (3) over the GPUs.",
        group="Hardware", common=True,
    )  # fmt: skip
    offload: Literal["none", "optimizer", "parameters"] = setting(
        "none", "What to keep in CPU memory. The optimizer needs ZeRO 1 or higher, parameters need ZeRO 3.",
        group="Hardware",
    )  # fmt: skip
    gradient_checkpointing: bool = setting(
        False, "Save memory by recomputing activations. Takes about a third more time.", group="Hardware", common=True
    )
    attention: str = setting("auto", WHICH_ATTENTION, group="Hardware", metavar="NAME")
    packing: bool = setting(
        False, "Put the texts of a micro-batch into one row, without padding. No text sees another; a model that "
        "cannot be trained so is refused.", group="Hardware",
    )  # fmt: skip
    seed: Seed = setting(0, "Seed of the examples drawn and of their order.")
    checkpoint_minutes: Annotated[float, Ge(0)] = setting(
        5.0, "Minutes between checkpoints, from which the same command resumes; 0 for one after every step.",
        group="Output",
    )  # fmt: skip
    keep_checkpoints: Count = setting(1, "Number of checkpoints kept during training.", group="Output")
    track: Texts = setting(
        (), "Log loss and learning rate with accelerate: tensorboard, wandb, comet_ml, mlflow, trackio … May "
        "be repeated.", metavar="TRACKER", group="Output",
    )  # fmt: skip
    deepspeed: Mapping[str, Any] = setting(
        dict, "Your own DeepSpeed JSON. These options fill in what it leaves out or sets to 'auto'.", metavar="FILE",
        group="Hardware",
    )  # fmt: skip

    def contradictions(self) -> list[str]:
        needed = ZERO_FOR_OFFLOAD.get(self.offload, 0)
        told = f"offload: {self.offload!r} needs zero {needed} or more, and zero is {self.zero}"
        return [*([told] if self.zero < needed else []), *contradictions(self)]
