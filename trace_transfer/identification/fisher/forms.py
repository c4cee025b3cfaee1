"""Squared norms of weight gradients, group by group, from what enters a layer and the gradient of what leaves it.

A group is what one gradient belongs to: an example, or a batch. The squared norm of the sum of a group's token
gradients needs no gradient of the size of the weight: for a linear layer it is the inner product of two Gram matrices,
one of inputs and one of output gradients (Goodfellow 2015, arXiv:1510.01799, for one token; Li et al. 2022,
arXiv:2110.05679, for many). Where many tokens meet a small weight it is cheaper to form that gradient, one group at a
time in one scratch buffer: never dearer than an ordinary backward pass.

Products are formed in float32 at least, also for 16-bit models (a 16-bit Gram matrix is off by 2e-5 and more where
gradients cancel); sums over tokens and groups are float64.

Shapes: k groups, t tokens of a group, i inputs and o outputs of a layer, d width, u rows of an embedding that occur.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Only what lies on and below the diagonal of a Gram matrix is formed, panel by panel: almost half the work. Panels have
# so many tokens at least, and more in long texts, so that there are never more than eight.
PANEL, MAX_PANELS = 128, 8
# Small products run a tenth slower than the one large one of a gradient.
GRAM_PENALTY = 1.1
CHUNK = 1 << 24  # elements of inputs or gradients that are taken to float32 at once

Axis = Literal["in", "out"] | None  # squares summed over everything, or kept apart by input or by output


class Panel(NamedTuple):
    """Products of some tokens with all tokens up to the last of them, [k, t of `tokens`, t up to `tokens.stop`].

    The products of the tokens with each other stand there halved: the sum over all panels, twice, is that over the
    whole, symmetric matrix.
    """

    tokens: slice
    products: Tensor


def wide(values: Tensor) -> Tensor:
    """Float32 at least; no copy where it is already."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def gram(x_ktd: Tensor) -> list[Panel]:
    """The products of all pairs of tokens, for each group."""
    return list(_panels(wide(x_ktd)))


def gram_is_cheaper(num_tokens: int, num_in: int, num_out: int, sharing: int = 1) -> bool:
    """Whether two Gram matrices take fewer operations than the gradient itself.

    Args:
        sharing: layers that have the same inputs, and so need only one Gram matrix of them.
    """
    num_panels = -(-num_tokens // _panel_size(num_tokens))
    share = GRAM_PENALTY * (num_panels + 1) / (2 * num_panels)
    return num_tokens * share * (num_in / sharing + num_out) < num_in * num_out


def linear_squares(x_kti: Tensor, g_kto: Tensor, axis: Axis = None, gram_x: list[Panel] | None = None) -> Tensor:
    """Squared elements of each group's sum of g x', summed over groups, in float64.

    Args:
        x_kti: what entered the layer.
        g_kto: the gradient of what left it.
        gram_x: `gram(x_kti)` where there is one; then Gram matrices are used, whatever they cost.

    Returns:
        A number, or [i] or [o] if squares are kept apart by input or output.
    """
    if gram_x is not None and axis != "in":
        return _by_grams(gram_x, wide(g_kto), keep=axis == "out")
    num_groups, num_tokens, num_in = x_kti.shape
    num_out = g_kto.shape[2]
    way = _by_two_grams if gram_is_cheaper(num_tokens, num_in, num_out) else by_gradients
    at_once = max(1, CHUNK // (num_tokens * max(num_in, num_out)))
    parts = (
        way(wide(x_kti[start : start + at_once]), wide(g_kto[start : start + at_once]), axis)
        for start in range(0, num_groups, at_once)
    )
    return reduce(torch.add, parts)


def by_gradients(x_kti: Tensor, g_kto: Tensor, axis: Axis = None) -> Tensor:
    """The same through each group's gradient, in one scratch buffer."""
    scratch_oi = x_kti.new_empty(g_kto.shape[2], x_kti.shape[2])
    dim = 0 if axis == "in" else 1
    squares = x_kti.new_zeros(scratch_oi.shape[1 - dim], dtype=torch.float64)
    for x_ti, g_to in zip(x_kti, g_kto, strict=True):
        torch.mm(g_to.T, x_ti, out=scratch_oi)
        # A norm over rows is one pass, but over columns it is ten times slower than squares and their sum.
        sums = scratch_oi.square_().sum(dim=0) if dim == 0 else torch.linalg.vector_norm(scratch_oi, dim=1).square_()
        squares += sums
    return squares if axis else squares.sum()


def vector_squares(gradient_kd: Tensor) -> Tensor:
    """Squares of the groups' gradients of a one-dimensional tensor, summed over groups: [d] in float64."""
    return gradient_kd.double().square().sum(dim=0)


def bias_gradient(g_kto: Tensor) -> Tensor:
    """Each group's gradient of a bias: [k, o] in float64."""
    return g_kto.sum(dim=1, dtype=torch.float64)


def scale_gradient(normed_ktd: Tensor, g_ktd: Tensor) -> Tensor:
    """Each group's gradient of an elementwise weight: [k, d] in float64.

    Args:
        normed_ktd: what the weight is multiplied with.
    """
    return (wide(normed_ktd) * wide(g_ktd)).sum(dim=1, dtype=torch.float64)


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
    width = g_ktd.shape[-1]
    rows_ud = wide(g_ktd).new_zeros(num_keys, width)
    return rows_ud.index_add_(0, places_kt.flatten(), wide(g_ktd).reshape(-1, width))


def linear_rows(x_kti: Tensor, g_kto: Tensor, keys_u: Tensor) -> Tensor:
    """The rows of a linear layer's gradient that stand for `row_keys`, [u, i]: what a tied embedding has to add to."""
    num_rows = g_kto.shape[2]
    rows = []
    for group, (x_ti, g_to) in enumerate(zip(x_kti, g_kto, strict=True)):
        mine = keys_u[torch.div(keys_u, num_rows, rounding_mode="floor") == group] % num_rows
        rows.append(wide(g_to[:, mine]).T @ wide(x_ti))
    return torch.cat(rows)


def without_silent_tokens(x_kti: Tensor, g_kto: Tensor, worth: float = 0.75) -> tuple[Tensor, Tensor]:
    """Leave out tokens without gradient (a head's tokens that are not supervised) where that saves enough.

    Args:
        worth: nothing is done if a group keeps more than this share of its tokens.
    """
    loud_kt = g_kto.abs().amax(dim=2) != 0  # NaN is loud
    longest = int(loud_kt.sum(dim=1).max())
    if longest > worth * g_kto.shape[1]:
        return x_kti, g_kto
    kept_kt1 = (~loud_kt).byte().argsort(dim=1, stable=True)[:, : max(longest, 1), None]
    return x_kti.take_along_dim(kept_kt1, dim=1), g_kto.take_along_dim(kept_kt1, dim=1)


def _by_two_grams(x_kti: Tensor, g_kto: Tensor, axis: Axis) -> Tensor:
    if axis == "in":
        return _by_grams(_panels(g_kto), x_kti, keep=True)
    return _by_grams(_panels(x_kti), g_kto, keep=axis == "out")


def _by_grams(panels: Iterable[Panel], g_kto: Tensor, keep: bool) -> Tensor:
    """Sum over pairs of tokens of their product in one factor times their product in the other.

    Args:
        panels: the Gram matrix of one factor.
        g_kto: the other factor.
        keep: do not sum over its last dimension.
    """
    total = g_kto.new_zeros(g_kto.shape[2] if keep else (), dtype=torch.float64)
    for tokens, products in panels:
        some, all_before = g_kto[:, tokens], g_kto[:, : tokens.stop]
        if keep:
            total += torch.bmm(products, all_before).mul_(some).sum(dim=1).sum(dim=0, dtype=torch.float64)
        else:
            total += torch.bmm(some, all_before.mT).mul_(products).sum(dim=2).sum(dtype=torch.float64)
    return 2 * total


def _panels(x_ktd: Tensor) -> Iterator[Panel]:
    num_tokens = x_ktd.shape[1]
    size = _panel_size(num_tokens)
    for start in range(0, num_tokens, size):
        tokens = slice(start, min(start + size, num_tokens))
        products = torch.bmm(x_ktd[:, tokens], x_ktd[:, : tokens.stop].mT)
        products[:, :, start:] *= 0.5
        yield Panel(tokens, products)


def _panel_size(num_tokens: int) -> int:
    return max(PANEL, -(-num_tokens // MAX_PANELS))
