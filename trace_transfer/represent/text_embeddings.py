"""Texts → one vector each: the final hidden states of a model, after its final norm, mean or last.

Shapes: N texts, b of a batch, t tokens of its longest, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ids = Sequence[Sequence[int]]


@torch.no_grad()
def embed_texts(
    model: PreTrainedModel, ids: Ids, *, pool: str, batch_size: int, advance: Callable[[], object] = lambda: None
) -> Tensor:
    """Embeddings of texts in their order, float32 [N, D] on the CPU.

    Args:
        model: a causal language model; what it is called with stays on its device.
        ids: of each text its token ids, at least one.
        pool: `mean` over all tokens of a text, or its `last`.
        advance: called after each of the `num_batches`.
    """
    embeddings_ND = torch.empty(len(ids), model.config.get_text_config().hidden_size)
    for texts in batches(ids, batch_size):
        ids_bt, mask_bt = _padded([ids[text] for text in texts])
        ids_bt, mask_bt = ids_bt.to(model.device), mask_bt.to(model.device)
        hidden_btD = model.base_model(input_ids=ids_bt, attention_mask=mask_bt, use_cache=False).last_hidden_state
        embeddings_ND[texts] = (_mean if pool == "mean" else _last)(hidden_btD, mask_bt).float().cpu()
        advance()
    return embeddings_ND


def batches(ids: Ids, batch_size: int) -> Iterator[list[int]]:
    """Texts of like length together, shortest first: least padding."""
    order = sorted(range(len(ids)), key=lambda text: len(ids[text]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def num_batches(ids: Ids, batch_size: int) -> int:
    return -(-len(ids) // batch_size)


def _padded(ids: Ids) -> tuple[Tensor, Tensor]:
    """Ids and mask [b, t], padded on the right: left padding gives NaN with eager attention."""
    longest = max(map(len, ids))
    ids_bt = torch.zeros(len(ids), longest, dtype=torch.int64)
    mask_bt = torch.zeros_like(ids_bt)
    for row, text in enumerate(ids):
        ids_bt[row, : len(text)] = torch.tensor(text)
        mask_bt[row, : len(text)] = 1
    return ids_bt, mask_bt


def _mean(hidden_btD: Tensor, mask_bt: Tensor) -> Tensor:
    # Summed in float64: a mean over a thousand bfloat16 states would otherwise depend on the padding.
    total_bD = torch.einsum("btd,bt->bd", hidden_btD.double(), mask_bt.double())
    return total_bD / mask_bt.sum(dim=1, keepdim=True)


def _last(hidden_btD: Tensor, mask_bt: Tensor) -> Tensor:
    return hidden_btD[torch.arange(len(hidden_btD), device=hidden_btD.device), mask_bt.sum(dim=1) - 1]
