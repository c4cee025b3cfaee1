"""The settings of `map`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from trace_transfer.models.content import cache_directory
from trace_transfer.settings import LARGEST, Count, Seed, Settings, Share, Texts, setting
from trace_transfer.transfer.policies import POLICIES

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
WHICH_DTYPE = "auto: float32 on a CPU, bfloat16 on a GPU."
WHICH_DEVICE = "auto: a GPU where there is one."

if TYPE_CHECKING:
    MatchPolicy = str
else:
    MatchPolicy = Literal[tuple(POLICIES)]
WHICH_MATCH = (
    "; ".join(f"{name}: {one.help}" for name, one in POLICIES.items() if not one.control)
    + ". Controls, for comparison only: "
    + "; ".join(f"{name}: {one.help}" for name, one in POLICIES.items() if one.control)
    + "."
)

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


class MapSettings(Settings):
    """Everything about a run of `map` but its models, core files and output directory."""

    PROFILES: ClassVar = PROFILES

    probe: str | None = setting(
        None, "Texts on which both models are read: text or JSONL. Default: 480 short texts of maths, code, medicine, "
        "law and general prose that come with the package.", metavar="FILE",
    )  # fmt: skip
    rows: Literal["boundary", "word", "example"] = setting(
        "boundary",
        "What is compared. boundary: token ends that both tokenizers share, where both have read the same prefix; "
        "word: means over words; example: one mean per text (the paper's), which saturates.",
    )
    similarity: Literal["cka-debiased", "cka", "cka-rbf"] = setting(
        "cka-debiased",
        "cka-debiased is near 0 for unrelated layers however wide they are; cka (the paper's) is then near 1; cka-rbf "
        "has a Gaussian kernel.",
    )
    representation: Literal["stream", "update"] = setting(
        "stream",
        "stream: the residual stream after the layer; with unit rows the steadiest on the pairs of models tried. "
        "update: what the layer adds to it, which tells neighbouring layers of one model apart far more clearly.",
    )
    transform: Literal["unit", "none"] = setting(
        "unit", "unit: rows scaled to unit norm, so that no single row or massive activation decides; none."
    )
    match: MatchPolicy = setting("coverage", WHICH_MATCH)
    carry: Literal["scores", "core"] = setting(
        "scores",
        "scores: move every score and select the top r again on the target, so that the budget holds; core: what is "
        "core stays core by name (the paper's), which shrinks the ratio on a larger target.",
    )
    ratio: Share | None = setting(None, "Core share, e.g. 0.05. Default: that of the core file.", metavar="R")
    rules: Texts = setting((), "Your own rules, a file or a directory, beside or over the shipped.", metavar="PATH")
    max_length: Annotated[int, Ge(8), Le(LARGEST)] = setting(
        128, "Texts are cut there; the shipped ones are shorter.", metavar="TOKENS"
    )
    minibatches: Count = setting(
        8, "Rows drawn from each text, one per minibatch: rows of one text depend on each other."
    )
    splits: Annotated[int, Ge(0), Le(LARGEST)] = setting(
        10, "Random halves of the texts that say how stable the match is; 0 for none."
    )
    batch_size: Count = setting(16, "Texts at a time.")
    device: str = setting("auto", WHICH_DEVICE)
    dtype: Dtype = setting("auto", WHICH_DTYPE)
    seed: Seed = setting(0, "Draws the rows, and a shuffled match.")
    cache: Path | None = setting(
        cache_directory, "Where what was read of a model is kept, so that another --match takes seconds."
    )
