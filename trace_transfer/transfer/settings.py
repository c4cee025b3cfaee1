"""The settings of `map`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from trace_transfer.engine.settings import WHICH_ATTENTION
from trace_transfer.models.content import cache_directory
from trace_transfer.settings import LARGEST, Count, Seed, Settings, Share, Texts, setting
from trace_transfer.transfer.policies import POLICIES

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
WHICH_DTYPE = "Number format of weights and activations; auto: float32 on a CPU, bfloat16 on a GPU."
WHICH_DEVICE = "Device of the model; auto: a GPU if there is one."

if TYPE_CHECKING:
    MatchPolicy = str
else:
    MatchPolicy = Literal[tuple(POLICIES)]
WHICH_MATCH = (
    "; ".join(f"{name}: {one.help}" for name, one in POLICIES.items() if not one.control)
    + ". Controls: "
    + "; ".join(f"{name}: {one.help}" for name, one in POLICIES.items() if one.control)
    + "."
)


class MapSettings(Settings):
    """Everything about a run of `map` but its models, core files and output directory."""

    PROFILES: ClassVar = {
        "default": {},
        "paper": {
            "rows": "example", "similarity": "cka", "representation": "stream", "transform": "none", "match": "argmax",
            "carry": "core",
        },
    }  # fmt: skip
    LATER: ClassVar[frozenset[str]] = frozenset({"attention", "target_device"})
    GROUP: ClassVar[str] = "Matching"

    probe: str | None = setting(
        None, "Texts on which both models are compared, as text or JSONL. Default: 480 short texts of maths, code, "
        "medicine, law and general prose that come with the package.", metavar="FILE", common=True,
    )  # fmt: skip
    rows: Literal["boundary", "word", "example"] = setting(
        "boundary",
        "Positions at which the models are compared. boundary: token ends that both tokenizers share, so both have "
        "read the same prefix; word: means over words; example: one mean per text (the paper's), which saturates.",
    )
    similarity: Literal["cka-debiased", "cka"] = setting(
        "cka-debiased",
        "Similarity of two layers. cka-debiased is near 0 for unrelated layers of any width; cka (the paper's) is near "
        "1 for wide ones.",
    )
    representation: Literal["stream", "update"] = setting(
        "stream",
        "What of a layer is compared. stream: the residual stream after it, which gave the most stable matches of the "
        "pairs tried; update: what the layer adds to the stream, which separates neighbouring layers more clearly.",
    )
    transform: Literal["unit", "none"] = setting(
        "unit",
        "unit: scale each row to unit norm, so that no massive activation decides; none: leave rows as they are.",
    )
    match: MatchPolicy = setting("coverage", f"How layers are paired. {WHICH_MATCH}", common=True)
    carry: Literal["scores", "core"] = setting(
        "scores",
        "What is carried. scores: every score, and the top r are selected again on the target, so the budget holds; "
        "core: the core set by name (the paper's), which is a smaller share of a larger target.",
        group="Carrying",
        common=True,
    )
    ratio: Share | None = setting(
        None, "Share of the target that the core set may have. Default: that of the core file.", metavar="X",
        group="Carrying", common=True,
    )  # fmt: skip
    rules: Texts = setting(
        (), "Your own rules, a file or a directory; they add families or replace shipped ones.", metavar="PATH",
        group="Carrying",
    )  # fmt: skip
    max_length: Annotated[int, Ge(8), Le(LARGEST)] = setting(
        128, "Cut texts at this length; the shipped ones are shorter.", metavar="TOKENS"
    )
    minibatches: Count = setting(
        8, "Rows drawn from each text, one per minibatch, because rows of one text are not independent."
    )
    splits: Annotated[int, Ge(0), Le(LARGEST)] = setting(
        10, "Random halves of the texts from which stability is computed; 0 for none."
    )
    batch_size: Count = setting(16, "Texts per forward pass.", group="Hardware")
    device: str = setting("auto", WHICH_DEVICE, group="Hardware")
    target_device: str | None = setting(
        None, "Device of the target, such as cuda:1. If it is not that of the source, both models are read at once.",
        group="Hardware", metavar="NAME",
    )  # fmt: skip
    dtype: Dtype = setting("auto", WHICH_DTYPE, group="Hardware")
    attention: str = setting("auto", WHICH_ATTENTION, group="Hardware", metavar="NAME")
    seed: Seed = setting(0, "Seed of the rows drawn and of a shuffled match.")
    cache: Path | None = setting(
        cache_directory, "Directory that keeps activations of each model, so that another --match takes seconds.",
        group="Output",
    )  # fmt: skip
