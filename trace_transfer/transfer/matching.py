"""Which layer of the source goes with which layer of the target.

Reads: the Gram matrices of both models. Gives: `Match`, all that `layer_match.json`, `similarity.safetensors` and the
heatmap say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trace_transfer.errors import ProbeError
from trace_transfer.transfer.assignment import POLICIES
from trace_transfer.transfer.cka import SIMILARITIES
from trace_transfer.transfer.control_matches import CONTROLS, policy_named
from trace_transfer.transfer.depth import Pairs
from trace_transfer.transfer.gram import GramStack
from trace_transfer.transfer.probing import Grams
from trace_transfer.transfer.records import Depth, LayerPair, Stability
from trace_transfer.transfer.stability import (
    SplitHalf,
    agreement,
    chosen_by_target,
    depth_pairs,
    split_half_stability,
    split_halves,
)

NUM_SPLITS = 10
FEW_ROWS = 64
OFTEN = 0.25  # a choice that half of the texts would have made otherwise more often than this is not told apart
MASSIVE = 0.5
CONTROL_WARNINGS = {
    "depth": "a control, not a match: layers are paired by relative depth alone, whatever is similar; its pairs are "
    "the same on all texts",
    "shuffled": "a control, not a match: the coverage match with its target layers permuted by the seed; its order is "
    "destroyed on purpose; if what is carried along it does as well, the match did not matter",
}


@dataclass(frozen=True)
class Match:
    """A layer match with everything that says how far to trust it.

    Attributes:
        similarity: float64 [source layers, target layers], NaN for a degenerate layer.
        by_target: whether the target layers chose (`coverage` and the controls, onto a target at least as deep), else
            the source layers.
        pairs: matched pairs, each with its margin and runner-up among the choosing layer's other partners.
    """

    policy: str
    similarity: NDArray[np.float64]
    by_target: bool
    pairs: tuple[LayerPair, ...]
    unmatched_sources: tuple[int, ...]
    unmatched_targets: tuple[int, ...]
    degenerate_sources: tuple[int, ...]
    degenerate_targets: tuple[int, ...]
    stability: Stability | None
    depth: Depth
    policy_agreement: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def as_pairs(self) -> Pairs:
        return tuple((pair.source, pair.target) for pair in self.pairs)


def match_layers(
    source: GramStack, target: GramStack, *, similarity: str, policy: str, num_splits: int = NUM_SPLITS, seed: int = 0
) -> Match:
    """Compare all layers of two models and choose pairs.

    Args:
        similarity: a name in `SIMILARITIES`.
        policy: a name in `POLICIES` or `CONTROLS`.
        num_splits: random splits of the texts into halves for stability; 0 for none.
        seed: draws the splits and the `shuffled` control.

    Raises:
        ProbeError: no layer pair has a similarity: the texts give the same rows everywhere.
    """
    measure, choose = SIMILARITIES[similarity], policy_named(policy, seed)
    result = measure(source, target)
    matrix_ST = result.values.numpy()
    if np.isnan(matrix_ST).all():
        raise ProbeError(
            "the rows of the probe set do not differ in any layer: no similarity is defined; use other texts"
        )
    by_target = chosen_by_target("coverage" if policy in CONTROLS else policy, matrix_ST.shape)
    pairs = choose(matrix_ST)
    if np.isnan([matrix_ST[pair] for pair in pairs]).all():
        raise ProbeError(
            f"no pair of the {policy} match has a similarity: each holds a layer whose rows do not differ; use other "
            "texts or another --match"
        )
    split = None
    if num_splits and len(source.texts[0]) >= 16:
        halves = split_halves(source, target, measure, num_splits=num_splits, seed=seed)
        split = split_half_stability(halves, choose, pairs, by_target)
    by_depth = depth_pairs(matrix_ST.shape, by_target)
    exact, near = agreement(pairs, by_depth, by_target)
    gain = float(np.nanmean([matrix_ST[p] for p in pairs]) - np.nanmean([matrix_ST[p] for p in by_depth]))
    rated = tuple(_rate(pair, matrix_ST, by_target, split) for pair in pairs)
    return Match(
        policy=policy,
        similarity=matrix_ST,
        by_target=by_target,
        pairs=rated,
        unmatched_sources=tuple(sorted(set(range(matrix_ST.shape[0])) - {s for s, _ in pairs})),
        unmatched_targets=tuple(sorted(set(range(matrix_ST.shape[1])) - {t for _, t in pairs})),
        degenerate_sources=result.degenerate_source,
        degenerate_targets=result.degenerate_target,
        stability=None
        if split is None
        else Stability(num_splits=num_splits, same=split.same, within_one=split.within_one),
        depth=Depth(agreement=exact, within_one=near, mean_similarity_gain=gain),
        policy_agreement={
            name: _overlap(pairs, other(matrix_ST)) for name, other in POLICIES.items() if name != policy
        },
        warnings=tuple(
            _warnings(source, rated, split, policy, exact == 1.0, result.degenerate_source, result.degenerate_target)
        ),
    )


def _rate(pair: tuple[int, int], matrix_ST: NDArray[np.float64], by_target: bool, split: SplitHalf | None) -> LayerPair:
    s, t = pair
    value = matrix_ST[s, t]
    others = (matrix_ST[:, t] if by_target else matrix_ST[s]).copy()
    others[s if by_target else t] = np.nan
    chooser = t if by_target else s
    known = not np.isnan(others).all() and not np.isnan(value)
    runner_up = int(np.nanargmax(others)) if known else None
    return LayerPair(
        source=s,
        target=t,
        similarity=None if np.isnan(value) else float(value),
        margin=float(value - others[runner_up]) if runner_up is not None else None,
        runner_up=runner_up,
        flip_rate=split.flip_rates.get(chooser) if split else None,
    )


def _overlap(one: Pairs, other: Pairs) -> float:
    """Share of the pairs of two matches that both have (Jaccard)."""
    return len(set(one) & set(other)) / len(set(one) | set(other))


def _warnings(
    stack: GramStack,
    pairs: tuple[LayerPair, ...],
    split: SplitHalf | None,
    policy: str,
    is_depth_match: bool,
    degenerate_source: tuple[int, ...],
    degenerate_target: tuple[int, ...],
) -> list[str]:
    found = [CONTROL_WARNINGS[policy]] if policy in CONTROLS else []
    if max(stack.sizes) < FEW_ROWS:
        found.append(
            f"only {max(stack.sizes)} texts: below {FEW_ROWS} the similarities are mostly noise; give more with --probe"
        )
    for layers, side in ((degenerate_source, "source"), (degenerate_target, "target")):
        if layers:
            found.append(f"{side} layers {_list(layers)} give the same row for every text: no similarity, never chosen")
    if split is None:
        found.append("too few texts to be split in halves: how stable the match is, is not known")
        return found
    unsure = [pair for pair in pairs if pair.flip_rate is not None and pair.flip_rate > OFTEN]
    if unsure:
        names = _list([f"{p.source}→{p.target}" for p in unsure])
        found.append(
            f"{len(unsure)} of {len(pairs)} pairs are not told apart from their runner-up (half of the texts choose "
            f"another in more than {OFTEN:.0%} of the draws): {names}"
        )
    mean, deviation = split.gain_over_depth
    if policy not in CONTROLS and not is_depth_match and mean <= 2 * deviation:
        found.append(
            f"on held-out texts the match is not clearly more alike than layers of equal relative depth "
            f"(gain {mean:+.4f} ± {deviation:.4f}): here CKA adds little to depth"
        )
    return found


def massive_warnings(grams: Grams, representation: str, side: str) -> list[str]:
    """Say where one dimension carries most of the variance, so that it alone decides what looks alike."""
    shares = grams.largest[representation]
    layers = [index for index, (_, share) in enumerate(shares.tolist()) if share > MASSIVE]
    if not layers:
        return []
    dimensions = sorted({int(shares[index, 0]) for index in layers})
    return [
        f"massive activations: in {side} layers {_list(layers)} one dimension ({_list(dimensions)}) carries more than "
        f"{MASSIVE:.0%} of the variance of the {representation} rows and decides what looks alike; compare another "
        "--representation"
    ]


def _list(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:12]))
    return shown + (f", … ({len(items)})" if len(items) > 12 else "")
