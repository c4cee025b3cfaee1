"""The settings of `represent`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trace_transfer.settings.checks import choice_problems, count_problems, recorded, refuse
from trace_transfer.settings.types import type_problems

CHOICES: dict[str, tuple[str, ...]] = {
    "pool": ("mean", "last"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class RepresentSettings:
    """Everything about a run of `represent` but its models, tasks and output directory.

    Attributes:
        pool: a text's embedding is the mean over its tokens, or that of its last token.
        max_examples: of each task, drawn with the seed; fewer where `tasks.yaml` says so. None for all.
        max_length: tokens; longer texts are cut there.
        perplexity: of t-SNE: about as many neighbours of a text as it looks at; less than the number of texts.
        batch_size: texts at a time.
    """

    pool: str = "mean"
    max_examples: int | None = 200
    max_length: int = 1024
    perplexity: float = 30.0
    batch_size: int = 16
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    rules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = type_problems(self) + choice_problems(self, CHOICES)
        problems += count_problems(self, {"max_examples": 3, "max_length": 1, "batch_size": 1, "seed": 0})
        if not 1 <= self.perplexity < float("inf"):
            problems.append(f"perplexity: {self.perplexity} is not 1 or more")
        refuse(problems)

    def recorded(self) -> dict[str, Any]:
        """As they are saved beside the results."""
        return recorded(self)
