"""The settings as keywords of the Python functions, for editors and type checkers.

Made of the classes of settings by `python -m tests.golden.make_keywords`; not to be edited.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypedDict


class TrainKeywords(TypedDict, total=False):
    epochs: int
    learning_rate: float
    learning_rate_of: Mapping[str, Any]
    batch_size: int
    micro_batch_size: int
    warmup: float
    schedule: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
        "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"
    ]  # fmt: skip
    schedule_args: Mapping[str, Any]
    optimizer: Literal[
        "adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "muon", "adamw_8bit", "adamw_bnb_8bit",
        "paged_adamw_8bit", "lion_8bit"
    ]  # fmt: skip
    optimizer_args: Mapping[str, Any]
    weight_decay: float
    no_decay: str | Sequence[str]
    max_grad_norm: float | None
    precision: Literal["auto", "float32", "bfloat16"]
    zero: int
    offload: Literal["none", "optimizer", "parameters"]
    gradient_checkpointing: bool
    attention: str
    packing: bool
    seed: int
    checkpoint_minutes: float
    keep_checkpoints: int
    track: str | Sequence[str]
    deepspeed: Mapping[str, Any]


class WarmStartKeywords(TrainKeywords, total=False):
    max_length: int
    too_long: Literal["cut", "leave-out"]
    replicates: int
    delta_dtype: Literal["float32", "bfloat16"]
    keep_models: bool


class ScoreKeywords(TypedDict, total=False):
    method: Literal["lf", "cs", "l2", "fisher", "snr", "fisher-base"]
    ratio: float
    unit: Literal["tensors", "elements", "rows", "parameters"]
    alpha: float
    l2: Literal["rms", "norm", "relative"]
    fisher: Literal["example", "batch"]
    fisher_size: Literal["mean", "sum"]
    fisher_at: Literal["tuned", "base"]
    fisher_examples: int
    gradient_examples: int
    against: Literal["auto", "tasks", "text"]
    normalise: Literal["min-max", "rank", "z-score"]
    normalise_within: Literal["all", "kind"]
    zero_delta: Literal["unscored", "cosine-0"]
    cosine: Literal["plain", "corrected"]
    exclude: str | Sequence[str]
    within: str | PathLike[str] | None
    prior: str | PathLike[str] | None
    min_elements: int


class ComputeKeywords(TypedDict, total=False):
    device: str
    tokens_at_once: int
    layer_streamed: bool


class IdentifyKeywords(WarmStartKeywords, ScoreKeywords, ComputeKeywords, total=False):
    pass


class MapKeywords(TypedDict, total=False):
    probe: str | None
    rows: Literal["boundary", "word", "example"]
    similarity: Literal["cka-debiased", "cka"]
    representation: Literal["stream", "update"]
    transform: Literal["unit", "none"]
    match: Literal["argmax", "one-to-one", "monotone", "coverage", "depth", "shuffled"]
    carry: Literal["scores", "core"]
    ratio: float | None
    rules: str | Sequence[str]
    max_length: int
    minibatches: int
    splits: int
    batch_size: int
    device: str
    target_device: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    attention: str
    seed: int
    cache: str | PathLike[str] | None


class StreamKeywords(TrainKeywords, total=False):
    method: Literal[
        "trace", "full", "joint", "lora", "dmt", "random", "random-within", "role-profile", "one-set", "norms-random",
        "head-norms-random", "shuffled", "first", "last"
    ]  # fmt: skip
    max_length: int
    too_long: Literal["cut", "leave-out"]
    order: str | Sequence[str]
    eval_share: float | None
    eval_every: int | None
    patience: int | None
    keep_best: bool
    save_dtype: Literal["stored", "float32"]
    lora_rank: int
    lora_alpha: float
    adapter: Literal["carry", "merge"]
    special: str | None
    replay_share: float
    control_unit: Literal["tensors", "elements"] | None
    draw: int


class EvaluateKeywords(TypedDict, total=False):
    backend: Literal["hf", "vllm", "sglang"]
    backend_arguments: Mapping[str, Any]
    batch_size: int | Literal["auto"] | None
    limit: int | None
    max_length: int | None
    max_new_tokens: int | None
    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    attention: str
    seed: int
    allow_code_execution: bool
    save_samples: bool
