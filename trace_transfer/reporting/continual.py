"""Measures of continual learning, from a matrix of scores after each stage of a stream.

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

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from trace_transfer.reporting.records import Measure

Scores = NDArray[np.float64]
Stages = NDArray[np.int64]

GEM, RWALK = "Lopez-Paz and Ranzato, 2017", "Chaudhry et al., 2018"


def first_stages(learned: Sequence[Collection[int]], num_evaluations: int) -> Stages:
    """The stage that first trained what each evaluation measures.

    Args:
        learned: for each stage after the base, the columns of which it trained examples; each column is in one.
    """
    first = (next(stage for stage, of in enumerate(learned, 1) if column in of) for column in range(num_evaluations))
    return np.fromiter(first, dtype=np.int64)


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
    forgetting is above 0 and backward transfer is not.
    """
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
    columns = np.arange(len(first_E))
    return float((scores_SE[first_E, columns] - scores_SE[0]).mean())


def after_learning(values_SE: Scores, first_E: Stages, column: int) -> Scores:
    """Scores of one evaluation 0, 1, 2, … stages after what it measures was first trained: a forgetting curve."""
    return values_SE[first_E[column] :, column]


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
