"""How a model is evaluated: what all evaluations of a suite have in common."""

from __future__ import annotations

from typing import Any

from trace_transfer.identification.settings import Length
from trace_transfer.settings import Count, Seed, Settings, setting
from trace_transfer.transfer.settings import WHICH_DEVICE, WHICH_DTYPE, Dtype

# Where, and how many at once: they change a result by rounding at most, and whether samples are kept by nothing.
_UNDECIDING = ("batch_size", "device", "save_samples", "allow_code_execution")


class EvaluateSettings(Settings):
    """Everything about an evaluation but the model, the suite and the output directory."""

    batch_size: Count = setting(8, "Examples of a forward pass.")
    limit: Count | None = setting(None, "At most so many records of each, the first ones.")
    max_length: Length | None = setting(
        None, "Tokens that the model reads and writes; what it was made for if not given. Longer examples are cut as "
        "in training, longer prompts lose their beginning.", metavar="TOKENS",
    )  # fmt: skip
    max_new_tokens: Count | None = setting(
        None, "Longest answer, where the evaluation does not say; else what the benchmark says, and 256.",
        metavar="TOKENS",
    )  # fmt: skip
    device: str = setting("auto", WHICH_DEVICE)
    dtype: Dtype = setting("auto", WHICH_DTYPE)
    seed: Seed = setting(1234, "Of the examples that are shown, and of sampled answers.")
    allow_code_execution: bool = setting(
        False, "Run programs that the model writes (humaneval): walled in, without network, with limits."
    )
    save_samples: bool = setting(True, "Whether every prompt and answer is kept (it is).")

    def limit_of(self, own: int | None) -> int | None:
        """The smaller of an evaluation's own limit and the general one."""
        return min((one for one in (own, self.limit) if one is not None), default=None)

    def deciding(self) -> dict[str, Any]:
        """Those that decide a result."""
        return {name: value for name, value in self.recorded().items() if name not in _UNDECIDING}
