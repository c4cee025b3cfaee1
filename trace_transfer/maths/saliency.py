"""Scores of parameters from their deltas: one small function per method, in a registry.

Shapes: P parameters, K tasks. All methods take `Deltas` and a task's index and return float64 [P]; NaN means that the
parameter cannot be scored. A larger score is more important.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Deltas:
    """What all scores need of the deltas (fine-tuned minus base) of K tasks.

    Attributes:
        gram_PKK: inner products of the tasks' deltas, parameter by parameter; norms are on its diagonals.
        numel_P: number of elements of each parameter.
    """

    gram_PKK: NDArray[np.float64]
    numel_P: NDArray[np.int64]

    @property
    def num_tasks(self) -> int:
        return self.gram_PKK.shape[1]

    @property
    def norms_PK(self) -> Vector:
        """|delta| of each parameter and task (eq. 3)."""
        return np.sqrt(np.diagonal(self.gram_PKK, axis1=1, axis2=2))

    @property
    def cosines_PKK(self) -> Vector:
        """Cosine of each pair of tasks (eq. 7); NaN where a delta is zero."""
        norms_PK = self.norms_PK
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = self.gram_PKK / (norms_PK[:, :, None] * norms_PK[:, None, :])
        return np.clip(cosines, -1.0, 1.0)


def l2_rms(deltas: Deltas, task: int) -> Vector:
    """Root mean square of the delta: |delta| / √numel, eq. 3 freed of the parameter's size (as the authors' code)."""
    return deltas.norms_PK[:, task] / np.sqrt(deltas.numel_P)


def l2_norm(deltas: Deltas, task: int) -> Vector:
    """|delta|, eq. 3 as printed. It ranks mostly by size: rank correlation with √numel was 0.95 to 0.97."""
    return deltas.norms_PK[:, task]


def specificity(deltas: Deltas, task: int) -> Vector:
    """One minus the mean cosine with the other tasks' deltas (eq. 6-8), in [0, 2]; NaN where any delta is zero.

    The authors' code gives a zero delta the cosine 0 and so a score above every parameter whose tasks agree a little;
    here a parameter that did not move is not scored.

    Raises:
        ValueError: fewer than two tasks.
    """
    if deltas.num_tasks < 2:
        raise ValueError("specificity compares tasks: it needs at least two")
    others = [k for k in range(deltas.num_tasks) if k != task]
    return 1.0 - deltas.cosines_PKK[:, task, others].mean(axis=1)


METHODS: dict[str, Callable[[Deltas, int], Vector]] = {
    "l2-rms": l2_rms,
    "l2": l2_norm,
    "cs": specificity,
}
