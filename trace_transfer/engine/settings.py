"""How a model is fine-tuned: warm start, masked stage and baselines share these settings and one loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from trace_transfer.settings import Count, Seed, Settings, Texts, setting

LARGEST_BUCKET = 500_000_000  # elements, DeepSpeed's default; allocated whole, so that small models get a smaller one
PERSISTENT = 100_000  # elements up to which ZeRO 3 does not partition a tensor, DeepSpeed's default
LOGITS_AT_ONCE = 1 << 24  # of the supervised tokens that meet the head together
ZERO_FOR_OFFLOAD = {"none": 0, "optimizer": 1, "parameters": 3}


class TrainSettings(Settings):
    """One stage of fine-tuning, with AdamW and a cosine schedule on DeepSpeed."""

    UNRECORDED: ClassVar[frozenset[str]] = frozenset({"checkpoint_minutes", "keep_checkpoints", "track"})
    GROUP: ClassVar[str] = "Training"

    epochs: Count = setting(
        1, "Passes over the data. The paper has 1 for a warm start and 3 for a task of a stream.", common=True
    )
    learning_rate: Annotated[float, Gt(0)] = setting(
        2e-5,
        "Peak learning rate of AdamW. It rises linearly and then falls as a cosine.",
        common=True,
        allow_inf_nan=False,
    )
    batch_size: Count = setting(32, "Examples per step, over all processes.", common=True)
    micro_batch_size: Count = setting(4, "Examples per forward pass and process.", group="Hardware", common=True)
    warmup: Annotated[float, Ge(0), Lt(1)] = setting(0.1, "Share of the steps in which the learning rate rises.")
    weight_decay: Annotated[float, Ge(0)] = setting(0.0, "Weight decay of AdamW.", allow_inf_nan=False)
    max_grad_norm: Annotated[float, Gt(0)] | None = setting(
        1.0, "Clip gradients to this norm; 0 for no clipping (None in Python)."
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Number format of weights and activations. bfloat16 keeps float32 master weights; auto: bfloat16 on a GPU, "
        "else float32.",
        group="Hardware",
    )
    zero: Annotated[int, Ge(0), Le(3)] = setting(
        0, "ZeRO stage of DeepSpeed. It spreads optimizer state (1), gradients (2) and weights (3) over the GPUs.",
        group="Hardware", common=True,
    )  # fmt: skip
    offload: Literal["none", "optimizer", "parameters"] = setting(
        "none",
        "What to keep in CPU memory. The optimizer needs ZeRO 1 or higher, parameters need ZeRO 3.",
        group="Hardware",
    )
    gradient_checkpointing: bool = setting(
        False, "Save memory by recomputing activations. Takes about a third more time.", group="Hardware", common=True
    )
    seed: Seed = setting(0, "Seed of the examples drawn and of their order.")
    checkpoint_minutes: Annotated[float, Ge(0)] = setting(
        5.0,
        "Minutes between checkpoints, from which the same command resumes; 0 for one after every step.",
        group="Output",
    )
    keep_checkpoints: Count = setting(1, "Number of checkpoints kept during training.", group="Output")
    track: Texts = setting(
        (), "Log loss and learning rate with accelerate: tensorboard, wandb, comet_ml, mlflow, trackio … May "
        "be repeated.", metavar="TRACKER", group="Output",
    )  # fmt: skip
    deepspeed: Mapping[str, Any] = setting(
        dict,
        "Your own DeepSpeed JSON. These options fill in what it leaves out or sets to 'auto'.",
        metavar="FILE",
        group="Hardware",
    )

    def contradictions(self) -> list[str]:
        needed = ZERO_FOR_OFFLOAD.get(self.offload, 0)
        told = f"offload: {self.offload!r} needs zero {needed} or more, and zero is {self.zero}"
        return [told] if self.zero < needed else []
