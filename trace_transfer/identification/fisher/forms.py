"""Squared norms of weight gradients, group by group, from what enters a layer and the gradient of what leaves it.

A group is what one gradient belongs to: an example, or a batch. The squared norm of the sum of a group's token
gradients needs no gradient of the size of the weight: for a linear layer it is the inner product of two Gram matrices,
one of inputs and one of output gradients (Goodfellow 2015, arXiv:1510.01799, for one token; Li et al. 2022,
arXiv:2110.05679, for many). Where many tokens meet a small weight it is cheaper to form that gradient, one group at a
time in one scratch buffer: never dearer than an ordinary backward pass. Sums over tokens and groups are float64.

Shapes: k groups, t tokens of a group, i inputs and o outputs of a layer, d width, u rows of an embedding that occur.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

GRAM_PENALTY = 1.1  # small products run a tenth slower than the one large one of a gradient

Axis = Literal["in", "out"] | None  # squares summed over everything, or kept apart by input or by output


def linear_squares(x_kti: Tensor, g_kto: Tensor, axis: Axis = None) -> Tensor:
    """Squared elements of each group's sum of g x', summed over groups: a number, or [i] or [o] by the axis."""
    if axis == "in":  # those of the transposed gradient, by output
        x_kti, g_kto = g_kto, x_kti
    way = by_grams if gram_is_cheaper(x_kti.shape[1], x_kti.shape[2], g_kto.shape[2]) else by_gradients
    return way(x_kti, g_kto, axis is not None)


def gram_is_cheaper(num_tokens: int, num_in: int, num_out: int) -> bool:
    """Whether two Gram matrices take fewer operations than the gradient itself."""
    return num_tokens * GRAM_PENALTY * (num_in + num_out) < num_in * num_out


def by_grams(x_kti: Tensor, g_kto: Tensor, by_output: bool) -> Tensor:
    """Sum over pairs of tokens of the products of their inputs and of their gradients."""
    gram_ktt = torch.bmm(x_kti, x_kti.mT)
    if by_output:
        return torch.bmm(gram_ktt, g_kto).mul_(g_kto).sum(dim=1).sum(dim=0, dtype=torch.float64)
    return torch.bmm(g_kto, g_kto.mT).mul_(gram_ktt).sum(dim=2).sum(dtype=torch.float64)


def by_gradients(x_kti: Tensor, g_kto: Tensor, by_output: bool) -> Tensor:
    """The same through each group's gradient, in one scratch buffer."""
    scratch_oi = x_kti.new_empty(g_kto.shape[2], x_kti.shape[2])
    squares_o = x_kti.new_zeros(g_kto.shape[2], dtype=torch.float64)
    for x_ti, g_to in zip(x_kti, g_kto, strict=True):
        torch.mm(g_to.T, x_ti, out=scratch_oi)
        squares_o += torch.linalg.vector_norm(scratch_oi, dim=1).square_()
    return squares_o if by_output else squares_o.sum()


def vector_squares(g_ktd: Tensor) -> Tensor:
    """Squares of each group's sum over tokens (a bias' gradient), summed over groups: [d]."""
    return g_ktd.sum(dim=1, dtype=torch.float64).square().sum(dim=0)


def row_keys(ids_kt: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Which rows of an embedding each group uses.

    Returns:
        [u], sorted: group × `num_rows` + row; and [k, t]: the place of each token's row in it.
    """
    groups_k1 = torch.arange(len(ids_kt), device=ids_kt.device)[:, None]
    keys_u, places_kt = torch.unique(ids_kt + num_rows * groups_k1, return_inverse=True)
    return keys_u, places_kt


def embedding_rows(places_kt: Tensor, g_ktd: Tensor, num_keys: int) -> Tensor:
    """The gradient of each used row of an embedding, [u, d]: the sum over the tokens that used it."""
    rows_ud = g_ktd.new_zeros(num_keys, g_ktd.shape[-1])
    return rows_ud.index_add_(0, places_kt.flatten(), g_ktd.flatten(0, 1))


def linear_rows(x_kti: Tensor, g_kto: Tensor, keys_u: Tensor) -> Tensor:
    """The rows of a linear layer's gradient that stand for `row_keys`, [u, i]: what a tied embedding has to add to."""
    num_rows = g_kto.shape[2]
    groups_u = torch.div(keys_u, num_rows, rounding_mode="floor")
    pairs = enumerate(zip(x_kti, g_kto, strict=True))
    return torch.cat([g_to[:, keys_u[groups_u == group] % num_rows].T @ x_ti for group, (x_ti, g_to) in pairs])
