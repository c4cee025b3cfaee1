"""How a model is fine-tuned: warm start, masked stage and baselines share these settings and one loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from trace_transfer.settings import Count, Seed, Settings, Texts, setting

LARGEST_BUCKET = 500_000_000  # elements, DeepSpeed's default; allocated whole, so that small models get a smaller one
PERSISTENT = 100_000  # elements up to which ZeRO 3 does not partition a parameter, DeepSpeed's default
ZERO_FOR_OFFLOAD = {"none": 0, "optimizer": 1, "parameters": 3}


class TrainSettings(Settings):
    """One stage of fine-tuning, with AdamW and a cosine schedule on DeepSpeed."""

    UNRECORDED: ClassVar[frozenset[str]] = frozenset({"checkpoint_minutes", "keep_checkpoints", "track"})

    epochs: Count = setting(1, "Passes over the data; the paper has 1 for a warm start and 3 for a task of a stream.")
    learning_rate: Annotated[float, Gt(0)] = setting(
        2e-5, "AdamW's, after a linear warm-up and before the cosine.", allow_inf_nan=False
    )
    batch_size: Count = setting(32, "Examples per step, over all processes.")
    micro_batch_size: Count = setting(4, "Examples per forward pass and process.")
    warmup: Annotated[float, Ge(0), Lt(1)] = setting(0.1, "Share of the steps in which the learning rate rises.")
    weight_decay: Annotated[float, Ge(0)] = setting(0.0, "AdamW's.", allow_inf_nan=False)
    max_grad_norm: Annotated[float, Gt(0)] | None = setting(
        1.0, "Gradients are clipped to this norm; 0 for no clipping (None in Python)."
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "float32, or bfloat16 with float32 master weights; auto: bfloat16 on a GPU."
    )
    zero: Annotated[int, Ge(0), Le(3)] = setting(0, "DeepSpeed's ZeRO stage: what is spread over several GPUs.")
    offload: Literal["none", "optimizer", "parameters"] = setting(
        "none", "What is kept in the CPU's memory; needs ZeRO 1, or 3."
    )
    gradient_checkpointing: bool = setting(False, "Less memory for about a third more time.")
    seed: Seed = setting(0, "Draws examples and their order.")
    checkpoint_minutes: Annotated[float, Ge(0)] = setting(
        5.0, "Minutes between checkpoints, from which the same command goes on; 0 for one after every step."
    )
    keep_checkpoints: Count = setting(1, "Checkpoints kept while a training runs.")
    track: Texts = setting(
        (), "Send loss and learning rate there, too: tensorboard, wandb, comet_ml, mlflow, trackio … (accelerate's "
        "trackers); may be given often.", metavar="TRACKER",
    )  # fmt: skip
    deepspeed: Mapping[str, Any] = setting(
        dict, "Your own DeepSpeed JSON; what it leaves out or calls 'auto' comes from these options.", metavar="FILE"
    )

    def contradictions(self) -> list[str]:
        needed = ZERO_FOR_OFFLOAD.get(self.offload, 0)
        told = f"offload: {self.offload!r} needs zero {needed} or more, and zero is {self.zero}"
        return [told] if self.zero < needed else []
