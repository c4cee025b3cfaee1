"""The frozen bottom of a model in a training: whether its hidden states are computed once, and read in each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trace_transfer.errors import listing
from trace_transfer.examples import Example
from trace_transfer.progress import Reporter
from trace_transfer.settings.training import TrainSettings
from trace_transfer.training.engine import Engine
from trace_transfer.training.errors import TrainingError
from trace_transfer.training.prefix import Reused, dropout_below, fill, reusing_prefix
from trace_transfer.training.prefix_store import PrefixCache
from trace_transfer.training.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Bottom:
    """The layers below the lowest trained one.

    Attributes:
        layer_path: module path of the layer list.
        boundary: the lowest trained layer; 0 where there is no frozen one below it.
        wanted: whether to spare them; `auto` means where that is cheaper (`estimates.is_prefix_cheaper`).
    """

    layer_path: str
    boundary: int
    wanted: bool


def boundary_used(
    bottom: Bottom | None, model: PreTrainedModel, settings: TrainSettings, before: int | None,
    note: Callable[[str], None],
) -> int:  # fmt: skip
    """The layer whose inputs are cached; 0 for no cache.

    Args:
        before: what the checkpoint that is gone on from says; with `auto` it stays so, whatever is cheaper now.

    Raises:
        TrainingError: a cache was asked for, but the bottom draws at random while training.
    """
    if bottom is None or settings.cache_prefix == "off":
        return 0
    wanted = bool(before) if before is not None and settings.cache_prefix == "auto" else bottom.wanted
    if not (wanted and bottom.boundary):
        return 0
    if found := dropout_below(model, bottom.layer_path, bottom.boundary):
        if settings.cache_prefix == "on":
            raise TrainingError(
                f"--cache-prefix on: the frozen layers below {bottom.boundary} draw at random while training, so that "
                "their states differ each time; set these to 0 in the model's config, or give --cache-prefix off:\n"
                + listing(found)
            )
        note(f"no prefix cache: the frozen layers draw at random while training ({found[0]})")
        return 0
    return bottom.boundary


class Reading:
    """Hidden states from the disk, in place of the bottom layers."""

    def __init__(self, cache: PrefixCache, reused: Reused) -> None:
        self.cache, self.reused = cache, reused

    def prepare(self, examples: Sequence[Example]) -> None:
        """Before each forward pass: of these examples, padded as `collate` does."""
        self.reused.set(self.cache.read(examples))


@contextmanager
def spared_bottom(
    engine: Engine, model_parts: tuple[Sequence[torch.nn.Module], torch.nn.Module], boundary: int, cache: PrefixCache,
    ranks: Ranks, reporter: Reporter, between: Callable[[], None],
) -> Iterator[Reading]:  # fmt: skip
    """Compute what the cache lacks, and leave the bottom layers out while it lasts."""
    layers, head = model_parts
    if ranks.is_first and cache.num_bytes:
        reporter.note(f"the states below layer {boundary} are kept on the disk: {cache.num_bytes:,} bytes")
    fill(cache, layers, head, engine.logits, ranks, reporter, between)
    with reusing_prefix(layers, boundary) as reused:
        yield Reading(cache, reused)


def cache_for(
    directory: Path, fingerprint: str, examples: Sequence[Example], boundary: int, model: PreTrainedModel,
    settings: TrainSettings,
) -> PrefixCache:  # fmt: skip
    """The cache of one training."""
    width = model.config.get_text_config().hidden_size
    return PrefixCache(
        directory, {"start": fingerprint}, examples, boundary, width, model.dtype, settings.micro_batch_size
    )
