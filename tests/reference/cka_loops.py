"""CKA straight from the formulas, in float64 and Python loops: obviously correct, and slow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Hsic = Callable[[Matrix, Matrix], float]


def linear_gram(rows: Matrix) -> Matrix:
    n = len(rows)
    gram = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            gram[i, j] = sum(float(a) * float(b) for a, b in zip(rows[i], rows[j], strict=True))
    return gram


def hsic_biased(k: Matrix, m: Matrix) -> float:
    """tr(K H M H) / (n - 1)²."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(k @ h @ m @ h)) / (n - 1) ** 2


def hsic_debiased(k: Matrix, m: Matrix) -> float:
    """Song et al. 2012 as in Nguyen et al. 2021, eq. 3, with every sum written out."""
    n = len(k)
    k, m = k.copy(), m.copy()
    for i in range(n):
        k[i, i] = m[i, i] = 0
    trace = sum(k[i, j] * m[j, i] for i, j in itertools.product(range(n), repeat=2))
    total_k = sum(k[i, j] for i, j in itertools.product(range(n), repeat=2))
    total_m = sum(m[i, j] for i, j in itertools.product(range(n), repeat=2))
    through = sum(k[i, j] * m[j, h] for i, j, h in itertools.product(range(n), repeat=3))
    return (trace + total_k * total_m / ((n - 1) * (n - 2)) - 2 * through / (n - 2)) / (n * (n - 3))


def cka(source: Sequence[Matrix], target: Sequence[Matrix], gram: Callable[[Matrix], Matrix], hsic: Hsic) -> float:
    """One pair of layers, each given as its minibatches of rows: HSIC summed over them before the one ratio."""
    grams = [(gram(x), gram(y)) for x, y in zip(source, target, strict=True)]
    cross = sum(hsic(k, m) for k, m in grams)
    return cross / math.sqrt(sum(hsic(k, k) for k, _ in grams) * sum(hsic(m, m) for _, m in grams))
