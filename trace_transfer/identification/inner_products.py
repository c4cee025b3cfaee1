"""Gram matrices of deltas, as norms and cosines and back, and averaged over replicates.

Shapes: P parameters (or units of them), K deltas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cosines_of(gram_PKK: Array) -> Array:
    """Cosine of each pair, [P, K, K] (eq. 7); NaN where a delta is zero."""
    norms_PK = np.sqrt(np.diagonal(gram_PKK, axis1=1, axis2=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines_PKK: Array = gram_PKK / (norms_PK[:, :, None] * norms_PK[:, None, :])
    clipped_PKK: Array = np.clip(cosines_PKK, -1.0, 1.0)
    return clipped_PKK


def pairs_of(matrix_KK: Array) -> list[float]:
    """The entries below the diagonal, row by row: (1, 0), (2, 0), (2, 1), (3, 0), …"""
    return [float(value) for value in matrix_KK[np.tril_indices(len(matrix_KK), -1)]]


def from_pairs(norms_PK: Array, cosines: Sequence[Sequence[float | None]]) -> Array:
    """Gram matrices [P, K, K] from norms and the cosines of pairs; None, of a zero delta, is an inner product of 0."""
    num_entries, num = norms_PK.shape
    cosines_PKK = np.zeros((num_entries, num, num))
    rows, columns = np.tril_indices(num, -1)
    filled = [[0.0 if value is None else value for value in row] for row in cosines]
    cosines_PKK[:, rows, columns] = np.array(filled).reshape(num_entries, len(rows))
    cosines_PKK += cosines_PKK.transpose(0, 2, 1) + np.eye(num)
    return cosines_PKK * norms_PK[:, :, None] * norms_PK[:, None, :]


def averaged(gram_PKK: Array, groups: Sequence[Sequence[int]]) -> Array:
    """Gram matrices of the mean delta of each group of deltas, [P, groups, groups].

    <mean_i a_i, mean_j b_j> = mean_ij <a_i, b_j>: the mean of replicates needs no second reading.
    """
    blocks = [[gram_PKK[:, list(one)][:, :, list(other)].mean(axis=(1, 2)) for other in groups] for one in groups]
    return np.array(blocks).transpose(2, 0, 1)
