"""Measures of continual learning, from a matrix of scores after each stage of a stream, and over learning rates.

`scores_SE` (num_stages + 1, num_evaluations): row 0 is the base, row s the model after stage s; entry (s, e) is the
score on evaluation e, **more is better** (a loss enters with its sign flipped). `first_E` says for each evaluation the
stage (from 1) that first trained what it measures; evaluations that no stage trained do not belong in the matrix. What
is trained at several stages (replay, two tasks that one evaluation measures) counts from the first: what a later stage
adds to it is then backward transfer. T is the number of stages, s(e) = `first_E[e]`.

All are in the unit of the scores. A measure that a matrix does not have is None: joint training (T = 1) has nothing
learned before its last stage, so it has no backward transfer, no forgetting and no forward transfer.

With B the evaluations first trained before the last stage and E all of them,
average(last row) − average(first row) = learning + |B| / |E| · backward transfer.

Sources: Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017 (GEM);
Chaudhry et al., "Riemannian Walk for Incremental Learning", ECCV 2018 (RWalk).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from trace_transfer.reporting.intervals import paired
from trace_transfer.reporting.records import Interval, Measure

Scores = NDArray[np.float64]
Stages = NDArray[np.int64]

GEM, RWALK = "Lopez-Paz and Ranzato, 2017", "Chaudhry et al., 2018"


def average(scores_SE: Scores, first_E: Stages) -> float:
    """1/|E| Σ_e R[T, e]: ACC of GEM; average accuracy A_T of RWalk."""
    return float(scores_SE[-1].mean())


def backward_transfer(scores_SE: Scores, first_E: Stages) -> float | None:
    """Mean of R[T, e] − R[s(e), e]; negative where it was unlearned. BWT of GEM, where every stage trains one task."""
    before = _before_last(scores_SE, first_E)
    if not before.size:
        return None
    return float((scores_SE[-1, before] - scores_SE[first_E[before], before]).mean())


def forgetting(scores_SE: Scores, first_E: Stages) -> float | None:
    """Mean of max_{s(e) ≤ s < T} R[s, e] − R[T, e]: F_T of RWalk, which takes the maximum over all earlier stages.

    Here it begins when the task was first trained: a base model may know a task before, and what other tasks took of
    that in the meantime was not learned in the stream. It is negative where the last stage is the best, and never less
    than −(backward transfer). A maximum over noisy scores is too high: of scores that do not change but for noise,
    forgetting is above 0 and backward transfer is not."""
    lost = [scores_SE[first_E[e] : -1, e].max() - scores_SE[-1, e] for e in _before_last(scores_SE, first_E)]
    return float(np.mean(lost)) if lost else None


def forward_transfer(scores_SE: Scores, first_E: Stages) -> float | None:
    """Mean of R[s(e) − 1, e] − R[0, e]: FWT of GEM, with the base model in place of a random initialisation."""
    later = np.flatnonzero(first_E > 1)
    if not later.size:
        return None
    return float((scores_SE[first_E[later] - 1, later] - scores_SE[0, later]).mean())


def learning(scores_SE: Scores, first_E: Stages) -> float:
    """Mean of R[s(e), e] − R[0, e]. RWalk's intransigence asks the same, with a joint model in place of the base."""
    return float((scores_SE[first_E, np.arange(len(first_E))] - scores_SE[0]).mean())


def _before_last(scores_SE: Scores, first_E: Stages) -> Stages:
    return np.flatnonzero(first_E < len(scores_SE) - 1)


def _measure(name: str, title: str, formula: str, source: str, higher_is_better: bool = True) -> Measure:
    return Measure(name=name, title=title, formula=formula, source=source, higher_is_better=higher_is_better)


MEASURES: tuple[tuple[Measure, Callable[[Scores, Stages], float | None]], ...] = (
    (_measure("average", "Average", "mean of the scores after the last stage", f"{GEM}, eq. 2; {RWALK}, eq. 2"),
     average),
    (_measure("backward_transfer", "Backward transfer",
              "mean of (score after the last stage − score right after the task was learned), tasks of the last stage "
              "left out", f"{GEM}, eq. 3"), backward_transfer),
    (_measure("forgetting", "Forgetting",
              "mean of (best score between the stage that learned the task and the last but one − score after the "
              "last stage), tasks of the last stage left out",
              f"{RWALK}, eq. 3 and 4, the maximum only from when the task was learned", False), forgetting),
    (_measure("forward_transfer", "Forward transfer",
              "mean of (score just before the task is learned − the base's score), tasks of the first stage left out",
              f"{GEM}, eq. 4, with the base model in place of a random initialisation"), forward_transfer),
    (_measure("learning", "Learning", "mean of (score right after the task was learned − the base's score)",
              "beside the measures of the papers: what learns nothing forgets nothing"), learning),
)  # fmt: skip

# ---- over learning rates


@dataclass(frozen=True)
class Front:
    """Learned (`learning`) against lost (−backward transfer) of one method at several learning rates.

    A method that learns faster also forgets more, so that one rate for all methods compares rates as much as methods.
    Along the line, from the lowest rate to the one that learns most on average, mean learning is piecewise linear. At
    the first place where it is `level`, between rates i and i + 1 with weight w, a seed that learned L and lost F is
    taken to lose

        (1 − w) F_i + w F_{i+1} − b ((1 − w) L_i + w L_{i+1} − level),   b = mean(F_{i+1} − F_i) / mean(L_{i+1} − L_i)

    The last term is 0 on average: it takes out what a seed lost more because it learned more, so that the interval of
    paired differences also holds that the place is an estimate (the delta method)."""

    rates: tuple[float, ...]  # lowest first
    seeds: tuple[int, ...]  # that trained all of them
    learned_RS: Scores
    lost_RS: Scores

    def of_seeds(self, seeds: Sequence[int]) -> Front:
        places = [self.seeds.index(seed) for seed in seeds]
        return Front(self.rates, tuple(seeds), self.learned_RS[:, places], self.lost_RS[:, places])

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the most that it learns, on average, from its lowest rate to the one that learns most."""
        means_R = self.learned_RS.mean(axis=1)
        return float(means_R[: means_R.argmax() + 1].min()), float(means_R.max())

    def lost_at(self, level: float) -> Scores:
        """What each seed loses where `level` is learned, which must be within `reach`."""
        learned_R, lost_R = self.learned_RS.mean(axis=1), self.lost_RS.mean(axis=1)
        for low in range(int(learned_R.argmax())):
            ends = learned_R[low], learned_R[low + 1]
            if min(ends) <= level <= max(ends) and ends[0] != ends[1]:
                weight = (level - ends[0]) / (ends[1] - ends[0])
                slope = (lost_R[low + 1] - lost_R[low]) / (ends[1] - ends[0])
                learned_S, lost_S = (
                    (1 - weight) * rows[low] + weight * rows[low + 1] for rows in (self.learned_RS, self.lost_RS)
                )
                return np.asarray(lost_S - slope * (learned_S - level))
        return np.asarray(self.lost_RS[0])  # the lowest rate learns most: it is the whole line


@dataclass(frozen=True)
class Found:
    """One method minus another, paired by seed; None where one of them, or a seed in common, is not there."""

    difference: Interval | None
    level: float | None = None  # what both learn, where they are compared at the same learning
    reason: str = ""  # why they cannot be


def matched(ours: Front, theirs: Front, rates: tuple[float, float], names: tuple[str, str]) -> Found:
    """What a method loses more than another where both learn the lesser of what they learn at their chosen `rates`.

    One of them stands at its rate, the other is taken down its line; the reason, with `names`, if it does not reach so.
    Only the seeds that both have are compared."""
    shared = [seed for seed in ours.seeds if seed in theirs.seeds]
    if not shared:
        return Found(None, reason="no seed trained all rates of both")
    lines = ours.of_seeds(shared), theirs.of_seeds(shared)
    level = float(min(line.learned_RS[line.rates.index(at)].mean() for line, at in zip(lines, rates, strict=True)))
    for line, name in zip(lines, names, strict=True):
        low, high = line.reach
        if not low <= level <= high:
            how = f"at least {low:.4g}" if level < low else f"at most {high:.4g}"
            return Found(None, level, f"{name} learns {how}, and {level:.4g} was to be matched")
    ours_S, theirs_S = (dict(zip(shared, line.lost_at(level).tolist(), strict=True)) for line in lines)
    return Found(paired(ours_S, theirs_S), level)


def best_rate(averages: Mapping[float, Sequence[float]]) -> float:
    """The learning rate whose models end best (`continual.average`), on average over seeds; of equals the lowest."""
    return max(sorted(averages), key=lambda rate: fmean(averages[rate]))
