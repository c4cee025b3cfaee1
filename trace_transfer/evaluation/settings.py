"""How a model is evaluated: what all evaluations of a suite have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from trace_transfer.engine.settings import WHICH_ATTENTION
from trace_transfer.identification.settings import Length
from trace_transfer.settings import Count, Seed, Settings, setting
from trace_transfer.transfer.settings import WHICH_DEVICE, WHICH_DTYPE, Dtype

# Where, and how many at once: they change a result by rounding at most, and whether samples are kept by nothing.
_UNDECIDING = ("batch_size", "device", "attention", "save_samples", "allow_code_execution")
# Arguments of `hf` that spread a model over several GPUs, as lm-evaluation-harness names them.
SPREADING = ("parallelize", "max_memory_per_gpu")


class EvaluateSettings(Settings):
    """Everything about an evaluation but the model, the suite and the output directory."""

    GROUP: ClassVar[str] = "Evaluation"
    LATER: ClassVar[frozenset[str]] = frozenset({"attention", "backend", "backend_arguments"})

    backend: Literal["hf", "vllm", "sglang"] = setting(
        "hf", "What runs the model: hf is transformers; vllm and sglang are driven by lm-evaluation-harness.",
        group="Hardware", common=True,
    )  # fmt: skip
    backend_arguments: Mapping[str, Any] = setting(
        dict, "Arguments of the backend: parallelize=true (and max_memory_per_gpu=…) spreads hf over all GPUs; vllm "
        "and sglang get theirs (tensor_parallel_size=8, tp_size=8).", metavar="KEY=VALUE,…", group="Hardware",
    )  # fmt: skip
    batch_size: Count | Literal["auto"] | None = setting(
        None, "Examples per forward pass; auto: as many as memory holds. Default: 8; auto for vllm and sglang.",
        group="Hardware", common=True,
    )  # fmt: skip
    limit: Count | None = setting(None, "Evaluate only the first N records of each.", common=True)
    max_length: Length | None = setting(
        None, "Longest prompt and answer together. Default: the model's context length. Longer examples are cut as in "
        "training; longer prompts lose their beginning.", metavar="TOKENS", common=True,
    )  # fmt: skip
    max_new_tokens: Count | None = setting(
        None, "Longest answer, unless the evaluation says otherwise. Default: that of the benchmark, or 256.",
        metavar="TOKENS",
    )  # fmt: skip
    device: str = setting("auto", WHICH_DEVICE, group="Hardware", common=True)
    dtype: Dtype = setting("auto", WHICH_DTYPE, group="Hardware")
    attention: str = setting("auto", WHICH_ATTENTION, group="Hardware", metavar="NAME")
    seed: Seed = setting(1234, "Seed of few-shot examples and of sampled answers.")
    allow_code_execution: bool = setting(
        False, "Run the programs that the model writes (humaneval), in a sandbox without network, with limits.",
        common=True,
    )  # fmt: skip
    save_samples: bool = setting(True, "Keep every prompt and answer.", group="Output")

    def contradictions(self) -> list[str]:
        if self.backend != "hf" and self.device != "auto":
            return [f"device: --backend {self.backend} takes the GPUs that CUDA_VISIBLE_DEVICES names; leave it out"]
        return []

    @property
    def examples_at_once(self) -> int | Literal["auto"]:
        return self.batch_size or (8 if self.backend == "hf" else "auto")

    def limit_of(self, own: int | None) -> int | None:
        """The smaller of an evaluation's own limit and the general one."""
        return min((one for one in (own, self.limit) if one is not None), default=None)

    def deciding(self) -> dict[str, Any]:
        """Those that decide a result."""
        found = {name: value for name, value in self.recorded().items() if name not in _UNDECIDING}
        if self.backend == "hf":
            found.pop("backend_arguments", None)  # where its layers are
        return found
