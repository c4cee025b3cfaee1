"""Which layer of the source goes with which layer of the target, and how far to trust it.

Reads: the Gram matrices of both models. Gives: what `layer_match.json` and `similarity.safetensors` say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from trace_transfer.core_sets.overlap import jaccard
from trace_transfer.errors import ProbeError, few
from trace_transfer.transfer.policies import POLICIES, Matrix, Pairs, Policy, depth_pairs
from trace_transfer.transfer.probing import Grams
from trace_transfer.transfer.records import OFTEN, Depth, LayerMatch, LayerPair, Stability, rated
from trace_transfer.transfer.similarity import MIN_TEXTS, SIMILARITIES, GramStack, Halves, split_halves

FEW_ROWS = 64
MASSIVE = 0.5
SHOWN = 12  # layers or pairs that a warning names


def match_layers(
    source: GramStack | None, target: GramStack | None, /, *, num_splits: int, **about: Any
) -> tuple[LayerMatch, Matrix]:
    """Compare all layers of two models and choose pairs.

    Args:
        source, target: None where the policy reads neither; all similarities are NaN then.
        num_splits: random splits of the texts into halves for stability; 0 for none.
        about: what `LayerMatch` says of models, texts and settings; its `similarity` and `policy` are used, and the
            seed of its `probe` draws the splits and the `shuffled` control.

    Returns the match and all similarities, float64 [source layers, target layers], NaN for a degenerate layer.

    Raises:
        ProbeError: no chosen pair has a similarity: the texts give the same rows everywhere.
    """
    measure, policy, seed = SIMILARITIES[about["similarity"]], POLICIES[about["policy"]], about["probe"].seed

    def choose(similarity_ST: Matrix) -> Pairs:
        return policy(similarity_ST, seed)

    unread = np.full((about["source"].num_layers, about["target"].num_layers), np.nan)
    matrix_ST: Matrix = unread if source is None or target is None else measure(source, target).numpy()
    pairs, by_target = choose(matrix_ST), policy.target_chooses(matrix_ST.shape)
    used = [{pair[side] for pair in pairs} for side in (0, 1)]
    unmatched = [tuple(i for i in range(count) if i not in used[side]) for side, count in enumerate(matrix_ST.shape)]
    about |= {"chosen_by": "target" if by_target else "source"}
    about |= {"unmatched_sources": unmatched[0], "unmatched_targets": unmatched[1]}
    if source is None or target is None:
        about |= {"similarity": "none", "warnings": (policy.control,)}
        return LayerMatch(pairs=rated(pairs, matrix_ST, by_target), **about), matrix_ST
    if np.isnan([matrix_ST[pair] for pair in pairs]).all():
        raise ProbeError(
            f"no pair of the {about['policy']} match has a similarity: the rows of the probe set do not differ in one "
            "of its layers or the other; use other texts or another --match"
        )
    stability, flip_rates, held_out = None, None, None
    if num_splits and len(source.texts[0]) >= MIN_TEXTS:
        halves = split_halves(source, target, measure, num_splits=num_splits, seed=seed)
        stability, flip_rates, held_out = split_half_stability(halves, choose, pairs, by_target)
    exact, near = agreement(pairs, depth_pairs(matrix_ST.shape, by_target=by_target), by_target)
    found = rated(pairs, matrix_ST, by_target, flip_rates)
    flat = [tuple(np.flatnonzero(np.isnan(matrix_ST).all(axis=side)).tolist()) for side in (1, 0)]
    others = {name: other for name, other in POLICIES.items() if other is not policy and other.control is None}
    depth = Depth(
        agreement=exact, within_one=near, mean_similarity_gain=_gain(pairs, matrix_ST, by_target),
        held_out_gain=held_out,
    )  # fmt: skip
    match = LayerMatch(
        pairs=found, degenerate_sources=flat[0], degenerate_targets=flat[1], stability=stability, depth=depth,
        policy_agreement={name: jaccard(Counter(pairs), Counter(other(matrix_ST))) for name, other in others.items()},
        warnings=tuple(_warnings(max(source.sizes), found, depth, policy, flat)), **about,
    )  # fmt: skip
    return match, matrix_ST


def split_half_stability(
    halves: Halves, choose: Callable[[Matrix], Pairs], full: Pairs, by_target: bool
) -> tuple[Stability, dict[int, float], tuple[float, float]]:
    """How far a match (`full`) depends on which texts were read: the policy applied to every half.

    Returns the agreement of the choices made on disjoint halves; for each choosing layer, how often half of the texts
    would have chosen another than all texts do; and `Depth.held_out_gain`."""
    all_choices = _choices(full, by_target)
    same, near, gains = [], [], []
    flips = dict.fromkeys(all_choices, 0)
    for first, second in halves:
        pairs_first, pairs_second = choose(first), choose(second)
        one, two = _choices(pairs_first, by_target), _choices(pairs_second, by_target)
        for layer in sorted(one.keys() | two.keys()):
            distance = abs(one[layer] - two[layer]) if layer in one and layer in two else np.inf
            same.append(distance == 0)
            near.append(distance <= 1)
        for half in (one, two):
            for layer, choice in all_choices.items():
                flips[layer] += half.get(layer) != choice
        gains += [_gain(pairs_first, second, by_target), _gain(pairs_second, first, by_target)]
    rates = {layer: count / (2 * len(halves)) for layer, count in flips.items()}
    stability = Stability(num_splits=len(halves), same=float(np.mean(same)), within_one=float(np.mean(near)))
    return stability, rates, (float(np.mean(gains)), float(np.std(gains)))


def agreement(one: Pairs, other: Pairs, by_target: bool) -> tuple[float, float]:
    """Share of choosing layers on which two matches agree exactly, and to within one layer."""
    first, second = _choices(one, by_target), _choices(other, by_target)
    distances = np.array([abs(first[layer] - second[layer]) for layer in first.keys() & second.keys()])
    return (float((distances == 0).mean()), float((distances <= 1).mean())) if len(distances) else (0.0, 0.0)


def _choices(pairs: Pairs, by_target: bool) -> dict[int, int]:
    """Choosing layer → chosen layer; a policy gives every choosing layer one partner at most."""
    return {t: s for s, t in pairs} if by_target else dict(pairs)


def _gain(pairs: Pairs, similarity_ST: Matrix, by_target: bool) -> float:
    """Mean similarity of pairs minus that of the pairs of equal relative depth."""
    by_depth = depth_pairs(similarity_ST.shape, by_target=by_target)
    means = [np.nanmean([similarity_ST[pair] for pair in some]) for some in (pairs, by_depth)]
    return float(means[0] - means[1])


def _warnings(
    num_texts: int, pairs: tuple[LayerPair, ...], depth: Depth, policy: Policy, flat: Sequence[tuple[int, ...]]
) -> Iterator[str]:
    if policy.control:
        yield policy.control
    if num_texts < FEW_ROWS:
        told = f"with fewer than {FEW_ROWS} the similarities are mostly noise"
        yield f"only {num_texts} texts: {told}; give more with --probe"
    for side, layers in zip(("source", "target"), flat, strict=True):
        if layers:
            yield f"{side} layers {few(layers, SHOWN)} give the same row for every text: no similarity, never chosen"
    if depth.held_out_gain is None:
        yield "too few texts to be split in halves: the stability of the match is not known"
        return
    if unsure := [f"{pair.source}→{pair.target}" for pair in pairs if pair.is_ambiguous]:
        yield (
            f"{len(unsure)} of {len(pairs)} pairs are ambiguous (half of the texts choose another layer "
            f"in more than {OFTEN:.0%} of the draws): {few(unsure, SHOWN)}"
        )
    if not policy.control and depth.agreement < 1 and depth.is_as_good:
        mean, deviation = depth.held_out_gain
        yield (
            "on held-out texts the matched layers are not clearly more similar than layers of equal relative depth "
            f"(gain {mean:+.4f} ± {deviation:.4f}): CKA adds little to depth here"
        )


def massive_warnings(grams: Grams, representation: str, side: str) -> list[str]:
    """Say where one dimension carries most of the variance, so that it alone decides what looks alike."""
    found = {i: int(dim) for i, (dim, share) in enumerate(grams.largest[representation].tolist()) if share > MASSIVE}
    return [
        f"massive activations: in {side} layers {few(list(found), SHOWN)} one dimension "
        f"({few(sorted(set(found.values())), SHOWN)}) carries more than {MASSIVE:.0%} of the variance of the "
        f"{representation} rows and dominates the similarity; compare another --representation"
    ] * bool(found)
