"""The settings of `map`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from trace_transfer.content import cache_directory
from trace_transfer.settings.checks import choice_problems, count_problems, of_profile, recorded, refuse, share_problem
from trace_transfer.settings.types import type_problems

CHOICES: dict[str, tuple[str, ...]] = {
    "rows": ("boundary", "word", "example"),
    "similarity": ("cka-debiased", "cka", "cka-rbf"),
    "representation": ("stream", "update"),
    "transform": ("unit", "none"),
    "match": ("coverage", "argmax", "one-to-one", "monotone", "depth", "shuffled"),
    "carry": ("scores", "core"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
}

# What a profile sets; an option that is given explicitly stays.
PROFILES: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "rows": "example",
        "similarity": "cka",
        "representation": "stream",
        "transform": "none",
        "match": "argmax",
        "carry": "core",
    },
}


@dataclass(frozen=True)
class MapSettings:
    """Everything about a run of `map` but its models, core files and output directory.

    Attributes:
        probe: file of texts on which both models are read; None for those that come with the package.
        rows: what is compared: `boundary` (token ends that both tokenizers share), `word` means, or one mean per
            `example` (the paper's).
        similarity: `cka-debiased`, `cka` (the paper's) or `cka-rbf`.
        representation: the residual `stream` after a layer, or its `update`, what the layer adds.
        transform: rows scaled to `unit` norm, or `none`.
        match: `coverage`, `argmax` (the paper's), `one-to-one`, `monotone`; the controls `depth` and `shuffled`.
        carry: `scores`, of which the best are selected again on the target, or `core` by name (the paper's).
        ratio: core share in (0, 1]; None for that of the core file.
        rules: your own rules, files or directories.
        max_length: tokens at which texts are cut.
        minibatches: rows drawn from each text, one for each minibatch of the CKA.
        splits: random halves of the texts that say how stable the match is; 0 for none.
        batch_size: texts at a time.
        device, dtype: where, and in which type; `auto` is a GPU and bfloat16, or the CPU and float32.
        seed: draws the rows, and a shuffled match.
        cache: directory in which what was read of a model is kept; None for none.
    """

    probe: str | None = None
    rows: str = "boundary"
    similarity: str = "cka-debiased"
    representation: str = "stream"
    transform: str = "unit"
    match: str = "coverage"
    carry: str = "scores"
    ratio: float | None = None
    rules: tuple[str, ...] = ()
    max_length: int = 128
    minibatches: int = 8
    splits: int = 10
    batch_size: int = 16
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0
    cache: Path | None = field(default_factory=cache_directory)

    def __post_init__(self) -> None:
        problems = type_problems(self) + choice_problems(self, CHOICES) + share_problem("ratio", self.ratio)
        problems += count_problems(self, {"max_length": 8, "minibatches": 1, "splits": 0, "batch_size": 1, "seed": 0})
        refuse(problems)

    @classmethod
    def of(cls, profile: str = "default", **given: Any) -> MapSettings:
        """The settings of a profile, with what was given explicitly on top.

        Raises:
            UserError: an unknown name or profile, or values that cannot be used; all at once.
        """
        return of_profile(cls, PROFILES, profile, given)

    @classmethod
    def names(cls) -> frozenset[str]:
        """All that `of` takes."""
        return frozenset(f.name for f in fields(cls))

    def recorded(self) -> dict[str, Any]:
        """As they are saved beside each result."""
        return recorded(self)
