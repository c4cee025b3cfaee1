"""The frozen bottom of a model: where it ends, its states computed once, and layers that are spared afterwards.

Below the lowest trained parameter nothing changes while a model trains: what enters the layer that holds it (the
boundary) is the same in every epoch. `fill` computes that for all texts into a `prefix_store.PrefixCache`; within
`reusing_prefix` the layers below hand on what was read from there. The model's own forward runs both times, so that
masks and positions are right for every family, and each layer is called, so that hooks (ZeRO 3) run; only what a layer
does is replaced.

    boundary = lowest_trained_layer(anatomy, mask)  # of `reach`; 0 and there is no prefix
    cache = PrefixCache(directory, identity, data.examples, boundary, hidden_size, dtype, micro_batch_size)
    fill(cache, layers, model.get_output_embeddings(), engine.logits, ranks)
    with reusing_prefix(layers, boundary) as prefix:
        prefix.set(cache.read(examples))            # before each forward pass
        logits_btv = engine.logits(collate(examples))
    cache.remove()

Shapes: b texts of a batch, t tokens of its longest, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trace_transfer.errors import TraceTransferError
from trace_transfer.examples import Batch, collate
from trace_transfer.layer_calls import layers_of, replaced_forwards
from trace_transfer.progress import Reporter, Silent
from trace_transfer.training.errors import TrainingError
from trace_transfer.training.prefix_store import MicroBatch, PrefixCache
from trace_transfer.training.ranks import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def dropout_below(model: PreTrainedModel, layer_path: str, boundary: int) -> list[str]:
    """What is drawn at random below the boundary while training, as `transformer.h.0.mlp.dropout.p is 0.1`.

    Where there is any, states differ from epoch to epoch, and a cache would be another training. What lies outside the
    layers counts as below them.
    """
    above = tuple(f"{layer_path}.{index}." for index in range(boundary, len(layers_of(model, layer_path))))
    found = []
    for path, module in model.named_modules():
        if f"{path}.".startswith(above):
            continue
        rates = {name: value for name, value in vars(module).items() if "drop" in name or "jitter" in name}
        if isinstance(module, nn.modules.dropout._DropoutNd):
            rates["p"] = module.p
        found += [
            f"{path}.{name} is {rate:g}" for name, rate in rates.items() if isinstance(rate, (int, float)) and rate > 0
        ]
    return found


def fill(
    cache: PrefixCache,
    layers: Sequence[nn.Module],
    head: nn.Module,
    run: Callable[[Batch], object],
    ranks: Ranks,
    reporter: Reporter | None = None,
    between: Callable[[], None] = lambda: None,
) -> int:
    """Compute what the cache lacks; afterwards all of it can be read. Collective: every rank calls it alike.

    Each rank computes whole files. Where they end at different times, a rank that is done computes a text once more,
    for nothing: a forward pass may need all of them.

    Args:
        layers, head: the model's.
        run: a forward pass of the model as it trains (`Engine.logits`); what it returns is not used.
        between: called on every rank after each of its micro-batches; may raise on all of them to stop here. What is
            on the disk by then is not computed again.

    Returns:
        How many files were computed, on all ranks.

    Raises:
        TrainingError: no room on the disk, or layers that a cache cannot stand for.
        UserError: the disk cannot be written, or is full after all.
    """
    problem = None
    missing_s = torch.zeros(len(cache.shards))
    if ranks.is_first:
        try:
            cache.begin()
            missing_s[cache.missing()] = 1.0
        except TraceTransferError as error:
            problem = error
    _raise_on_all(problem, cache, ranks)
    missing = ranks.total(missing_s).nonzero().flatten().tolist()  # the first rank's: the others are writing soon
    work = [
        [(shard, micro_batch) for shard in missing[rank :: ranks.size] for micro_batch in cache.shards[shard]]
        for rank in range(ranks.size)
    ]
    num_rounds = max(map(len, work))
    if num_rounds == 0:
        return 0
    shown = reporter if reporter is not None and ranks.is_first else Silent()
    with (
        torch.no_grad(),
        computing_prefix(layers, head, cache.boundary) as prefix,
        shown.task(f"computing the states below layer {cache.boundary}", num_rounds) as advance,
    ):
        for _ in _filled(cache, work[ranks.rank], num_rounds, run, prefix, ranks):
            advance()
            between()
    return len(missing)


def _filled(
    cache: PrefixCache, mine: Sequence[tuple[int, MicroBatch]], num_rounds: int, run: Callable[[Batch], object],
    prefix: Computed, ranks: Ranks,
) -> Iterator[None]:  # fmt: skip
    """One micro-batch after the other, each file written when its last one is done."""
    states: list[Tensor] = []
    for number in range(num_rounds):
        shard, micro_batch = mine[number] if number < len(mine) else (None, cache.shards[-1][-1][-1:])
        run(collate(micro_batch))
        hidden_btd = prefix.take()
        problem = None
        if shard is not None:
            states += [row_td[: len(e.input_ids)] for row_td, e in zip(hidden_btd.cpu(), micro_batch, strict=True)]
            if number + 1 == len(mine) or mine[number + 1][0] != shard:
                try:
                    cache.write(shard, states)
                except TraceTransferError as error:
                    problem = error
                states = []
        _raise_on_all(problem, cache, ranks)
        yield


def _raise_on_all(problem: TraceTransferError | None, cache: PrefixCache, ranks: Ranks) -> None:
    if ranks.any(problem is not None):
        raise problem or TrainingError(f"{cache.folder}: another rank could not write it")


@dataclass
class Computed:
    """What the last forward pass computed."""

    hidden_btd: Tensor | None = None

    def take(self) -> Tensor:
        """The input of the layer at the boundary, [b, t, d]."""
        if self.hidden_btd is None:
            raise TraceTransferError("no forward pass has come to the boundary since its states were last taken")
        hidden_btd, self.hidden_btd = self.hidden_btd, None
        return hidden_btd


@contextmanager
def computing_prefix(layers: Sequence[nn.Module], head: nn.Module, boundary: int) -> Iterator[Computed]:
    """While it lasts, a forward pass computes the layers below the boundary and next to nothing else.

    What leaves them is handed on past the layers above; the head hands on one position in the place of its logits.

    Raises:
        TrainingError: (in a forward pass) a layer returns something else than hidden states.
    """
    _require_layers(layers, boundary)
    computed = Computed()
    last = layers[boundary - 1].forward

    def compute(*args: Any, **kwargs: Any) -> Tensor:
        output = last(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise TrainingError(
                f"the layers of this model return a {type(output).__name__}, expected a tensor; it can be trained with "
                "--cache-prefix off"
            )
        computed.hidden_btd = output
        return output

    above = list(layers)[boundary:]
    forwards = [compute, *[_hand_on] * len(above), lambda hidden_btd: hidden_btd[:, :1]]
    with replaced_forwards([layers[boundary - 1], *above, head], forwards):
        yield computed


@dataclass
class Reused:
    """The states that the next forward pass takes instead of computing them."""

    hidden_btd: Tensor | None = None

    def set(self, hidden_btd: Tensor) -> None:
        """Give the input of the layer at the boundary, [b, t, d], for one forward pass over the same texts."""
        self.hidden_btd = hidden_btd

    def take(self, embedded_btd: Tensor) -> Tensor:
        """The states, on the device of what entered the layers."""
        kept, self.hidden_btd = self.hidden_btd, None
        if kept is None:
            raise TraceTransferError("a forward pass whose states below the boundary were not given")
        if (kept.shape, kept.dtype) != (embedded_btd.shape, embedded_btd.dtype):
            raise TraceTransferError(
                f"states of {list(kept.shape)} in {kept.dtype} were given for a forward pass over "
                f"{list(embedded_btd.shape)} in {embedded_btd.dtype}"
            )
        return kept.to(embedded_btd.device, non_blocking=True)


@contextmanager
def reusing_prefix(layers: Sequence[nn.Module], boundary: int) -> Iterator[Reused]:
    """While it lasts, the layers below the boundary compute nothing: the last of them returns the states that were set.

    The embedding runs as ever: masks and positions are made of its shape.

    Raises:
        TraceTransferError: (in a forward pass) no states were set since the one before, or not of its shape and type.
    """
    _require_layers(layers, boundary)
    reused = Reused()

    def reuse(hidden_btd: Tensor, *_: Any, **__: Any) -> Tensor:
        return reused.take(hidden_btd)

    with replaced_forwards(list(layers)[:boundary], [*[_hand_on] * (boundary - 1), reuse]):
        yield reused


def _hand_on(hidden_btd: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_btd


def _require_layers(layers: Sequence[nn.Module], boundary: int) -> None:
    if not 1 <= boundary <= len(layers):
        raise TraceTransferError(f"no prefix ends at layer {boundary} of {len(layers)}")
