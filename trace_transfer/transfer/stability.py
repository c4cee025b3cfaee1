"""How far a layer match depends on which texts were read: random disjoint halves of the texts.

Halves of *texts*, never of rows: rows of one text depend on each other. Drawing half of the texts without replacement
has the sampling variance of the bootstrap (the delete-half jackknife), and none of the doubled rows that would raise
a debiased similarity.

Shapes: S source layers, T target layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trace_transfer.transfer.cka import Similarity, subset
from trace_transfer.transfer.depth import Pairs, depth_match
from trace_transfer.transfer.gram import GramStack

Matrix = NDArray[np.float64]
Policy = Callable[[Matrix], Pairs]


@dataclass(frozen=True)
class Halves:
    """Similarity matrices [S, T] on the two disjoint halves of each random split."""

    pairs: tuple[tuple[Matrix, Matrix], ...]

    @property
    def all(self) -> list[Matrix]:
        return [matrix for pair in self.pairs for matrix in pair]


@dataclass(frozen=True)
class SplitHalf:
    """Agreement of the choices made on disjoint halves, as shares of the layers that choose.

    `flip_rates`: for each choosing layer, how often half of the texts would have chosen another than all texts do.
    `gain_over_depth`: by how much the pairs chosen on one half are more alike, on the other half, than the pairs of
    equal relative depth; mean over splits, and its standard deviation.
    """

    same: float
    within_one: float
    flip_rates: Mapping[int, float]
    gain_over_depth: tuple[float, float]


def split_halves(
    source: GramStack,
    target: GramStack,
    similarity: Callable[[GramStack, GramStack], Similarity],
    *,
    num_splits: int,
    seed: int,
) -> Halves:
    """Similarity matrices on `num_splits` random splits of the texts into halves.

    Raises:
        ValueError: fewer than 16 texts, of which no halves worth the name can be made.
    """
    texts = torch.cat(source.texts).unique()
    if len(texts) < 16:
        raise ValueError(f"{len(texts)} texts are too few to be split in halves")
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(num_splits):
        first = torch.zeros(int(texts.max()) + 1, dtype=torch.bool)
        first[texts[torch.randperm(len(texts), generator=generator)[: len(texts) // 2]]] = True
        one, other = (similarity(subset(source, h), subset(target, h)).values.numpy() for h in (first, ~first))
        pairs.append((one, other))
    return Halves(tuple(pairs))


def choices(pairs: Pairs, by_target: bool) -> dict[int, int]:
    """Choosing layer → chosen layer; a policy gives every choosing layer one partner at most."""
    return {t: s for s, t in pairs} if by_target else dict(pairs)


def chosen_by_target(policy_name: str, shape: Sequence[int]) -> bool:
    """Whether it is the target layers that choose: with `coverage` the deeper model's layers do."""
    return policy_name == "coverage" and shape[1] >= shape[0]


def split_half_stability(halves: Halves, policy: Policy, full: Pairs, by_target: bool) -> SplitHalf:
    """Apply a policy to every half and compare."""
    all_choices = choices(full, by_target)
    same, near, gains = [], [], []
    flips = dict.fromkeys(all_choices, 0)
    for first, second in halves.pairs:
        pairs_first, pairs_second = policy(first), policy(second)
        one, two = choices(pairs_first, by_target), choices(pairs_second, by_target)
        for layer in sorted(one.keys() | two.keys()):
            distance = abs(one[layer] - two[layer]) if layer in one and layer in two else np.inf
            same.append(distance == 0)
            near.append(distance <= 1)
        for half in (one, two):
            for layer, choice in all_choices.items():
                flips[layer] += half.get(layer) != choice
        gains += [_gain(pairs_first, second, by_target), _gain(pairs_second, first, by_target)]
    rates = {layer: count / (2 * len(halves.pairs)) for layer, count in flips.items()}
    return SplitHalf(float(np.mean(same)), float(np.mean(near)), rates, (float(np.mean(gains)), float(np.std(gains))))


def depth_pairs(shape: Sequence[int], by_target: bool) -> Pairs:
    """The depth-proportional match, seen from the choosing side."""
    if by_target:
        return tuple(sorted((s, t) for t, s in depth_match(shape[1], shape[0])))
    return depth_match(shape[0], shape[1])


def _gain(pairs: Pairs, held_out_ST: Matrix, by_target: bool) -> float:
    """Mean similarity of pairs minus that of the depth match, on texts that the pairs were not chosen on."""
    chosen = [held_out_ST[s, t] for s, t in pairs]
    by_depth = [held_out_ST[s, t] for s, t in depth_pairs(held_out_ST.shape, by_target)]
    return float(np.nanmean(chosen) - np.nanmean(by_depth))


def agreement(one: Pairs, other: Pairs, by_target: bool) -> tuple[float, float]:
    """Share of choosing layers on which two matches agree exactly, and to within one layer."""
    first, second = choices(one, by_target), choices(other, by_target)
    common = first.keys() & second.keys()
    if not common:
        return 0.0, 0.0
    distances = [abs(first[layer] - second[layer]) for layer in common]
    return float(np.mean([d == 0 for d in distances])), float(np.mean([d <= 1 for d in distances]))
