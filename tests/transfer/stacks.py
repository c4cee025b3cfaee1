"""Gram matrices of rows at hand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trace_transfer.transfer.similarity import GramStack, pack_layer, packed_length


def stack_rows(layers: Sequence[Tensor], texts: Sequence[Tensor]) -> GramStack:
    """Pack the rows of several layers at hand.

    Args:
        layers: for each layer [R, d], the minibatches one after another; widths may differ.
        texts: as in `GramStack`.
    """
    sizes = [len(index) for index in texts]
    packed_LP = torch.empty(len(layers), sum(map(packed_length, sizes)))
    for layer, rows_Rd in enumerate(layers):
        pack_layer(rows_Rd, sizes, packed_LP[layer])
    return GramStack(packed_LP, tuple(texts))
