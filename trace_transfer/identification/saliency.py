"""Scores of parameters, or of units of them: one small pure function per method, in a registry.

Shapes: P entries (parameters, or heads and neurons), K tasks. A method takes the statistics of all tasks, a task's
index, the options and which entries take part; a larger score is more important, and NaN means that an entry cannot be
scored. References: arXiv 2605.31025, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trace_transfer.identification.inner_products import cosines_of
from trace_transfer.identification.normalisation import normalise

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

# A cosine is corrected by at most a factor of ten; a delta that is reproduced less well than this is mostly noise.
RELIABILITY_FLOOR = 0.1


@dataclass(frozen=True)
class Options:
    """What the paper leaves open; the values are those of the settings of the same names.

    Attributes:
        alpha: share of L2 in LF, in [0, 1]; Fisher has the rest.
        l2: `norm`, `rms` (norm / √numel) or `relative` (norm / norm of the base's values).
        fisher_size: `sum` or `mean` of the squared gradient over an entry's elements.
        normalise: `min-max`, `rank` or `z-score`.
        normalise_within: over `all` entries, or over those of one `kind` at a time.
        zero_delta: the pair of a delta that is zero is left `unscored`, or has `cosine-0`.
        cosine: `plain`, or `corrected` for the reliability of both deltas.
    """

    alpha: float = 0.5
    l2: str = "rms"
    fisher_size: str = "mean"
    normalise: str = "min-max"
    normalise_within: str = "all"
    zero_delta: str = "unscored"
    cosine: str = "plain"


@dataclass(frozen=True)
class Statistics:
    """What all scores need of P entries and K tasks; None for what was not computed.

    Attributes:
        gram_PKK: inner products of the tasks' deltas (fine-tuned minus base), entry by entry.
        numel_P: number of elements.
        fisher_PK: squared gradient of each task's loss, summed over the entry's elements.
        base_norms_P: norm of the base's values.
        kinds_P: component of each entry.
        reliability_PK: share of each delta's squared norm that a replicate reproduces: <first, second> / |delta|², with
            the delta that is in `gram_PKK`. For single replicates that is their cosine, for their mean it is more.
        tasks_K: the tasks' names, for the names of terms; their indices if None.
    """

    gram_PKK: Vector
    numel_P: NDArray[np.int64]
    fisher_PK: Vector | None = None
    base_norms_P: Vector | None = None
    kinds_P: tuple[str, ...] | None = None
    reliability_PK: Vector | None = None
    tasks_K: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        P, K = len(self.numel_P), self.num_tasks
        expected = {
            "gram_PKK": (P, K, K),
            "fisher_PK": (P, K),
            "base_norms_P": (P,),
            "kinds_P": (P,),
            "reliability_PK": (P, K),
            "tasks_K": (K,),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            found = value.shape if isinstance(value, np.ndarray) else (len(value),) if value is not None else shape
            if found != shape:
                raise ValueError(f"{name} has shape {list(found)}, expected {list(shape)}")

    @property
    def num_tasks(self) -> int:
        return int(self.gram_PKK.shape[1])

    @property
    def norms_PK(self) -> Vector:
        """|delta| of each entry and task (eq. 3)."""
        return np.sqrt(np.diagonal(self.gram_PKK, axis1=1, axis2=2))

    @property
    def cosines_PKK(self) -> Vector:
        """Cosine of each pair of tasks (eq. 7); NaN where a delta is zero."""
        return cosines_of(self.gram_PKK)


@dataclass(frozen=True)
class Scores:
    """Float64 [P] with NaN for what cannot be scored, and the quantities it was made of, each [P]."""

    score_P: Vector
    terms: dict[str, Vector] = field(default_factory=dict)

    def terms_of(self, entry: int) -> dict[str, float]:
        """The terms of one entry, without those that it has not."""
        found = {name: float(values_P[entry]) for name, values_P in self.terms.items()}
        return {name: value for name, value in found.items() if not np.isnan(value)}


Method = Callable[[Statistics, int, Options, Mask | None], Scores]


def l2(statistics: Statistics, task: int, options: Options, eligible_P: Mask | None = None) -> Scores:
    """Size of the delta: eq. 3 as printed, or freed of the entry's size (`rms`, the authors' code) or scale.

    The plain norm ranks mostly by size: its rank correlation with √numel was 0.95 to 0.97. An entry whose base is zero
    has no `relative` size.

    Raises:
        ValueError: `relative` without the norms of the base.
    """
    values_P = statistics.norms_PK[:, task]
    if options.l2 == "rms":
        values_P = values_P / np.sqrt(statistics.numel_P)
    elif options.l2 == "relative":
        if statistics.base_norms_P is None:
            raise ValueError("l2 'relative' needs the norms of the base")
        base_norms_P = np.where(statistics.base_norms_P > 0, statistics.base_norms_P, np.nan)
        values_P = values_P / base_norms_P
    elif options.l2 != "norm":
        raise ValueError(f"l2 {options.l2!r} is none of norm, rms, relative")
    return Scores(_only(eligible_P, values_P), {"l2_delta": values_P})


def fisher(statistics: Statistics, task: int, options: Options, eligible_P: Mask | None = None) -> Scores:
    """Fisher information (eq. 4): the squared gradient, summed over the entry's elements or their mean (authors' code).

    Raises:
        ValueError: it was not computed.
    """
    if statistics.fisher_PK is None:
        raise ValueError("this method needs Fisher information, which was not computed")
    if options.fisher_size not in ("sum", "mean"):
        raise ValueError(f"fisher_size {options.fisher_size!r} is none of sum, mean")
    values_P = statistics.fisher_PK[:, task]
    if options.fisher_size == "mean":
        values_P = values_P / statistics.numel_P
    return Scores(_only(eligible_P, values_P), {"fisher_info": values_P})


def lf(statistics: Statistics, task: int, options: Options, eligible_P: Mask | None = None) -> Scores:
    """alpha · L2 + (1 − alpha) · Fisher, both normalised over the entries that take part (eq. 5).

    A term of weight zero is left out: its NaN then costs no score, and with alpha = 1 no Fisher information is needed.

    Raises:
        ValueError: something was not computed that `l2` or `fisher` needs.
    """
    kinds_P = None
    if options.normalise_within == "kind":
        if statistics.kinds_P is None:
            raise ValueError("normalising within kinds needs the kind of every entry")
        kinds_P = statistics.kinds_P
    elif options.normalise_within != "all":
        raise ValueError(f"normalise_within {options.normalise_within!r} is none of all, kind")
    raw = {"l2_delta": l2(statistics, task, options, eligible_P)}
    if options.alpha < 1 or statistics.fisher_PK is not None:
        raw["fisher_info"] = fisher(statistics, task, options, eligible_P)
    terms = {name: found.terms[name] for name, found in raw.items()}
    weights = {"l2_delta": options.alpha, "fisher_info": 1.0 - options.alpha}
    score_P = np.zeros(len(statistics.numel_P))
    for name, found in raw.items():
        normalised_P = normalise(found.score_P, options.normalise, kinds_P)
        terms[_NORMALISED[name]] = normalised_P
        if weights[name] > 0:
            score_P += weights[name] * normalised_P
    return Scores(_only(eligible_P, score_P), terms)


_NORMALISED = {"l2_delta": "l2_norm_score", "fisher_info": "fisher_norm_score"}  # as the authors' list has them


def cs(statistics: Statistics, task: int, options: Options, eligible_P: Mask | None = None) -> Scores:
    """Specificity: one minus the mean cosine with the other tasks' deltas (eq. 6-8), in [0, 2].

    A cosine with a delta that is zero does not exist. With `zero_delta` = `unscored` an entry that the task itself did
    not move is not scored, and another task that did not move it is left out of the mean (one task must not take an
    entry from all others); if no task is left, the entry is not scored. `cosine-0` is the authors' way: it gives an
    entry that did not move the score 1, above all those whose tasks agree a little.

    `corrected` divides the cosine by √(reliability of one · of the other), which undoes what noise takes from it
    (Spearman's correction for attenuation). Where either is at most `RELIABILITY_FLOOR`, the pair has no cosine, and is
    treated as above whatever `zero_delta` is.

    Raises:
        ValueError: fewer than two tasks, or `corrected` without reliabilities.
    """
    if statistics.num_tasks < 2:
        raise ValueError("specificity compares tasks: it needs at least two")
    others = [k for k in range(statistics.num_tasks) if k != task]
    cosines_PJ = statistics.cosines_PKK[:, task, others]
    if options.zero_delta == "cosine-0":
        cosines_PJ = np.nan_to_num(cosines_PJ, nan=0.0)
    elif options.zero_delta != "unscored":
        raise ValueError(f"zero_delta {options.zero_delta!r} is none of unscored, cosine-0")
    if options.cosine == "corrected":
        cosines_PJ = _corrected(cosines_PJ, statistics.reliability_PK, task, others)
    elif options.cosine != "plain":
        raise ValueError(f"cosine {options.cosine!r} is none of plain, corrected")
    known_PJ = ~np.isnan(cosines_PJ)
    with np.errstate(invalid="ignore"):
        mean_P = np.where(known_PJ, cosines_PJ, 0.0).sum(axis=1) / known_PJ.sum(axis=1)
    terms = {"mean_cosine": mean_P}
    for column, other in enumerate(others):
        terms[f"cosine with {statistics.tasks_K[other] if statistics.tasks_K else other}"] = cosines_PJ[:, column]
    return Scores(_only(eligible_P, 1.0 - mean_P), terms)


METHODS: dict[str, Method] = {"lf": lf, "cs": cs, "l2": l2, "fisher": fisher}


def _only(eligible_P: Mask | None, values_P: Vector) -> Vector:
    """NaN for what takes no part."""
    return values_P if eligible_P is None else np.where(eligible_P, values_P, np.nan)


def _corrected(cosines_PJ: Vector, reliability_PK: Vector | None, task: int, others: list[int]) -> Vector:
    """Cosines without the noise of the deltas, cut to [-1, 1]; NaN where a reliability is too low or unknown."""
    if reliability_PK is None:
        raise ValueError("corrected cosines need two replicates of each task")
    reliable_PK = np.where(reliability_PK > RELIABILITY_FLOOR, reliability_PK, np.nan)
    clipped_PJ: Vector = np.clip(cosines_PJ / np.sqrt(reliable_PK[:, [task]] * reliable_PK[:, others]), -1.0, 1.0)
    return clipped_PJ
