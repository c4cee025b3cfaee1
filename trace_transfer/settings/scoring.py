"""How parameters are scored and chosen: what the paper leaves open, each with a default, and two profiles.

`paper` is the text of arXiv 2605.31025, section 3.2; `authors-code` what its published code does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trace_transfer.settings.checks import choice_problems, count_problems, of_profile, recorded, refuse, share_problem
from trace_transfer.settings.types import type_problems

# The first of each is the default.
CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("lf", "cs", "l2", "fisher"),
    "unit": ("tensors", "elements", "rows"),
    "l2": ("rms", "norm", "relative"),
    "fisher": ("example", "batch"),
    "fisher_size": ("mean", "sum"),
    "fisher_at": ("tuned", "base"),
    "normalise": ("min-max", "rank", "z-score"),
    "normalise_within": ("all", "kind"),
    "zero_delta": ("unscored", "cosine-0"),
    "cosine": ("plain", "corrected"),
}

# What a profile sets; an option that is given explicitly stays.
PROFILES: dict[str, dict[str, Any]] = {
    "default": {},
    # Equations 3 to 5: the plain norm, and the squared gradient summed over a tensor's elements.
    "paper": {"l2": "norm", "fisher_size": "sum"},
    # Root mean square, mean squared gradient of 150 batches of 2, min-max, 10 %, and cosine 0 for a zero delta.
    "authors-code": {"fisher": "batch", "ratio": 0.1, "zero_delta": "cosine-0"},
}


# What some methods do not look at.
_WITHOUT_FISHER = ("alpha", "fisher", "fisher_size", "fisher_at", "fisher_examples")
_UNUSED: dict[str, tuple[str, ...]] = {
    "cs": (*_WITHOUT_FISHER, "l2", "normalise", "normalise_within"),
    "l2": _WITHOUT_FISHER,
    "fisher": ("alpha", "l2"),
}


@dataclass(frozen=True)
class ScoreSettings:
    """From deltas and Fisher information to a core set.

    Attributes:
        method: a name in `trace_transfer.maths.saliency.METHODS`.
        ratio: core share, in (0, 1].
        unit: what the ratio counts: `tensors`; `elements` of whole tensors; `rows`: elements of heads and neurons,
            which are then scored one by one.
        alpha: share of L2 in LF (eq. 5); Fisher has the rest.
        l2: `rms`: norm / √numel; `norm`: eq. 3; `relative`: norm / norm of the base.
        fisher: `example`: expectation over examples (eq. 4); `batch`: squared gradients of batches of two.
        fisher_size: `mean` or `sum` of the squared gradient over a parameter's elements.
        fisher_at: where: at the `tuned` model (eq. 4) or the `base` (Algorithm 1).
        fisher_examples: examples drawn from each task; fewer if it has fewer.
        normalise: what makes L2 and Fisher comparable before they are added.
        normalise_within: over `all` parameters, or over those of one `kind` (a component) at a time.
        zero_delta: specificity of a parameter that did not move: `unscored`, or as if its `cosine-0`.
        cosine: `corrected` divides each cosine by the reliability of both deltas (needs two replicates).
        exclude: components or groups of them (`norm`, `head`) and `bias`, whose parameters take no part.
        min_elements: parameters with fewer take no part.
    """

    method: str = "lf"
    ratio: float = 0.05
    unit: str = "tensors"
    alpha: float = 0.5
    l2: str = "rms"
    fisher: str = "example"
    fisher_size: str = "mean"
    fisher_at: str = "tuned"
    fisher_examples: int = 300
    normalise: str = "min-max"
    normalise_within: str = "all"
    zero_delta: str = "unscored"
    cosine: str = "plain"
    exclude: tuple[str, ...] = ()
    min_elements: int = 1

    def __post_init__(self) -> None:
        problems = type_problems(self) + choice_problems(self, CHOICES)
        problems += share_problem("ratio", self.ratio)
        problems += count_problems(self, {"fisher_examples": 1, "min_elements": 1})
        if not 0 <= self.alpha <= 1:
            problems.append(f"alpha: {self.alpha} is not in [0, 1]")
        refuse(problems)

    @classmethod
    def of(cls, profile: str = "default", **given: Any) -> ScoreSettings:
        """The settings of a profile, with what was given explicitly on top.

        Raises:
            UserError: an unknown name or profile, or values that cannot be used; all at once.
        """
        return of_profile(cls, PROFILES, profile, given)

    @property
    def needs_fisher(self) -> bool:
        """Whether the method reads Fisher information at all."""
        return self.method == "fisher" or (self.method == "lf" and self.alpha < 1)

    def recorded(self) -> dict[str, Any]:
        """As they are saved beside each result."""
        return recorded(self)

    def deciding(self) -> dict[str, Any]:
        """Those that decide the core sets of the method."""
        return {name: value for name, value in self.recorded().items() if name not in _UNUSED.get(self.method, ())}


@dataclass(frozen=True)
class Compute:
    """Where and how Fisher information is computed; none of it changes a result beyond rounding.

    Attributes:
        device: `auto` is a GPU where there is one.
        tokens_at_once: tokens of a batch.
        layer_streamed: activations of one layer at a time in memory, for about half again the time.
    """

    device: str = "auto"
    tokens_at_once: int = 4096
    layer_streamed: bool = False

    def __post_init__(self) -> None:
        refuse(type_problems(self) + count_problems(self, {"tokens_at_once": 1}))
