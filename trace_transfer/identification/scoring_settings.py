"""How parameters are scored and chosen: what the paper leaves open, each with a default, and two profiles.

`paper` is the text of arXiv 2605.31025, section 3.2; `authors-code` what its published code does.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from trace_transfer.settings import Count, Settings, Share, Texts, setting

Unit = Literal["tensors", "elements", "rows"]

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


class ScoreSettings(Settings):
    """From deltas and Fisher information to a core set."""

    PROFILES: ClassVar = PROFILES

    method: Literal["lf", "cs", "l2", "fisher"] = setting(
        "lf",
        "lf: size of the update and Fisher information (eq. 3-5); cs: how unlike the other tasks' updates its "
        "direction is (eq. 6-8); l2 and fisher: one half of lf.",
    )
    ratio: Share = setting(0.05, "Core share.")
    unit: Unit = setting(
        "tensors",
        "What the ratio counts: tensors (as the paper), elements of whole tensors, or elements of heads and neurons "
        "(rows), which are then scored one by one.",
    )
    alpha: Annotated[float, Ge(0), Le(1)] = setting(0.5, "Share of L2 in lf (eq. 5); Fisher has the rest.")
    l2: Literal["rms", "norm", "relative"] = setting(
        "rms", "rms: does not favour large tensors; norm: eq. 3; relative: to the norm of the base."
    )
    fisher: Literal["example", "batch"] = setting(
        "example", "Squared gradients of examples (eq. 4), or of batches of two."
    )
    fisher_size: Literal["mean", "sum"] = setting("mean", "mean: does not favour large tensors; sum: eq. 4.")
    fisher_at: Literal["tuned", "base"] = setting("tuned", "At the tuned model (eq. 4) or the base (Algorithm 1).")
    fisher_examples: Count = setting(300, "Examples drawn from each task for it; fewer if it has fewer.")
    normalise: Literal["min-max", "rank", "z-score"] = setting(
        "min-max", "What makes L2 and Fisher comparable before they are added."
    )
    normalise_within: Literal["all", "kind"] = setting("all", "Over all parameters, or each kind of them by itself.")
    zero_delta: Literal["unscored", "cosine-0"] = setting(
        "unscored", "cs of a parameter that did not move: none, or as of cosine 0."
    )
    cosine: Literal["plain", "corrected"] = setting(
        "plain", "corrected: freed of the noise that two replicates show (--replicates 2)."
    )
    exclude: Texts = setting(
        (), "Leave a component (attention.query, head), a group (norm, mlp) or 'bias' out; may be given often.",
        metavar="COMPONENT",
    )  # fmt: skip
    min_elements: Count = setting(1, "Leave smaller parameters out.")

    @property
    def needs_fisher(self) -> bool:
        """Whether the method reads Fisher information at all."""
        return self.method == "fisher" or (self.method == "lf" and self.alpha < 1)

    def deciding(self) -> dict[str, Any]:
        """Those that decide the core sets of the method."""
        return {name: value for name, value in self.recorded().items() if name not in _UNUSED.get(self.method, ())}


class Compute(Settings):
    """Where and how Fisher information is computed; none of it changes a result beyond rounding."""

    device: str = setting("auto", "For Fisher; auto: a GPU if any.")
    tokens_at_once: Count = setting(4096, "Tokens of a batch for Fisher.")
    layer_streamed: bool = setting(
        False, "Fisher with the activations of one layer at a time: less memory for about half again the time."
    )
