"""How a model is evaluated: what all evaluations of a suite have in common."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from trace_transfer.settings.checks import choice_problems, count_problems, made, recorded, refuse, unknown_problems
from trace_transfer.settings.types import type_problems

CHOICES: dict[str, tuple[str, ...]] = {"dtype": ("auto", "float32", "bfloat16", "float16")}
# Where, and how many at once: they change a result by rounding at most, and whether samples are kept by nothing.
_UNDECIDING = ("batch_size", "device", "save_samples", "allow_code_execution")


@dataclass(frozen=True)
class EvaluateSettings:
    """Everything about an evaluation but the model, the suite and the output directory.

    Attributes:
        batch_size: examples of a forward pass.
        limit: at most so many records of each evaluation, the first ones; None for all.
        max_length: tokens that the model reads and writes; longer examples are cut as in training, longer prompts lose
            their beginning. None for what the model was made for.
        max_new_tokens: the longest answer, of evaluations that do not say; None for what a benchmark says, and 256.
        device, dtype: where, and in which type; `auto` is a GPU and bfloat16, or the CPU and float32.
        seed: of the examples that are shown, and of sampled answers.
        allow_code_execution: whether code that the model writes may be run.
        save_samples: keep every prompt and answer.
    """

    batch_size: int = 8
    limit: int | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 1234
    allow_code_execution: bool = False
    save_samples: bool = True

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "limit": 1, "max_length": 2, "max_new_tokens": 1, "seed": 0}
        refuse(type_problems(self) + choice_problems(self, CHOICES) + count_problems(self, least))

    @classmethod
    def of(cls, **given: Any) -> EvaluateSettings:
        """From single names, as on the command line.

        Raises:
            UserError: unknown names, or values that cannot be used; all at once.
        """
        problems = unknown_problems(given, cls.names())
        found = made(problems, cls, {name: given[name] for name in given if name in cls.names()})
        refuse(problems)
        return found

    @classmethod
    def names(cls) -> frozenset[str]:
        """All that `of` takes."""
        return frozenset(f.name for f in fields(cls))

    def limit_of(self, own: int | None) -> int | None:
        """The smaller of an evaluation's own limit and the general one."""
        return min((one for one in (own, self.limit) if one is not None), default=None)

    def recorded(self) -> dict[str, Any]:
        """As they are saved beside the results."""
        return recorded(self)

    def deciding(self) -> dict[str, Any]:
        """Those that decide a result."""
        return {name: value for name, value in recorded(self).items() if name not in _UNDECIDING}
