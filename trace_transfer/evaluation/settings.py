"""How a model is evaluated: what all evaluations of a suite have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from trace_transfer.identification.settings import Length
from trace_transfer.settings import Count, Seed, Settings, setting
from trace_transfer.transfer.settings import WHICH_DEVICE, WHICH_DTYPE, Dtype

# Where, and how many at once: they change a result by rounding at most, and whether samples are kept by nothing.
_UNDECIDING = ("batch_size", "device", "save_samples", "allow_code_execution")


class EvaluateSettings(Settings):
    """Everything about an evaluation but the model, the suite and the output directory."""

    GROUP: ClassVar[str] = "Evaluation"

    batch_size: Count = setting(8, "Examples per forward pass.", group="Hardware", common=True)
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
    seed: Seed = setting(1234, "Seed of few-shot examples and of sampled answers.")
    allow_code_execution: bool = setting(
        False,
        "Run the programs that the model writes (humaneval), in a sandbox without network, with limits.",
        common=True,
    )
    save_samples: bool = setting(True, "Keep every prompt and answer.", group="Output")

    def limit_of(self, own: int | None) -> int | None:
        """The smaller of an evaluation's own limit and the general one."""
        return min((one for one in (own, self.limit) if one is not None), default=None)

    def deciding(self) -> dict[str, Any]:
        """Those that decide a result."""
        return {name: value for name, value in self.recorded().items() if name not in _UNDECIDING}
