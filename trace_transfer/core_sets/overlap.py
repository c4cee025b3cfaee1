"""How much core sets have in common, and whether those of one task agree more than those of different tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.terminal import Page, as_text

Sizes = Mapping[Any, int]  # a core set: its members and their sizes, 1 to count tensors


def jaccard(one: Sizes, other: Sizes) -> float:
    """Size of what two sets share / size of what either holds, in [0, 1]; 0 for two empty sets."""
    common = sum(min(one[key], other[key]) for key in one.keys() & other.keys())
    together = sum(one.values()) + sum(other.values()) - common
    return common / together if together else 0.0


def jaccard_of_cores(one: CoreFile, other: CoreFile) -> tuple[float, float]:
    """Overlap of two core sets of one model, in tensors and in elements."""
    first, second = ({p.place: p.num_core for p in core.core} for core in (one, other))
    tensors = jaccard(dict.fromkeys(first, 1), dict.fromkeys(second, 1))
    if one.chosen is None or other.chosen is None:
        return tensors, jaccard(first, second)
    ours, theirs = one.parameters_chosen, other.parameters_chosen
    common = sum(ours[name].common(theirs[name]) for name in ours.keys() & theirs.keys())
    return tensors, common / (sum(first.values()) + sum(second.values()) - common)


def jaccard_by_chance(ratio: float) -> float:
    """Overlap of two random sets that each hold the share `ratio` of many members of like size: r / (2 − r)."""
    return ratio / (2.0 - ratio)


@dataclass(frozen=True)
class Reproducibility:
    """Overlap of one task's two core sets, and the mean and the largest of one with the other set of each other task;
    all in [0, 1], None where there is no other task."""

    within: float
    between: float | None
    highest_between: float | None

    @property
    def clearly_higher(self) -> bool | None:
        """Whether the task's replicates share more with each other than with any other task's.

        If the task made no difference, `within` would be as likely to be the largest as any of the 2 (K − 1) others: it
        is by chance with probability 1 / (2 K − 1), for four tasks 14 %. With so few values no test can say more."""
        return None if self.highest_between is None else self.within > self.highest_between


def reproducibility(replicates: Mapping[str, tuple[Sizes, Sizes]]) -> dict[str, Reproducibility]:
    """For each task, how far its two core sets agree, beside their agreement with those of other tasks.

    Between the tasks k and j it takes J(k_a, j_b) and J(j_a, k_b), which see different data as two replicates do."""
    found = {}
    for task, (first, second) in replicates.items():
        others = [pair for other, pair in replicates.items() if other != task]
        between = [share for one, two in others for share in (jaccard(first, two), jaccard(one, second))]
        mean = math.fsum(between) / len(between) if between else None
        found[task] = Reproducibility(jaccard(first, second), mean, max(between, default=None))
    return found


@as_text
def render_core_sets(page: Page, cores: Sequence[CoreFile], warnings: Sequence[str], files: Sequence[Path]) -> None:
    """How large each is and what they have in common, warnings, and where the files are."""
    methods = list(dict.fromkeys(core.method.name for core in cores))
    counted = "tensors, parts" if any(core.method.unit == "rows" for core in cores) else "tensors"
    several = len(methods) > 1
    rows = [
        (core.task, *[core.method.name] * several,
         f"{len(core.core)} of {len(core.parameters)} = {core.ratio_of_tensors:.2%}", f"{core.ratio_of_elements:.2%}",
         core.core[0].name if core.core else "none")
        for core in cores
    ]  # fmt: skip
    headings = ("task", *["method"] * several, counted, "parameters", "best")
    page.table(headings, rows, f"core sets ({', '.join(methods)})")
    shared = [
        (f"{one.task}, {other.task}", *(f"{share:.2f}" for share in jaccard_of_cores(one, other)))
        for one, other in combinations(cores, 2)
        if one.model.names_sha256 == other.model.names_sha256
    ]
    if shared:
        page.line()
        page.table(("tasks", counted, "parameters"), shared, "in common (Jaccard)")
    page.lines(f"! {warning}" for warning in warnings)
    page.written(files)
