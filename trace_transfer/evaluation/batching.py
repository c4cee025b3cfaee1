"""Forward passes over many examples: padded batches of like lengths, in the order that wastes least.

Shapes: b examples of a batch, t tokens of its longest, v tokens of the vocabulary, n scored positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from trace_transfer.data.examples import IGNORED, Example, collate, losses
from trace_transfer.errors import NumericalError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGITS = 1 << 28  # elements of [b, t, v]: 1 GiB in float32
AUTO = 64  # examples that `auto` begins with
PAD = 0  # what stands where the attention mask is 0 is not read


@dataclass(frozen=True)
class AnswerScores:
    """Of the scored tokens of one example: the sum of their cross-entropies in nats, and how many were the likeliest
    (None where the backend does not say)."""

    loss: float
    num_tokens: int
    num_hits: int | None


def batches_by_length(
    lengths: Sequence[int], batch_size: int, most_tokens: int | None = None, among: Iterable[int] | None = None
) -> list[list[int]]:
    """Indices (`among` these) in batches of like lengths, the longest first, so that too little memory is seen at once.

    Args:
        most_tokens: of a padded batch; one example that is longer stands alone.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)) if among is None else among, key=lambda one: (-lengths[one], one)):
        last = batches[-1] if batches else None
        # the first of a batch is its longest
        full = last is not None and most_tokens is not None and (len(last) + 1) * lengths[last[0]] > most_tokens
        if last is None or len(last) == batch_size or full:
            batches.append([index])
        else:
            last.append(index)
    return batches


def in_batches(
    lengths: Sequence[int], batch_size: int | Literal["auto"], step: Callable[[list[int]], None],
    most_tokens: int | None = None,
) -> None:  # fmt: skip
    """Call `step` with the indices of each batch; `auto`: a batch for which memory is too small is halved, and all
    after it."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    waiting = batches_by_length(lengths, AUTO if batch_size == "auto" else batch_size, most_tokens)
    while waiting:
        try:
            step(waiting[0])
        except RuntimeError as error:
            if batch_size != "auto" or len(waiting[0]) == 1 or not should_reduce_batch_size(error):
                raise
        else:
            del waiting[0]
            continue
        clear_device_cache(garbage_collection=True)  # outside `except`: the error holds what filled the memory
        rest = [index for batch in waiting for index in batch]
        waiting = batches_by_length(lengths, len(waiting[0]) // 2, most_tokens, rest)


def score_answers(
    model: PreTrainedModel, examples: Sequence[Example], batch_size: int | Literal["auto"],
    advance: Callable[[], None],
) -> list[AnswerScores]:  # fmt: skip
    """Cross-entropy of every supervised token; `advance` is called once for each example."""
    found: list[AnswerScores | None] = [None] * len(examples)

    def step(indices: list[int]) -> None:
        batch = collate([examples[index] for index in indices], PAD)
        ids_bt, mask_bt = batch.input_ids_bt.to(model.device), batch.attention_mask_bt.to(model.device)
        targets_bt = batch.targets_bt.to(model.device)
        logits_btv = model(input_ids=ids_bt, attention_mask=mask_bt, use_cache=False).logits
        scored_bt = targets_bt != IGNORED
        logits_nv, targets_n = logits_btv[scored_bt], targets_bt[scored_bt]  # softmax of what is scored only
        cross_entropy_n = losses(logits_nv[None], targets_n[None])[0]
        _require_finite(cross_entropy_n)
        losses_n = cross_entropy_n.tolist()
        hits_n = (logits_nv.argmax(dim=-1) == targets_n).tolist()
        end = 0
        for index, count in zip(indices, scored_bt.sum(dim=1).tolist(), strict=True):
            start, end = end, end + count
            found[index] = AnswerScores(sum(losses_n[start:end]), count, sum(hits_n[start:end]))
            advance()

    most = max(MAX_LOGITS // model.config.get_text_config().vocab_size, 1)
    with evaluating(model):
        in_batches([len(one.input_ids) for one in examples], batch_size, step, most)
    return found  # type: ignore[return-value]


@dataclass(frozen=True)
class Ending:
    """Where an answer ends: after so many tokens, at one of these, which is not part of it, or behind one of these
    texts, which is left in."""

    max_new_tokens: int
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]


def generate(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], ending: Ending, *, batch_size: int | Literal["auto"],
    tokenizer: object, advance: Callable[[], None],
) -> list[tuple[int, ...]]:  # fmt: skip
    """What the model finds likeliest, token after token, after each prompt; `advance` is called once for each.

    Greedy, whatever the model's own settings for generation say (a penalty for repetition would count as knowledge).
    """
    from transformers import GenerationConfig

    ends = sorted(ending.stop_ids)
    found: list[tuple[int, ...]] = [()] * len(prompts)
    config = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, max_new_tokens=ending.max_new_tokens, pad_token_id=PAD,
        eos_token_id=ends or None, stop_strings=list(ending.stop_texts) or None,
    )  # fmt: skip

    def step(indices: list[int]) -> None:
        width = len(prompts[indices[0]])
        ids_bt = torch.full((len(indices), width), PAD, dtype=torch.int64)
        mask_bt = torch.zeros_like(ids_bt)
        for row, index in enumerate(indices):  # padded on the left: all go on at the same position
            start = width - len(prompts[index])
            ids_bt[row, start:] = torch.tensor(prompts[index])
            mask_bt[row, start:] = 1
        written_bt = model.generate(  # type: ignore[operator]  # whatever is not declared is a Tensor to torch
            input_ids=ids_bt.to(model.device), attention_mask=mask_bt.to(model.device),
            logits_processor=[finite_logits],
            **({"tokenizer": tokenizer} if ending.stop_texts else {}),
        )[:, width:].tolist()  # fmt: skip
        for index, written in zip(indices, written_bt, strict=True):
            stop = next((place for place, token in enumerate(written) if token in ends), len(written))
            found[index] = tuple(written[:stop])
            advance()

    # In place of the model's own, with which transformers fills whatever a given one leaves open.
    with evaluating(model), patch.object(model, "generation_config", config):
        in_batches([len(prompt) for prompt in prompts], batch_size, step)
    return found


def finite_logits(_ids_bt: Tensor, logits_bv: Tensor) -> Tensor:
    """A logits processor for `generate` that changes nothing; raises `NumericalError` for NaN and Inf.

    -Inf is what a model may give to tokens that it never writes. The likeliest of NaN would be the first token.
    """
    _require_finite(logits_bv.amax(dim=-1))  # NaN where any is NaN
    return logits_bv


def _require_finite(values_n: Tensor) -> None:
    if not values_n.isfinite().all():
        raise NumericalError(
            "its logits are NaN or infinite, of which no score can be made; try --dtype float32, and see that the "
            "model is whole"
        )


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients; the model is left as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
