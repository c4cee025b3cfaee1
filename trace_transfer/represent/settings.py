"""The settings of `represent`."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le

from trace_transfer.settings import LARGEST, Count, Seed, Settings, Texts, setting
from trace_transfer.transfer.settings import WHICH_DEVICE, WHICH_DTYPE, Dtype


class RepresentSettings(Settings):
    """Everything about a run of `represent` but its models, tasks and output directory."""

    pool: Literal["mean", "last"] = setting(
        "mean", "A text's embedding: the mean over its tokens' final hidden states, or that of the last."
    )
    max_examples: Annotated[int, Ge(3), Le(LARGEST)] | None = setting(
        200, "Texts drawn from each task at most; fewer where tasks.yaml says so."
    )
    max_length: Count = setting(1024, "Texts are cut there.", metavar="TOKENS")
    perplexity: Annotated[float, Ge(1)] = setting(
        30.0, "Of t-SNE: how many neighbours of a text count; less than there are texts.", allow_inf_nan=False
    )
    batch_size: Count = setting(16, "Texts at a time.")
    device: str = setting("auto", WHICH_DEVICE)
    dtype: Dtype = setting("auto", WHICH_DTYPE)
    seed: Seed = setting(0, "Draws the texts, and t-SNE.")
    rules: Texts = setting((), "Your own rules, a file or a directory, beside or over the shipped.", metavar="PATH")
