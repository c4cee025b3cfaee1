"""How much core sets have in common, and whether those of one task agree more than those of different tasks.

A core set is a mapping from its members (any keys) to their sizes: every size 1 counts tensors, numbers of elements
count elements.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

CoreSet = Mapping[Any, int]  # its keys are hashable


def jaccard(one: CoreSet, other: CoreSet) -> float:
    """Size of what two sets share / size of what either holds, in [0, 1]; NaN for two empty sets."""
    common = sum(one[key] for key in one.keys() & other.keys())
    together = sum(one.values()) + sum(other.values()) - common
    return common / together if together else math.nan


def counted(core: CoreSet) -> dict[Hashable, int]:
    """The same set, each member of size 1."""
    return dict.fromkeys(core, 1)


def jaccard_by_chance(ratio: float) -> float:
    """Overlap of two random sets that each hold the share `ratio` of many members of like size: r / (2 − r)."""
    return ratio / (2.0 - ratio)


@dataclass(frozen=True)
class Reproducibility:
    """Overlap of one task's two core sets, and the mean and the largest of one with the other set of each other task;
    all in [0, 1], NaN where undefined."""

    within: float
    between: float
    highest_between: float

    @property
    def clearly_higher(self) -> bool:
        """Whether the task's replicates share more with each other than with any other task's.

        If the task made no difference, `within` would be as likely to be the largest as any of the 2 (K − 1) others: it
        is by chance with probability 1 / (2 K − 1), for four tasks 14 %. With so few values no test can say more.
        """
        return self.within > self.highest_between


def reproducibility(replicates: Mapping[str, tuple[CoreSet, CoreSet]]) -> dict[str, Reproducibility]:
    """For each task, how far its two core sets agree, beside their agreement with those of other tasks.

    Between the tasks k and j it takes both J(k_a, j_b) and J(j_a, k_b): like two replicates of a task these see
    different data. A single task has nothing between (NaN).
    """
    found = {}
    for task, (first, second) in replicates.items():
        others = [pair for other, pair in replicates.items() if other != task]
        between = [share for one, two in others for share in (jaccard(first, two), jaccard(one, second))]
        mean = math.fsum(between) / len(between) if between else math.nan
        highest = math.nan if math.isnan(mean) else max(between)
        found[task] = Reproducibility(jaccard(first, second), mean, highest)
    return found
