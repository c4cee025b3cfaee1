"""From a similarity matrix to pairs of layers: the four matching policies; control_matches.py has the controls.

All take C, float64 [S source layers, T target layers] with larger meaning more alike, and return pairs (source, target)
sorted by source, then target. NaN (a degenerate layer) never wins; ties go to the layer nearest the proportional depth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from trace_transfer.transfer.depth import Pairs

WORST = -2.0  # below every CKA
TIE = 1e-12


def argmax(similarity_ST: NDArray[np.float64]) -> Pairs:
    """Each source layer with the most similar target layer (the paper's section 5.5); several may share one."""
    scores_ST = _with_ties_broken(similarity_ST)
    return tuple((s, int(row.argmax())) for s, row in enumerate(scores_ST) if row.max() > WORST)


def one_to_one(similarity_ST: NDArray[np.float64]) -> Pairs:
    """The assignment of largest total similarity, each layer used at most once (Hungarian method)."""
    scores_ST = _with_ties_broken(similarity_ST)
    sources, targets = linear_sum_assignment(scores_ST, maximize=True)
    pairs = zip(sources.tolist(), targets.tolist(), strict=True)
    return tuple((s, t) for s, t in pairs if scores_ST[s, t] > WORST)


def monotone(similarity_ST: NDArray[np.float64]) -> Pairs:
    """The one-to-one assignment of largest total similarity in which a later layer never precedes an earlier one.

    Strictly increasing in both; min(S, T) pairs.
    """
    scores_ST = _with_ties_broken(similarity_ST)
    if scores_ST.shape[0] > scores_ST.shape[1]:
        return tuple(sorted((s, t) for t, s in _increasing(scores_ST.T)))
    return _increasing(scores_ST)


def coverage(similarity_ST: NDArray[np.float64]) -> Pairs:
    """Monotone and onto: no layer of either model is left out, and order is kept.

    With T ≥ S every target layer gets one source layer, g non-decreasing and onto, of largest Σ_t C[g(t), t]; with
    T < S the same with the sides exchanged.
    """
    scores_ST = _with_ties_broken(similarity_ST)
    if scores_ST.shape[0] > scores_ST.shape[1]:
        return tuple(sorted((s, t) for t, s in _covering(scores_ST.T)))
    return _covering(scores_ST)


POLICIES: dict[str, Callable[[NDArray[np.float64]], Pairs]] = {
    "argmax": argmax,
    "one-to-one": one_to_one,
    "monotone": monotone,
    "coverage": coverage,
}


def _increasing(scores_ST: NDArray[np.float64]) -> Pairs:
    """Strictly increasing map of all S ≤ T rows: best[s, t] of the first s rows within the first t columns."""
    num_source, num_target = scores_ST.shape
    best = np.full((num_source + 1, num_target + 1), -np.inf)
    best[0] = 0.0
    for s in range(1, num_source + 1):
        for t in range(s, num_target + 1):
            best[s, t] = max(best[s, t - 1], best[s - 1, t - 1] + scores_ST[s - 1, t - 1])
    pairs = []
    s, t = num_source, num_target
    while s:
        if t > s and best[s, t - 1] >= best[s, t]:
            t -= 1
        else:
            pairs.append((s - 1, t - 1))
            s, t = s - 1, t - 1
    return tuple(reversed(pairs))


def _covering(scores_ST: NDArray[np.float64]) -> Pairs:
    """Non-decreasing onto map g of T ≥ S columns to rows: best[s, t] with column t on row s."""
    num_source, num_target = scores_ST.shape
    best = np.full((num_source, num_target), -np.inf)
    best[0, 0] = scores_ST[0, 0]
    for t in range(1, num_target):
        for s in range(min(t + 1, num_source)):
            before = best[s, t - 1] if s == 0 else max(best[s, t - 1], best[s - 1, t - 1])
            best[s, t] = before + scores_ST[s, t]
    pairs = []
    s = num_source - 1
    for t in range(num_target - 1, -1, -1):
        pairs.append((s, t))
        if s and t and best[s - 1, t - 1] > best[s, t - 1]:
            s -= 1
    return tuple(sorted(pairs))


def _with_ties_broken(similarity_ST: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN to below every value, and a nudge of at most 1e-12 towards equal relative depth, then towards layer 0."""
    num_source, num_target = similarity_ST.shape
    depth_S = np.linspace(0, 1, num_source) if num_source > 1 else np.zeros(1)
    depth_T = np.linspace(0, 1, num_target) if num_target > 1 else np.zeros(1)
    distance_ST = np.abs(depth_S[:, None] - depth_T[None, :])
    order_T = np.arange(num_target) / (num_target * num_source * 4 * max(num_source, num_target))
    nudged_ST = similarity_ST - TIE * (distance_ST + order_T[None, :])
    return np.where(np.isnan(similarity_ST), WORST, nudged_ST)
