"""Centred kernel alignment between all layers of two models, from their packed Gram matrices.

Kornblith et al. 2019 (arXiv 1905.00414), eq. 1–3; the debiased estimator of HSIC from Song et al. 2012 as in Nguyen et
al. 2021 (arXiv 2010.15327), eq. 3, summed over minibatches before the one ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trace_transfer.maths.gram import GramStack, diagonals, inner_products, pack_layout, packed_length, unpack

MIN_ROWS = 4


@dataclass(frozen=True)
class Similarity:
    """Similarity of all layer pairs.

    Attributes:
        values: float64 [source layers, target layers]; NaN in the row or column of a degenerate layer. Debiased values
            lie in [-1, 1] and may be negative; they are not clamped.
        degenerate_source: layers whose rows are all alike, so that no similarity is defined.
        degenerate_target: the same for the target.
    """

    values: Tensor
    degenerate_source: tuple[int, ...]
    degenerate_target: tuple[int, ...]


def linear_cka(source: GramStack, target: GramStack) -> Similarity:
    """Biased linear CKA: <K, L> / (|K| |L|), HSIC summed over minibatches (Kornblith 2019, eq. 3)."""
    return _ratio(source, target, _hsic_biased)


def debiased_cka(source: GramStack, target: GramStack) -> Similarity:
    """Debiased linear CKA (Nguyen 2021, eq. 3): near 0 for independent features however wide they are."""
    return _ratio(source, target, _hsic_debiased)


def rbf_cka(source: GramStack, target: GramStack, *, bandwidth: float = 1.0, debiased: bool = True) -> Similarity:
    """CKA with a Gaussian kernel of width `bandwidth` times the median distance (Kornblith 2019, section 4).

    Debiased by default: on 128 rows of 4,096 independent features the biased form is 0.98, the debiased -0.01.
    """
    hsic = _hsic_debiased if debiased else _hsic_biased
    return _ratio(gaussian(source, bandwidth), gaussian(target, bandwidth), hsic)


SIMILARITIES: dict[str, Callable[[GramStack, GramStack], Similarity]] = {
    "cka-debiased": debiased_cka,
    "cka": linear_cka,
    "cka-rbf": rbf_cka,
}


def _ratio(source: GramStack, target: GramStack, hsic: Callable[[GramStack, GramStack], Tensor]) -> Similarity:
    _require_same_rows(source, target)
    cross_ST = hsic(source, target)
    own_S, flat_source = _self_hsic(source, hsic)
    own_T, flat_target = _self_hsic(target, hsic)
    values = cross_ST / (own_S.sqrt()[:, None] * own_T.sqrt()[None, :])
    return Similarity(values, flat_source, flat_target)


def _self_hsic(stack: GramStack, hsic: Callable[[GramStack, GramStack], Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    """HSIC of each layer with itself, NaN where the layer's rows do not differ; and the list of those layers."""
    own_L = torch.stack(
        [hsic(layer, layer)[0, 0] for layer in (_one_layer(stack, index) for index in range(stack.num_layers))]
    )
    flat_L = ~(own_L > 0)
    own_L = own_L.masked_fill(flat_L, float("nan"))
    return own_L, tuple(flat_L.nonzero().flatten().tolist())


def _one_layer(stack: GramStack, layer: int) -> GramStack:
    return GramStack(stack.packed_LP[layer : layer + 1], stack.texts)


def _hsic_biased(a: GramStack, b: GramStack) -> Tensor:
    """Sum over minibatches of <K, L> / (n - 1)², float64 [L, M]."""
    return sum(inner_products(a.minibatch(m), b.minibatch(m)) / (n - 1) ** 2 for m, n in enumerate(a.sizes))


def _hsic_debiased(a: GramStack, b: GramStack) -> Tensor:
    """Sum over minibatches of HSIC₁, float64 [L, M].

    With rows of K and L summing to zero (centred), Song's estimator needs only the inner product and the diagonals:
    n(n-3) HSIC₁ = Σ_{i≠j} K_ij L_ij - 2/(n-2) Σ_i K_ii L_ii + tr K tr L / ((n-1)(n-2)).
    """
    total = 0
    for m, n in enumerate(a.sizes):
        diag_a, diag_b = diagonals(a.minibatch(m), n), diagonals(b.minibatch(m), n)
        products = inner_products(a.minibatch(m), b.minibatch(m))
        traces = diag_a.sum(1)[:, None] * diag_b.sum(1)[None, :]
        total = total + (products - n / (n - 2) * (diag_a @ diag_b.T) + traces / ((n - 1) * (n - 2))) / (n * (n - 3))
    return total


def _require_same_rows(source: GramStack, target: GramStack) -> None:
    if source.sizes != target.sizes:
        raise ValueError(f"rows of source and target differ: minibatches of {source.sizes} and {target.sizes} rows")
    if not source.sizes or min(source.sizes) < MIN_ROWS:
        raise ValueError(f"every minibatch needs at least {MIN_ROWS} rows, found {source.sizes}")


def centre(gram_NN: Tensor) -> Tensor:
    """H K H: the Gram matrix of the centred features of any kernel, [N, N]."""
    mean_N = gram_NN.mean(dim=0, keepdim=True)
    return gram_NN - mean_N - mean_N.T + gram_NN.mean()


def repack(gram_NN: Tensor) -> Tensor:
    """The packed form of a symmetric [N, N] matrix, float32 [packed_length(N)]."""
    n = gram_NN.shape[0]
    parts = []
    for start, stop, _, _ in pack_layout(n):
        parts += [gram_NN[start:stop, start:stop].flatten(), gram_NN[start:stop, stop:].flatten() * 2**0.5]
    return torch.cat(parts).float()


def gaussian(stack: GramStack, bandwidth: float) -> GramStack:
    """The stack under the kernel exp(-|x-y|² / (2 (bandwidth · median)²)), centred.

    The median of the distances includes the zero diagonal and is the mean of the two middle values, as in the
    reference implementation of Kornblith et al.
    """
    packed_LP = torch.empty_like(stack.packed_LP)
    for layer in range(stack.num_layers):
        parts = [repack(centre(_gaussian(gram_NN.double(), bandwidth))) for gram_NN in stack.matrices(layer)]
        torch.cat(parts, out=packed_LP[layer])
    return GramStack(packed_LP, stack.texts)


def _gaussian(gram_NN: Tensor, bandwidth: float) -> Tensor:
    diag_N = gram_NN.diagonal()
    squared_NN = (diag_N[:, None] + diag_N[None, :] - 2 * gram_NN).clamp(min=0).fill_diagonal_(0)
    middle = squared_NN.flatten().quantile(0.5) if squared_NN.numel() <= 1 << 24 else _median(squared_NN)
    if middle == 0:
        return torch.ones_like(gram_NN)
    return torch.exp(-squared_NN / (2 * bandwidth**2 * middle))


def _median(values: Tensor) -> Tensor:
    """Mean of the two middle values, for tensors larger than torch.quantile takes."""
    flat = values.flatten()
    lower = flat.kthvalue((flat.numel() + 1) // 2).values
    upper = flat.kthvalue(flat.numel() // 2 + 1).values
    return (lower + upper) / 2


def subset(stack: GramStack, keep: Tensor) -> GramStack:
    """The stack of some texts only, centred anew; minibatches left with fewer than four rows are dropped.

    Args:
        keep: bool [number of texts], True for a text that stays.
    """
    chosen = [keep[index].nonzero().flatten() for index in stack.texts]
    used = [m for m, rows in enumerate(chosen) if len(rows) >= MIN_ROWS]
    packed_LP = torch.empty(stack.num_layers, sum(packed_length(len(chosen[m])) for m in used))
    offset = 0
    for m in used:
        rows, n = chosen[m], stack.sizes[m]
        length = packed_length(len(rows))
        for layer in range(stack.num_layers):
            gram_NN = unpack(stack.minibatch(m)[layer], n)[rows][:, rows]
            packed_LP[layer, offset : offset + length] = repack(centre(gram_NN))
        offset += length
    return GramStack(packed_LP, tuple(stack.texts[m][chosen[m]] for m in used))
