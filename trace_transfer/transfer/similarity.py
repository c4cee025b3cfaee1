"""Similarity of all layers of two models: packed Gram matrices of their rows, and CKA of these.

Shapes: N rows of a minibatch, d features, L layers, P packed entries of all minibatches, S source and T target layers.

A Gram matrix K = Xc Xc' of column-centred rows is symmetric, so only blocks on and above the diagonal are computed and
kept: diagonal blocks whole, the strip to their right scaled by √2. The inner product of two packed vectors is then the
inner product <K, L> of the matrices, and all pairs of layers are one matrix product.

Sources: Kornblith et al. 2019 (arXiv 1905.00414), eq. 1-3; the debiased estimator of HSIC from Song et al. 2012 as in
Nguyen et al. 2021 (arXiv 2010.15327), eq. 3, summed over minibatches before the one ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 128
CONSTANT = 1e-12  # rows whose variance is below this share of their square norm differ by rounding only
CHUNK = 1 << 16  # entries summed in float32 before they are added to the float64 total: error 1e-7, not 2e-4
PIECE = 1 << 12  # the same for one vector with itself, where smaller pieces cost nothing: error 2e-8
MIN_ROWS = 4
MIN_TEXTS = 16  # of which halves are made
ENTRIES_AT_ONCE = 1 << 20  # of Gram matrices that are unpacked together: 4 MB a copy

Matrix = NDArray[np.float64]
Halves = tuple[tuple[Matrix, Matrix], ...]
Inner = Callable[[Tensor, Tensor], Tensor]
"""Inner products of packed vectors: of all pairs, [L, P] and [M, P] → [L, M], or of each with itself, → [L]."""


@dataclass(frozen=True)
class GramStack:
    """Packed Gram matrices of all layers of one model.

    Attributes:
        packed_LP: float32 [L, P]; the minibatches one after another, each packed as `pack_layout` says.
        texts: for each minibatch the index of the text that each of its rows comes from, int64 [N_m]. A text stands
            at most once in a minibatch: rows of one text depend on each other, and dependent rows raise the CKA even
            of independent models (debiased 0.89 when every row is doubled).
    """

    packed_LP: Tensor
    texts: tuple[Tensor, ...]

    @property
    def num_layers(self) -> int:
        return self.packed_LP.shape[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of rows of each minibatch."""
        return tuple(len(index) for index in self.texts)

    def minibatch(self, m: int) -> Tensor:
        """Packed entries of minibatch m of all layers, a view [L, P_m]."""
        lengths = [packed_length(n) for n in self.sizes]
        start = sum(lengths[:m])
        return self.packed_LP[:, start : start + lengths[m]]


def pack_layout(n: int) -> Iterator[tuple[int, int, int, int]]:
    """Row block [start, stop) of an N x N matrix and the packed offsets of its diagonal block and of its strip."""
    offset = 0
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        size = stop - start
        strip = offset + size * size
        yield start, stop, offset, strip
        offset = strip + size * (n - stop)


def packed_length(n: int) -> int:
    """Number of packed entries of an N x N Gram matrix: about N²/2."""
    return sum((stop - start) * (n - start) for start, stop, _, _ in pack_layout(n))


def pack_rows(rows_Nd: Tensor, out_P: Tensor) -> None:
    """Centre the rows' columns and write their packed Gram matrix.

    Centring comes first: a constant offset of 1,500 in one dimension would otherwise drown the margins between layers,
    which are about 1e-3. It comes twice, because the first mean is rounded to float32 at the size of the offset, the
    second at the size of what is left (as exact as a float64 mean, at a fifth of its time). Rows that differ by
    rounding only give a matrix of zeros.

    Args:
        rows_Nd: [N, d], of any floating dtype; not changed.
        out_P: float32 [packed_length(N)], overwritten.
    """
    centred_Nd = rows_Nd.to(torch.float32, copy=True)
    norm_before = centred_Nd.norm()
    for _ in range(2):
        centred_Nd -= centred_Nd.mean(dim=0)
    if centred_Nd.norm() ** 2 <= CONSTANT * norm_before**2:
        out_P.zero_()
        return
    n = rows_Nd.shape[0]
    for start, stop, diagonal, strip in pack_layout(n):
        size = stop - start
        block_Bd = centred_Nd[start:stop]
        torch.mm(block_Bd, block_Bd.T, out=out_P[diagonal:strip].view(size, size))
        if stop < n:
            view = out_P[strip : strip + size * (n - stop)].view(size, n - stop)
            torch.addmm(view, block_Bd, centred_Nd[stop:].T, beta=0, alpha=math.sqrt(2), out=view)


@dataclass(frozen=True)
class Places:
    """Where the entries of a Gram matrix lie in its packed form.

    Attributes:
        index_NN: int64, the packed position of each entry.
        factor_NN: float32, what undoes the strips' √2.
    """

    index_NN: Tensor
    factor_NN: Tensor

    @classmethod
    def of(cls, n: int) -> Places:
        index_NN = torch.empty(n, n, dtype=torch.int64)
        factor_NN = torch.full((n, n), 1 / math.sqrt(2))
        for start, stop, diagonal, strip in pack_layout(n):
            size = stop - start
            index_NN[start:stop, start:stop] = torch.arange(diagonal, strip).view(size, size)
            factor_NN[start:stop, start:stop] = 1
            block = torch.arange(strip, strip + size * (n - stop)).view(size, n - stop)
            index_NN[start:stop, stop:] = block
            index_NN[stop:, start:stop] = block.T
        return cls(index_NN, factor_NN)

    def rows(self, rows_K: Tensor) -> Places:
        """Those of some rows and the same columns only, [K, K]."""
        return Places(self.index_NN[rows_K][:, rows_K], self.factor_NN[rows_K][:, rows_K])

    def unpack(self, packed_LP: Tensor) -> Tensor:
        """The entries [L, N, N] of several layers' packed Gram matrices."""
        entries_LNN: Tensor = packed_LP.index_select(1, self.index_NN.flatten()).unflatten(1, self.index_NN.shape)
        return entries_LNN * self.factor_NN


def repack(gram_NN: Tensor) -> Tensor:
    """The packed form [..., P] of symmetric matrices [..., N, N], float32."""
    parts = []
    for start, stop, _, _ in pack_layout(gram_NN.shape[-1]):
        parts.append(gram_NN[..., start:stop, start:stop].flatten(-2))
        parts.append(gram_NN[..., start:stop, stop:].flatten(-2) * math.sqrt(2))
    return torch.cat(parts, dim=-1).float()


def diagonals(packed_LP: Tensor, n: int) -> Tensor:
    """Diagonals of packed Gram matrices, float64 [L, N]."""
    parts = [
        packed_LP[:, diagonal:strip].unflatten(1, (stop - start, stop - start)).diagonal(dim1=1, dim2=2)
        for start, stop, diagonal, strip in pack_layout(n)
    ]
    return torch.cat(parts, dim=1).double()


def inner_products(a_LP: Tensor, b_MP: Tensor) -> Tensor:
    """All inner products of two sets of packed vectors, float64 [L, M]: float32 within a chunk, float64 across.

    In one thread: the order of the sums would follow the number of threads that the library takes at that moment, and
    two runs on the same rows would differ by 1e-7. So few long vectors are no slower for it.
    """
    total = torch.zeros(a_LP.shape[0], b_MP.shape[0], dtype=torch.float64, device=a_LP.device)
    with _one_thread():
        for start in range(0, a_LP.shape[1], CHUNK):
            total += (a_LP[:, start : start + CHUNK] @ b_MP[:, start : start + CHUNK].T).double()
    return total


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def square_norms(a_LP: Tensor) -> Tensor:
    """Inner product of each packed vector with itself, float64 [L]: the diagonal of `inner_products` alone."""
    whole = a_LP.shape[1] // PIECE * PIECE
    pieces_LC: Tensor = torch.linalg.vector_norm(a_LP[:, :whole].unflatten(1, (-1, PIECE)), dim=2)
    rest_L: Tensor = torch.linalg.vector_norm(a_LP[:, whole:], dim=1)
    return pieces_LC.double().square().sum(dim=1) + rest_L.double().square()


def pack_layer(rows_Rd: Tensor, sizes: Sequence[int], out_P: Tensor) -> None:
    """Pack one layer's rows [R, d], minibatch by minibatch, into its packed vector [P]."""
    row = offset = 0
    for n in sizes:
        length = packed_length(n)
        pack_rows(rows_Rd[row : row + n], out_P[offset : offset + length])
        row, offset = row + n, offset + length


# ---- CKA


Hsic = Callable[[GramStack, GramStack, Inner], Tensor]


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


def _ratio(source: GramStack, target: GramStack, hsic: Hsic) -> Similarity:
    if source.sizes != target.sizes:
        raise ValueError(f"rows of source and target differ: minibatches of {source.sizes} and {target.sizes} rows")
    if not source.sizes or min(source.sizes) < MIN_ROWS:
        raise ValueError(f"every minibatch needs at least {MIN_ROWS} rows, found {source.sizes}")
    cross_ST = hsic(source, target, inner_products)
    own_S, own_T = (hsic(stack, stack, lambda a_LP, _: square_norms(a_LP)) for stack in (source, target))
    flat_S, flat_T = ~(own_S > 0), ~(own_T > 0)
    own_S, own_T = own_S.masked_fill(flat_S, torch.nan), own_T.masked_fill(flat_T, torch.nan)
    flat = (tuple(flat_L.nonzero().flatten().tolist()) for flat_L in (flat_S, flat_T))
    return Similarity(cross_ST / (own_S.sqrt()[:, None] * own_T.sqrt()[None, :]), *flat)


def _hsic_biased(a: GramStack, b: GramStack, inner: Inner) -> Tensor:
    """Sum over minibatches of <K, L> / (n - 1)², for the pairs of layers that `inner` takes, float64."""
    parts = [inner(a.minibatch(m), b.minibatch(m)) / (n - 1) ** 2 for m, n in enumerate(a.sizes)]
    return reduce(torch.add, parts)


def _hsic_debiased(a: GramStack, b: GramStack, inner: Inner) -> Tensor:
    """Sum over minibatches of HSIC₁, for the pairs of layers that `inner` takes, float64.

    With rows of K and L summing to zero (centred), Song's estimator needs only the inner product and the diagonals:
    n(n-3) HSIC₁ = Σ_{i≠j} K_ij L_ij - 2/(n-2) Σ_i K_ii L_ii + tr K tr L / ((n-1)(n-2)).
    """
    parts = []
    for m, n in enumerate(a.sizes):
        diag_a, diag_b = diagonals(a.minibatch(m), n), diagonals(b.minibatch(m), n)
        products = inner(a.minibatch(m), b.minibatch(m))
        traces = inner(diag_a.sum(1, keepdim=True), diag_b.sum(1, keepdim=True))
        parts.append((products - n / (n - 2) * inner(diag_a, diag_b) + traces / ((n - 1) * (n - 2))) / (n * (n - 3)))
    return reduce(torch.add, parts)


def centre(gram_NN: Tensor) -> Tensor:
    """H K H: the Gram matrices of the centred features of any kernel, [..., N, N]."""
    mean_N1 = gram_NN.mean(dim=-1, keepdim=True)
    return gram_NN - mean_N1 - mean_N1.mT + mean_N1.mean(dim=-2, keepdim=True)


def gaussian(stack: GramStack, bandwidth: float) -> GramStack:
    """The stack under the kernel exp(-|x-y|² / (2 (bandwidth · median)²)), centred.

    The median of the distances includes the zero diagonal and is the mean of the two middle values, as in the
    reference implementation of Kornblith et al.
    """
    rows = {m: torch.arange(n) for m, n in enumerate(stack.sizes)}
    return _rebuilt(stack, rows, lambda gram_LNN: centre(_gaussian(gram_LNN.double(), bandwidth)))


def _gaussian(gram_LNN: Tensor, bandwidth: float) -> Tensor:
    diag_LN = gram_LNN.diagonal(dim1=1, dim2=2)
    squared_LNN = (diag_LN[:, :, None] + diag_LN[:, None, :] - 2 * gram_LNN).clamp_(min=0)
    squared_LNN.diagonal(dim1=1, dim2=2).zero_()
    middle_L = torch.stack([_median(squared_NN) for squared_NN in squared_LNN])[:, None, None]
    scaled_LNN = squared_LNN / (2 * bandwidth**2 * middle_L)
    return torch.exp(-scaled_LNN.where(middle_L > 0, 0))


def _median(values: Tensor) -> Tensor:
    """Mean of the two middle values, by selection: sorting all of them took most of the time of a whole match."""
    half = values.numel() // 2
    parted = np.partition(values.flatten().numpy(), half)
    lower = parted[half] if values.numel() % 2 else parted[:half].max()
    return torch.tensor((lower + parted[half]) / 2)


def subset(stack: GramStack, keep: Tensor) -> GramStack:
    """The stack of some texts only, centred anew; minibatches left with fewer than four rows are dropped.

    Args:
        keep: bool [number of texts], True for a text that stays.
    """
    chosen = {m: keep[index].nonzero().flatten() for m, index in enumerate(stack.texts)}
    return _rebuilt(stack, {m: rows for m, rows in chosen.items() if len(rows) >= MIN_ROWS}, centre)


def _rebuilt(stack: GramStack, rows: Mapping[int, Tensor], change: Callable[[Tensor], Tensor]) -> GramStack:
    """The stack after a change to its Gram matrices [layers, N, N], some layers at a time.

    Args:
        rows: the minibatches that stay, and which of their rows.
    """
    lengths = [packed_length(len(index)) for index in rows.values()]
    packed_LP = torch.empty(stack.num_layers, sum(lengths))
    for (m, index), out_LP in zip(rows.items(), packed_LP.split(lengths, dim=1), strict=True):
        places = Places.of(stack.sizes[m]).rows(index)
        at_once = max(1, ENTRIES_AT_ONCE // len(index) ** 2)
        for some_LP, some_out_LP in zip(stack.minibatch(m).split(at_once), out_LP.split(at_once), strict=True):
            some_out_LP.copy_(repack(change(places.unpack(some_LP))))
    return GramStack(packed_LP, tuple(stack.texts[m][index] for m, index in rows.items()))


# ---- halves of the texts


def split_halves(
    source: GramStack,
    target: GramStack,
    similarity: Callable[[GramStack, GramStack], Similarity],
    *,
    num_splits: int,
    seed: int,
) -> Halves:
    """Similarity matrices [S, T] on both halves of `num_splits` random splits of the texts.

    Halves of *texts*, never of rows: rows of one text depend on each other. Drawing half of the texts without
    replacement has the sampling variance of the bootstrap (the delete-half jackknife), and none of the doubled rows
    that would raise a debiased similarity.

    Raises:
        ValueError: fewer than 16 texts, of which no halves worth the name can be made.
    """
    texts = torch.cat(source.texts).unique()
    if len(texts) < MIN_TEXTS:
        raise ValueError(f"{len(texts)} texts are too few to be split in halves")
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(num_splits):
        first = torch.zeros(int(texts.max()) + 1, dtype=torch.bool)
        first[texts[torch.randperm(len(texts), generator=generator)[: len(texts) // 2]]] = True
        one, other = (similarity(subset(source, h), subset(target, h)).values.numpy() for h in (first, ~first))
        pairs.append((one, other))
    return tuple(pairs)
