"""Similarity of all layers of two models: packed Gram matrices of their rows, and CKA of these.

Shapes: N rows of a minibatch, d features, L layers, P packed entries of all minibatches, S source and T target layers.

A Gram matrix K = Xc Xc' of column-centred rows is symmetric, so of each block of rows only the columns from its first
row on are kept, those right of its diagonal block scaled by √2. The inner product of two packed vectors is then the
inner product <K, L> of the matrices, and all pairs of layers are one matrix product.

Sources: Kornblith et al. 2019 (arXiv 1905.00414), eq. 1-3; the debiased estimator of HSIC from Song et al. 2012 as in
Nguyen et al. 2021 (arXiv 2010.15327), eq. 3, summed over minibatches before the one ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from trace_transfer.models.running import one_thread
from trace_transfer.transfer.policies import Matrix

BLOCK = 128  # rows of a Gram matrix that are computed and packed together
CONSTANT = 1e-12  # rows whose variance is below this share of their square norm differ by rounding only
CHUNK = 1 << 14  # entries summed in float32 before they are added to the float64 total: error 3e-8, not 2e-4
PIECE = 1 << 12  # the same for vectors with themselves, where smaller pieces cost nothing: error 2e-8
MIN_ROWS = 4
MIN_TEXTS = 16  # of which halves are made
ENTRIES_AT_ONCE = 1 << 20  # of Gram matrices that are unpacked together: 4 MB a copy

Halves = tuple[tuple[Matrix, Matrix], ...]
Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GramStack:
    """Packed Gram matrices of all layers of one model."""

    packed_LP: Tensor  # float32 [L, P]; the minibatches one after another
    # for each minibatch the index of the text that each of its rows comes from, int64 [N_m]. A text stands at most once
    # in a minibatch: rows of one text depend on each other, and dependent rows raise the CKA even of independent models
    # (debiased 0.89 when every row is doubled).
    texts: tuple[Tensor, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(len(index) for index in self.texts)

    @property
    def minibatches(self) -> list[tuple[int, Tensor]]:
        """Of each minibatch its rows N_m and the packed entries of all layers, a view [L, P_m]."""
        return list(zip(self.sizes, self.packed_LP.split([packed_length(n) for n in self.sizes], dim=1), strict=True))


def packed_length(n: int) -> int:
    return sum(min(BLOCK, n - start) * (n - start) for start in range(0, n, BLOCK))


def blocks(packed_LP: Tensor, n: int) -> Iterator[tuple[int, Tensor]]:
    """Of each block of rows of an N x N matrix its first row and its packed entries, a view [L, B, N - first row]."""
    starts = range(0, n, BLOCK)
    shapes = [(min(BLOCK, n - start), n - start) for start in starts]
    parts = packed_LP.split([rows * columns for rows, columns in shapes], dim=1)
    return zip(starts, (part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)), strict=True)


def packed(gram_LNN: Tensor) -> Tensor:
    """The packed entries of Gram matrices, float32 [L, P]."""
    n = gram_LNN.shape[-1]
    packed_LP = gram_LNN.new_empty(len(gram_LNN), packed_length(n), dtype=torch.float32)
    for start, block in blocks(packed_LP, n):
        block.copy_(gram_LNN[:, start : start + BLOCK, start:])
        block[..., BLOCK:] *= math.sqrt(2)
    return packed_LP


def unpacked(packed_LP: Tensor, n: int, rows_K: Tensor) -> Tensor:
    """The entries [L, K, K] of some rows and the same columns of packed N x N matrices."""
    row_KK, column_KK = (pick(rows_K[:, None], rows_K[None, :]) for pick in (torch.minimum, torch.maximum))
    start_KK = row_KK // BLOCK * BLOCK
    block_KK = start_KK * (2 * n - start_KK + BLOCK) // 2
    place_KK = block_KK + (row_KK - start_KK) * (n - start_KK) + column_KK - start_KK
    entries_LKK: Tensor = packed_LP.index_select(1, place_KK.flatten()).unflatten(1, place_KK.shape)
    return entries_LKK * torch.where(column_KK < start_KK + BLOCK, 1.0, 1 / math.sqrt(2))


def diagonals(packed_LP: Tensor, n: int) -> Tensor:
    """Diagonals of packed Gram matrices, float64 [L, N]."""
    return torch.cat([block.diagonal(dim1=1, dim2=2) for _, block in blocks(packed_LP, n)], dim=1).double()


def pack_layer(rows_Rd: Tensor, sizes: Sequence[int], out_P: Tensor) -> None:
    """Centre one layer's rows [R, d] in each minibatch, and write their packed Gram matrices into [P].

    Centring comes first: a constant offset of 1,500 in one dimension would otherwise drown the margins between layers,
    which are about 1e-3. It comes twice, because the first mean is rounded to float32 at the size of the offset, the
    second at the size of what is left (as exact as a float64 mean, at a fifth of its time). Rows that differ by
    rounding only give a matrix of zeros."""
    outs = out_P.split([packed_length(n) for n in sizes])
    for rows_Nd, out in zip(rows_Rd.split(list(sizes)), outs, strict=True):
        centred_Nd = rows_Nd - rows_Nd.mean(dim=0, dtype=torch.float32)
        centred_Nd -= centred_Nd.mean(dim=0)
        if centred_Nd.norm() ** 2 <= CONSTANT * rows_Nd.norm(dtype=torch.float32) ** 2:
            centred_Nd.zero_()
        for start, (block,) in blocks(out[None], len(rows_Nd)):
            own_Bd = centred_Nd[start : start + BLOCK]
            torch.addmm(block, own_Bd, centred_Nd[start:].T, beta=0, alpha=math.sqrt(2), out=block)
            block[:, :BLOCK] /= math.sqrt(2)


def inner_products(a_LP: Tensor, b_MP: Tensor) -> Tensor:
    """All inner products of two sets of packed vectors, float64 [L, M]: float32 within a chunk, float64 across.

    In one thread: the order of the sums would follow the number of threads that the library takes at that moment, and
    two runs on the same rows would differ by 1e-7. So few long vectors are no slower for it."""
    total = torch.zeros(a_LP.shape[0], b_MP.shape[0], dtype=torch.float64, device=a_LP.device)
    with one_thread():
        for a_LC, b_MC in zip(a_LP.split(CHUNK, dim=1), b_MP.split(CHUNK, dim=1), strict=True):
            total += (a_LC @ b_MC.T).double()
    return total


def own_products(a_LP: Tensor, _: Tensor) -> Tensor:
    """The inner product of each packed vector with itself, float64 [L]: the diagonal of `inner_products` alone."""
    norms: list[Tensor] = [torch.linalg.vector_norm(a_LC, dim=1) for a_LC in a_LP.split(PIECE, dim=1)]
    return torch.stack(norms).double().square().sum(dim=0)


# ---- CKA


def linear_cka(source: GramStack, target: GramStack) -> Tensor:
    """Biased linear CKA: <K, L> / (|K| |L|), HSIC summed over minibatches (Kornblith 2019, eq. 3)."""
    return _ratio(source, target, _hsic_biased)


def debiased_cka(source: GramStack, target: GramStack) -> Tensor:
    """Debiased linear CKA (Nguyen 2021, eq. 3): near 0 for independent features however wide they are."""
    return _ratio(source, target, _hsic_debiased)


Measure = Callable[[GramStack, GramStack], Tensor]
SIMILARITIES: dict[str, Measure] = {"cka-debiased": debiased_cka, "cka": linear_cka}


def _ratio(source: GramStack, target: GramStack, hsic: Callable[[GramStack, GramStack, Product], Tensor]) -> Tensor:
    """Float64 [source layers, target layers], NaN for a degenerate layer, whose rows are all alike. Debiased values lie
    in [-1, 1] and may be negative; they are not clamped."""
    own_S, own_T = (hsic(stack, stack, own_products) for stack in (source, target))
    own_S, own_T = (own_L.masked_fill(~(own_L > 0), torch.nan) for own_L in (own_S, own_T))
    return hsic(source, target, inner_products) / (own_S.sqrt()[:, None] * own_T.sqrt()[None, :])


def _hsic_biased(a: GramStack, b: GramStack, product: Product) -> Tensor:
    """Sum over minibatches of <K, L> / (n - 1)², float64 [L, M], or [L] of own products."""
    pairs = zip(a.minibatches, b.minibatches, strict=True)
    return reduce(torch.add, [product(a_LP, b_MP) / (n - 1) ** 2 for (n, a_LP), (_, b_MP) in pairs])


def _hsic_debiased(a: GramStack, b: GramStack, product: Product) -> Tensor:
    """Sum over minibatches of HSIC₁, float64 [L, M], or [L] of own products.

    With rows of K and L summing to zero (centred), Song's estimator needs only the inner product and the diagonals:
    n(n-3) HSIC₁ = Σ_{i≠j} K_ij L_ij - 2/(n-2) Σ_i K_ii L_ii + tr K tr L / ((n-1)(n-2))."""
    parts = []
    for (n, a_LP), (_, b_MP) in zip(a.minibatches, b.minibatches, strict=True):
        diag_a, diag_b = diagonals(a_LP, n), diagonals(b_MP, n)
        traces = product(diag_a.sum(1, keepdim=True), diag_b.sum(1, keepdim=True)) / ((n - 1) * (n - 2))
        products = product(a_LP, b_MP) - n / (n - 2) * product(diag_a, diag_b) + traces
        parts.append(products / (n * (n - 3)))
    return reduce(torch.add, parts)


def centre(gram_NN: Tensor) -> Tensor:
    """H K H: the Gram matrices of the centred features of any kernel, [..., N, N]."""
    mean_N1 = gram_NN.mean(dim=-1, keepdim=True)
    return gram_NN - mean_N1 - mean_N1.mT + mean_N1.mean(dim=-2, keepdim=True)


def subset(stack: GramStack, keep: Tensor) -> GramStack:
    """The stack of texts to keep, bool [number of texts], centred anew, without minibatches of fewer than four rows."""
    parts, texts = [], []
    for (n, own_LP), index in zip(stack.minibatches, stack.texts, strict=True):
        rows = keep[index].nonzero().flatten()
        if len(rows) >= MIN_ROWS:
            some = own_LP.split(max(1, ENTRIES_AT_ONCE // len(rows) ** 2))  # layers
            parts.append(torch.cat([packed(centre(unpacked(some_LP, n, rows))) for some_LP in some]))
            texts.append(index[rows])
    return GramStack(torch.cat(parts, dim=1), tuple(texts))


# ---- halves of the texts


def split_halves(source: GramStack, target: GramStack, similarity: Measure, *, num_splits: int, seed: int) -> Halves:
    """Similarity matrices [S, T] on both halves of `num_splits` random splits of the texts.

    Halves of *texts*, never of rows: rows of one text depend on each other. Drawing half of the texts without
    replacement has the sampling variance of the bootstrap (the delete-half jackknife), and none of the doubled rows
    that would raise a debiased similarity."""
    texts = torch.cat(source.texts).unique()
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(num_splits):
        first = torch.zeros(int(texts.max()) + 1, dtype=torch.bool)
        first[texts[torch.randperm(len(texts), generator=generator)[: len(texts) // 2]]] = True
        one, other = (similarity(subset(source, h), subset(target, h)).numpy() for h in (first, ~first))
        pairs.append((one, other))
    return tuple(pairs)
