"""Gram matrices of a layer's rows, packed: all that any similarity between two layers needs.

Shapes: N rows of a minibatch, d features, L layers, P packed entries of all minibatches.

A Gram matrix K = Xc Xc' of column-centred rows is symmetric, so only blocks on and above the diagonal are computed and
kept: diagonal blocks whole, the strip to their right scaled by √2. The inner product of two packed vectors is then the
inner product <K, L> of the matrices, and all pairs of layers are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128
CONSTANT = 1e-12  # rows whose variance is below this share of their square norm differ by rounding only
CHUNK = 1 << 16  # entries summed in float32 before they are added to the float64 total: error 1e-7, not 2e-4
PIECE = 1 << 12  # the same for one vector with itself, where smaller pieces cost nothing: error 2e-8


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

    @property
    def num_rows(self) -> int:
        return sum(self.sizes)

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


def unpack(packed_P: Tensor, n: int) -> Tensor:
    """The symmetric Gram matrix [N, N] of one minibatch from its packed entries."""
    return Places.of(n).unpack(packed_P[None])[0]


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
