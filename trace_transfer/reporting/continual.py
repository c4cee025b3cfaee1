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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Stages = NDArray[np.int64]


def first_stages(learned: Sequence[Collection[int]], num_evaluations: int) -> Stages:
    """The stage that first trained what each evaluation measures.

    Args:
        learned: for each stage after the base, the columns of which it trained examples; each column is in one.
    """
    first = (next(stage for stage, of in enumerate(learned, 1) if column in of) for column in range(num_evaluations))
    return np.fromiter(first, dtype=np.int64)


def average(scores_SE: Scores, first_E: Stages) -> float:
    """Mean of the last row: 1/|E| Σ_e R[T, e].

    ACC of GEM (eq. 2); average accuracy A_T of RWalk (eq. 2).
    """
    return float(scores_SE[-1].mean())


def backward_transfer(scores_SE: Scores, first_E: Stages) -> float | None:
    """Mean over what was trained before the last stage of R[T, e] − R[s(e), e]; negative where it was unlearned.

    BWT of GEM (eq. 3), where every stage trains one task and the sum is over the first T − 1 of them.
    """
    before = _before_last(scores_SE, first_E)
    if not before.size:
        return None
    return float((scores_SE[-1, before] - scores_SE[first_E[before], before]).mean())


def forgetting(scores_SE: Scores, first_E: Stages) -> float | None:
    """Mean over what was trained before the last stage of max_{s(e) ≤ s < T} R[s, e] − R[T, e].

    F_T of RWalk (eq. 3 and 4), which takes the maximum over all earlier stages, those before the task was trained
    included. Here it begins when the task was first trained: a base model may know a task before, and what other tasks
    took of that in the meantime was not learned in the stream, so it is not counted as forgotten. It is negative where
    the last stage is the best, and never less than −(backward transfer). A maximum over noisy scores is too high: of
    scores that do not change but for noise, forgetting is above 0 and backward transfer is not.
    """
    lost = [scores_SE[first_E[e] : -1, e].max() - scores_SE[-1, e] for e in _before_last(scores_SE, first_E)]
    return float(np.mean(lost)) if lost else None


def forward_transfer(scores_SE: Scores, first_E: Stages) -> float | None:
    """Mean over what is first trained after the first stage of R[s(e) − 1, e] − R[0, e].

    FWT of GEM (eq. 4), where b_e is the score of a randomly initialised model; here it is the base model's score, since
    the stream begins with that one: how much training on other tasks helped (or harmed) before the task's own turn.
    """
    later = np.flatnonzero(first_E > 1)
    if not later.size:
        return None
    return float((scores_SE[first_E[later] - 1, later] - scores_SE[0, later]).mean())


def learning(scores_SE: Scores, first_E: Stages) -> float:
    """Mean of R[s(e), e] − R[0, e]: how much was learned at all. What learns nothing forgets nothing.

    Ours, beside the measures of GEM and RWalk; RWalk's intransigence asks the same, with a jointly trained model in
    place of the base.
    """
    columns = np.arange(len(first_E))
    return float((scores_SE[first_E, columns] - scores_SE[0]).mean())


def after_learning(values_SE: Scores, first_E: Stages, column: int) -> Scores:
    """Scores of one evaluation 0, 1, 2, … stages after what it measures was first trained: a forgetting curve."""
    return values_SE[first_E[column] :, column]


def _before_last(scores_SE: Scores, first_E: Stages) -> Stages:
    return np.flatnonzero(first_E < len(scores_SE) - 1)


@dataclass(frozen=True)
class Definition:
    """A measure with its formula in plain text, where it is from, and whether more of it is better."""

    name: str
    title: str
    formula: str
    source: str
    higher_is_better: bool
    of: Callable[[Scores, Stages], float | None]


GEM = "Lopez-Paz and Ranzato, 2017"
RWALK = "Chaudhry et al., 2018"
MEASURES = (
    Definition("average", "Average", "mean of the scores after the last stage", f"{GEM}, eq. 2; {RWALK}, eq. 2", True,
               average),
    Definition("backward_transfer", "Backward transfer",
               "mean of (score after the last stage − score right after the task was learned), tasks of the last stage "
               "left out", f"{GEM}, eq. 3", True, backward_transfer),
    Definition("forgetting", "Forgetting",
               "mean of (best score between the stage that learned the task and the last but one − score after the "
               "last stage), tasks of the last stage left out",
               f"{RWALK}, eq. 3 and 4, the maximum only from when the task was learned", False, forgetting),
    Definition("forward_transfer", "Forward transfer",
               "mean of (score just before the task is learned − the base's score), tasks of the first stage left out",
               f"{GEM}, eq. 4, with the base model in place of a random initialisation", True, forward_transfer),
    Definition("learning", "Learning", "mean of (score right after the task was learned − the base's score)",
               "beside the measures of the papers: what learns nothing forgets nothing", True, learning),
)  # fmt: skip
