"""Match policies: from a similarity matrix to pairs of layers, one function and one registration each.

A policy takes C, float64 [S source layers, T target layers] with larger meaning more alike, and returns pairs (source,
target) sorted by source, then target. NaN (a degenerate layer) never wins; ties go to the layer nearest the
proportional depth. Controls are registered in the same way; what they choose says nothing about the similarities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Pairs = tuple[tuple[int, int], ...]
Choose = TypeVar("Choose", bound=Callable[..., Pairs])
WORST = -2.0  # below every CKA
TIE = 1e-12


@dataclass(frozen=True)
class Policy:
    """A registered policy."""

    choose: Callable[..., Pairs]
    help: str  # what `--help` says of it
    # each layer of the deeper model has one partner (of models of equal depth, each of the target's); otherwise each
    # source layer has one at most
    deeper_chooses: bool = False
    control: str | None = None  # what the layer match warns of; None for a policy that is no control
    draws: bool = False  # whether `choose` takes a seed, too
    reads: bool = True  # whether similarities decide; of a policy for which they do not, neither model is read

    def __call__(self, similarity_ST: Matrix, seed: int = 0) -> Pairs:
        return self.choose(similarity_ST, seed) if self.draws else self.choose(similarity_ST)

    def target_chooses(self, shape: Sequence[int]) -> bool:
        """Whether each target layer has one partner, else each source layer has; `shape` is that of the matrix."""
        return self.deeper_chooses and shape[1] >= shape[0]


POLICIES: dict[str, Policy] = {}


def policy(name: str, help: str, **about: Any) -> Callable[[Choose], Choose]:
    """Register a function as `--match NAME`; the arguments are those of `Policy`."""

    def register(choose: Choose) -> Choose:
        POLICIES[name] = Policy(choose, help, **about)
        return choose

    return register


@policy(
    "argmax",
    "the most similar target layer of each source layer (the paper's), which leaves a deeper target partly unused",
)
def argmax(similarity_ST: Matrix) -> Pairs:
    """Each source layer with the most similar target layer (the paper's section 5.5); several may share one."""
    scores_ST = _with_ties_broken(similarity_ST)
    return tuple((s, int(row.argmax())) for s, row in enumerate(scores_ST) if row.max() > WORST)


@policy("one-to-one", "each layer once at most, of the largest total similarity")
def one_to_one(similarity_ST: Matrix) -> Pairs:
    """The assignment of largest total similarity, each layer used at most once (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    scores_ST = _with_ties_broken(similarity_ST)
    sources, targets = linear_sum_assignment(scores_ST, maximize=True)
    pairs = zip(sources.tolist(), targets.tolist(), strict=True)
    return tuple((s, t) for s, t in pairs if scores_ST[s, t] > WORST)


@policy("monotone", "the same with the order of the layers kept")
def monotone(similarity_ST: Matrix) -> Pairs:
    """The one-to-one assignment of largest total similarity, strictly increasing in both; min(S, T) pairs."""
    return _shallower_first(_increasing, similarity_ST)


@policy("coverage", "order is kept and no layer of either model is left out", deeper_chooses=True)
def coverage(similarity_ST: Matrix) -> Pairs:
    """Monotone and onto. With T ≥ S every target layer gets one source layer, g non-decreasing and onto, of largest
    Σ_t C[g(t), t]; with T < S the same with the sides exchanged."""
    return _shallower_first(_covering, similarity_ST)


@policy(
    "depth",
    "relative depth alone, which reads neither model",
    deeper_chooses=True,
    control="layers are paired by relative depth alone: neither model was read, so nothing says how alike they are",
    reads=False,
)
def by_depth(similarity_ST: Matrix) -> Pairs:
    """Each layer of the deeper model with the layer at the same relative depth."""
    return depth_pairs(similarity_ST.shape, by_target=similarity_ST.shape[1] >= similarity_ST.shape[0])


@policy(
    "shuffled",
    "coverage with its target layers permuted by --seed",
    deeper_chooses=True,
    control="a control, not a match: the coverage match with its target layers permuted by the seed; its order is "
    "destroyed on purpose; if what is carried along it does as well, the match did not matter",
    draws=True,
)
def shuffled(similarity_ST: Matrix, seed: int) -> Pairs:
    """The `coverage` match with its target layers permuted; every source layer is used as often as before.

    A permutation that leaves all pairs as they were is drawn again, unless one of the models has a single layer."""
    covering = coverage(similarity_ST)
    generator = np.random.default_rng(seed)
    while True:
        place_T = generator.permutation(similarity_ST.shape[1]).tolist()
        pairs = tuple(sorted((s, place_T[t]) for s, t in covering))
        if pairs != covering or min(similarity_ST.shape) == 1:
            return pairs


def depth_pairs(shape: Sequence[int], *, by_target: bool) -> Pairs:
    """Each choosing layer i of n with the layer at the same relative depth of m: floor(i (m-1)/(n-1) + 1/2)."""
    num_choosing, num_other = reversed(shape) if by_target else shape
    step, last = num_other - 1, max(num_choosing - 1, 1)
    pairs = ((i, (2 * i * step + last) // (2 * last)) for i in range(num_choosing))
    return tuple(sorted((s, t) for t, s in pairs)) if by_target else tuple(pairs)


def _shallower_first(solve: Callable[[Matrix], Pairs], similarity_ST: Matrix) -> Pairs:
    """Solve with the shallower model's layers as rows."""
    scores_ST = _with_ties_broken(similarity_ST)
    if scores_ST.shape[0] > scores_ST.shape[1]:
        return tuple(sorted((s, t) for t, s in solve(scores_ST.T)))
    return solve(scores_ST)


def _increasing(scores_ST: Matrix) -> Pairs:
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


def _covering(scores_ST: Matrix) -> Pairs:
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


def _with_ties_broken(similarity_ST: Matrix) -> Matrix:
    """NaN to below every value, and a nudge of at most 1e-12 towards equal relative depth, then towards layer 0."""
    num_source, num_target = similarity_ST.shape
    depth_S, depth_T = (np.linspace(0, 1, count) for count in similarity_ST.shape)
    distance_ST = np.abs(depth_S[:, None] - depth_T[None, :])
    order_T = np.arange(num_target) / (num_target * num_source * 4 * max(num_source, num_target))
    return np.where(np.isnan(similarity_ST), WORST, similarity_ST - TIE * (distance_ST + order_T[None, :]))
