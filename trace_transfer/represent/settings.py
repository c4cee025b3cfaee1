"""The settings of `represent`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from trace_transfer.engine.settings import WHICH_ATTENTION
from trace_transfer.settings import LARGEST, Count, Seed, Settings, Texts, setting
from trace_transfer.transfer.settings import WHICH_DEVICE, WHICH_DTYPE, Dtype


class RepresentSettings(Settings):
    """Everything about a run of `represent` but its models, tasks and output directory."""

    LATER: ClassVar[frozenset[str]] = frozenset({"attention"})
    GROUP: ClassVar[str] = "Embeddings"

    pool: Literal["mean", "last"] = setting(
        "mean", "Embedding of a text: the final hidden state, as the mean over its tokens or of the last token.",
        common=True,
    )  # fmt: skip
    max_examples: Annotated[int, Ge(3), Le(LARGEST)] | None = setting(
        200, "Texts drawn from each task, at most. tasks.yaml may ask for fewer.", common=True
    )
    max_length: Count = setting(1024, "Cut texts at this length.", metavar="TOKENS")
    perplexity: Annotated[float, Ge(1)] = setting(
        30.0, "Perplexity of t-SNE; less than the number of texts.", allow_inf_nan=False, common=True
    )
    batch_size: Count = setting(16, "Texts per forward pass.", group="Hardware", common=True)
    device: str = setting("auto", WHICH_DEVICE, group="Hardware")
    dtype: Dtype = setting("auto", WHICH_DTYPE, group="Hardware")
    attention: str = setting("auto", WHICH_ATTENTION, group="Hardware", metavar="NAME")
    seed: Seed = setting(0, "Seed of the texts drawn and of t-SNE.")
    rules: Texts = setting(
        (), "Your own rules, a file or a directory; they add families or replace shipped ones.", metavar="PATH",
        group="Data",
    )  # fmt: skip
