"""Layer matching by trying everything: for matrices of a few layers only."""

from __future__ import annotations

import itertools

import numpy as np


def total(matrix: np.ndarray, pairs) -> float:
    return float(sum(matrix[s, t] for s, t in pairs))


def best_one_to_one(matrix: np.ndarray) -> float:
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    columns = itertools.permutations(range(matrix.shape[1]), matrix.shape[0])
    return max(total(matrix, enumerate(chosen)) for chosen in columns)


def best_monotone(matrix: np.ndarray) -> float:
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    columns = itertools.combinations(range(matrix.shape[1]), matrix.shape[0])
    return max(total(matrix, enumerate(chosen)) for chosen in columns)


def best_coverage(matrix: np.ndarray) -> float:
    """Over all non-decreasing maps of the deeper side onto the other."""
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.T
    sources, targets = matrix.shape
    found = []
    for steps in itertools.product((0, 1), repeat=targets - 1):
        if sum(steps) == sources - 1:
            chosen = np.concatenate([[0], np.cumsum(steps)])
            found.append(total(matrix, ((int(s), t) for t, s in enumerate(chosen))))
    return max(found)
