"""The settings as keywords of the Python functions, for editors and type checkers; the defaults are beside them.

Made of the classes of settings by `python -m tests.golden.make_keywords`; not to be edited.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict


class IdentifyKeywords(TypedDict, total=False):
    """Of `IdentifySettings`."""

    epochs: int  # 1
    learning_rate: float  # 2e-05
    learning_rate_of: Mapping[str, Any]  # {}
    batch_size: int  # 32
    micro_batch_size: int  # 4
    warmup: float  # 0.1
    schedule: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
        "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"
    ]  # "cosine"  # fmt: skip
    schedule_args: Mapping[str, Any]  # {}
    optimizer: Literal[
        "adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "muon", "adamw_8bit", "adamw_bnb_8bit",
        "paged_adamw_8bit", "lion_8bit"
    ]  # "adamw_torch"  # fmt: skip
    optimizer_args: Mapping[str, Any]  # {}
    weight_decay: float  # 0.0
    no_decay: str | Sequence[str]  # ()
    max_grad_norm: float | None  # 1.0
    precision: Literal["auto", "float32", "bfloat16"]  # "auto"
    zero: int  # 0
    offload: Literal["none", "optimizer", "parameters"]  # "none"
    gradient_checkpointing: bool  # False
    attention: str  # "auto"
    packing: bool  # False
    seed: int  # 0
    checkpoint_minutes: float  # 5.0
    keep_checkpoints: int  # 1
    track: str | Sequence[str]  # ()
    deepspeed: Mapping[str, Any]  # {}
    max_length: int  # 1024
    too_long: Literal["cut", "leave-out"]  # "cut"
    replicates: int  # 1
    delta_dtype: Literal["float32", "bfloat16"]  # "float32"
    keep_models: bool  # False
    method: Literal["lf", "cs", "l2", "fisher", "snr", "fisher-base"]  # "lf"
    ratio: float  # 0.05
    unit: Literal["tensors", "elements", "rows", "parameters"]  # "tensors"
    alpha: float  # 0.5
    l2: Literal["rms", "norm", "relative"]  # "rms"
    fisher: Literal["example", "batch"]  # "example"
    fisher_size: Literal["mean", "sum"]  # "mean"
    fisher_at: Literal["tuned", "base"]  # "tuned"
    fisher_examples: int  # 300
    gradient_examples: int  # 32
    against: Literal["auto", "tasks", "text"]  # "auto"
    normalise: Literal["min-max", "rank", "z-score"]  # "min-max"
    normalise_within: Literal["all", "kind"]  # "all"
    zero_delta: Literal["unscored", "cosine-0"]  # "unscored"
    cosine: Literal["plain", "corrected"]  # "plain"
    exclude: str | Sequence[str]  # ()
    within: str | PathLike[str] | None  # None
    min_elements: int  # 1
    device: str  # "auto"
    tokens_at_once: int  # 4096
    layer_streamed: bool  # False


class MapKeywords(TypedDict, total=False):
    """Of `MapSettings`."""

    probe: str | None  # None
    rows: Literal["boundary", "word", "example"]  # "boundary"
    similarity: Literal["cka-debiased", "cka", "cka-rbf"]  # "cka-debiased"
    representation: Literal["stream", "update"]  # "stream"
    transform: Literal["unit", "none"]  # "unit"
    match: Literal["argmax", "one-to-one", "monotone", "coverage", "depth", "shuffled"]  # "coverage"
    carry: Literal["scores", "core"]  # "scores"
    ratio: float | None  # None
    rules: str | Sequence[str]  # ()
    max_length: int  # 128
    minibatches: int  # 8
    splits: int  # 10
    batch_size: int  # 16
    device: str  # "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"]  # "auto"
    attention: str  # "auto"
    seed: int  # 0
    cache: str | PathLike[str] | None


class StreamKeywords(TypedDict, total=False):
    """Of `StreamSettings`."""

    method: Literal[
        "trace", "full", "joint", "lora", "dmt", "random", "random-within", "norms-random", "head-norms-random",
        "shuffled", "first", "last"
    ]  # "trace"  # fmt: skip
    epochs: int  # 3
    learning_rate: float  # 2e-05
    learning_rate_of: Mapping[str, Any]  # {}
    batch_size: int  # 256
    micro_batch_size: int  # 4
    warmup: float  # 0.1
    schedule: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
        "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"
    ]  # "cosine"  # fmt: skip
    schedule_args: Mapping[str, Any]  # {}
    optimizer: Literal[
        "adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "muon", "adamw_8bit", "adamw_bnb_8bit",
        "paged_adamw_8bit", "lion_8bit"
    ]  # "adamw_torch"  # fmt: skip
    optimizer_args: Mapping[str, Any]  # {}
    weight_decay: float  # 0.0
    no_decay: str | Sequence[str]  # ()
    max_grad_norm: float | None  # 1.0
    precision: Literal["auto", "float32", "bfloat16"]  # "auto"
    zero: int  # 3
    offload: Literal["none", "optimizer", "parameters"]  # "none"
    gradient_checkpointing: bool  # False
    attention: str  # "auto"
    packing: bool  # False
    seed: int  # 0
    checkpoint_minutes: float  # 5.0
    keep_checkpoints: int  # 1
    track: str | Sequence[str]  # ()
    deepspeed: Mapping[str, Any]  # {}
    max_length: int  # 1024
    too_long: Literal["cut", "leave-out"]  # "cut"
    order: str | Sequence[str]  # ()
    eval_share: float | None  # None
    eval_every: int | None  # None
    patience: int | None  # None
    keep_best: bool  # False
    save_dtype: Literal["stored", "float32"]  # "stored"
    lora_rank: int  # 8
    lora_alpha: float  # 16.0
    adapter: Literal["carry", "merge"]  # "carry"
    special: str | None  # None
    replay_share: float  # 0.00390625
    control_unit: Literal["tensors", "elements"]  # "tensors"
    draw: int  # 0


class EvaluateKeywords(TypedDict, total=False):
    """Of `EvaluateSettings`."""

    backend: Literal["hf", "vllm", "sglang"]  # "hf"
    backend_arguments: Mapping[str, Any]  # {}
    batch_size: int | Literal["auto"] | None  # None
    limit: int | None  # None
    max_length: int | None  # None
    max_new_tokens: int | None  # None
    device: str  # "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"]  # "auto"
    attention: str  # "auto"
    seed: int  # 1234
    allow_code_execution: bool  # False
    save_samples: bool  # True
