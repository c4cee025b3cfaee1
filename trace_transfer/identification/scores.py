"""Scores of tensors, or of rows of them: one function per method, registered in `METHODS`, and the settings of all.

A method takes the statistics of all tasks, the index of one, and the settings. It gives a number per entry: a larger
one is more important, NaN means that the entry cannot be scored. `docs/howto/new-score.md` adds one.

Source: arXiv 2605.31025, section 3.2. Shapes: P entries (tensors, or rows of them), K tasks, J the other tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from trace_transfer.core_sets.core_file import Unit
from trace_transfer.settings import Count, Settings, Share, Texts, setting

if TYPE_CHECKING:
    from torch import Tensor

Vector = NDArray[np.float64]

# A cosine is corrected by at most a factor of ten; a delta that is reproduced less well than this is mostly noise.
RELIABILITY_FLOOR = 0.1
DAMPING = 0.01  # of the mean noise; keeps what no other task has any use for from infinity
TINY = 1e-30


@dataclass(frozen=True)
class Statistics:
    """All that scores are made of; None for what was not computed."""

    # inner products of the tasks' deltas, entry by entry; for a method at the base of their mean gradients
    gram_PKK: Vector
    numel_P: NDArray[np.int64]
    base_norms_P: Vector
    kinds_P: NDArray[np.str_]  # component of each entry
    tasks_K: tuple[str, ...]
    fisher_PK: Vector | None = None  # squared gradient of each task's loss, summed over the entry's parameters
    text_P: Vector | None = None  # the same on generic text, where it stands for what other tasks need
    # share of each delta's squared norm that a replicate reproduces: <first, second> / |delta|², with the delta that is
    # in `gram_PKK`. For single replicates that is their cosine, for their mean it is more.
    reliability_PK: Vector | None = None

    def others_P(self, task: int) -> Vector:
        """Fisher information of what a task should leave alone, the mean over each entry's parameters: that of generic
        text where it was taken, or the mean over the other tasks."""
        if self.text_P is not None:
            return self.text_P / self.numel_P
        assert self.fisher_PK is not None
        mean_P: Vector = np.delete(self.fisher_PK, task, axis=1).mean(axis=1) / self.numel_P
        return mean_P

    def of_entries(self, chosen: NDArray[Any]) -> Statistics:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return Statistics(**{n: v if n == "tasks_K" or v is None else v[chosen] for n, v in values.items()})


@dataclass(frozen=True)
class Scores:
    """Float64 [P], NaN for what cannot be scored, and the terms that it was made of, each [P]."""

    score_P: Vector
    terms: dict[str, Vector] = field(default_factory=dict)

    def terms_of(self, entry: int) -> dict[str, float]:
        found = {name: float(values_P[entry]) for name, values_P in self.terms.items()}
        return {name: value for name, value in found.items() if not np.isnan(value)}


# ---- methods


def lf(statistics: Statistics, task: int, settings: ScoreSettings) -> Scores:
    """alpha · L2 + (1 − alpha) · Fisher, each normalised over entries (eq. 5). A term of weight zero is left out."""
    parts = [(l2(statistics, task, settings), "l2_norm_score", settings.alpha)]
    if settings.alpha < 1 or statistics.fisher_PK is not None:
        parts.append((fisher(statistics, task, settings), "fisher_norm_score", 1.0 - settings.alpha))
    terms = {name: values_P for raw, _, _ in parts for name, values_P in raw.terms.items()}
    score_P = np.zeros(len(statistics.numel_P))
    for raw, name, weight in parts:
        kinds_P = statistics.kinds_P if settings.normalise_within == "kind" else None
        terms[name] = normalise(raw.score_P, settings.normalise, kinds_P)
        if weight > 0:
            score_P += weight * terms[name]
    return Scores(score_P, terms)


def cs(statistics: Statistics, task: int, settings: ScoreSettings) -> Scores:
    """Specificity: one minus the mean cosine with the other tasks' deltas (eq. 6-8), in [0, 2].

    A zero delta has no cosine: an entry that the task itself did not move is `unscored`, and another task that did not
    move it is left out of the mean. `cosine-0` is the authors' way: such an entry has the score 1.

    `corrected` divides the cosine by √(reliability of one · of the other), which undoes what noise takes from it
    (Spearman's correction for attenuation). Where either is at most `RELIABILITY_FLOOR`, the pair has no cosine."""
    others = [k for k in range(len(statistics.tasks_K)) if k != task]
    cosines_PJ = cosines_of(statistics.gram_PKK)[:, task, others]
    if settings.zero_delta == "cosine-0":
        cosines_PJ = np.nan_to_num(cosines_PJ, nan=0.0)
    if settings.cosine == "corrected":
        assert statistics.reliability_PK is not None  # refused before
        reliable_PK = np.where(statistics.reliability_PK > RELIABILITY_FLOOR, statistics.reliability_PK, np.nan)
        cosines_PJ = np.clip(cosines_PJ / np.sqrt(reliable_PK[:, [task]] * reliable_PK[:, others]), -1.0, 1.0)
    known_PJ = ~np.isnan(cosines_PJ)
    with np.errstate(invalid="ignore"):
        mean_P = np.where(known_PJ, cosines_PJ, 0.0).sum(axis=1) / known_PJ.sum(axis=1)
    terms = {f"cosine with {statistics.tasks_K[k]}": cosines_PJ[:, column] for column, k in enumerate(others)}
    return Scores(1.0 - mean_P, {"mean_cosine": mean_P, **terms})


def l2(statistics: Statistics, task: int, settings: ScoreSettings) -> Scores:
    """Size of the delta: eq. 3 as printed, or freed of the entry's size (`rms`, the authors' code) or scale; an entry
    whose base is zero has no `relative` size."""
    values_P = np.sqrt(statistics.gram_PKK[:, task, task])
    if settings.l2 == "rms":
        values_P = values_P / np.sqrt(statistics.numel_P)
    elif settings.l2 == "relative":
        values_P = values_P / np.where(statistics.base_norms_P > 0, statistics.base_norms_P, np.nan)
    return Scores(values_P, {"l2_delta": values_P})


def fisher(statistics: Statistics, task: int, settings: ScoreSettings) -> Scores:
    """Fisher information (eq. 4): the squared gradient, its sum over the entry's parameters or (authors' code) mean."""
    assert statistics.fisher_PK is not None
    values_P = statistics.fisher_PK[:, task]
    if settings.fisher_size == "mean":
        values_P = values_P / statistics.numel_P
    return Scores(values_P, {"fisher_info": values_P})


def snr(statistics: Statistics, task: int, settings: ScoreSettings) -> Scores:
    """Signal to noise at the base: g² / (H + 0.01 · mean H), g² and H the means over an entry's parameters. g is the
    task's mean gradient, H the Fisher information of the others (or of generic text): how fast the task's loss falls,
    for what it costs the others by elastic weight consolidation (Kirkpatrick 2017, arXiv 1612.00796)."""
    signal_P = statistics.gram_PKK[:, task, task] / statistics.numel_P
    noise_P = statistics.others_P(task)
    mean = mean_noise(noise_P, statistics.numel_P)
    return Scores(signal_to_noise(signal_P, noise_P, mean), {"gradient": signal_P, "fisher_others": noise_P})


def mean_noise(noise_P: Vector, numel_P: NDArray[np.int64]) -> float:
    return float((noise_P * numel_P).sum() / max(int(numel_P.sum()), 1))


def signal_to_noise(signal: Any, noise: Any, mean_noise: float) -> Any:
    """Of arrays or tensors; 0 where both are."""
    floor = DAMPING * mean_noise
    return signal / (noise + (floor if floor > 0 else TINY))


def fisher_base(statistics: Statistics, task: int, settings: ScoreSettings) -> Scores:
    """Fisher information at the base, the mean over an entry's parameters: of single ones the FISH mask (Sung et al.,
    2021, arXiv 2111.09839)."""
    return fisher(statistics, task, settings.model_copy(update={"fisher_size": "mean"}))


@dataclass(frozen=True)
class Method:
    """A registered scoring method."""

    # (statistics, index of the task, settings) → scores of all entries
    score: Callable[[Statistics, int, ScoreSettings], Scores]
    about: str
    ignores: tuple[str, ...] = ()  # settings that it does not read; they do not decide its core sets
    num_tasks: int = 1  # how many it needs at least
    # of a method at the base, which needs no warm start: its score of single parameters, from the squared mean
    # gradient, the task's Fisher information, that of the others, and the mean of the latter
    of_parameters: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None


_OF_FISHER = ("alpha", "fisher", "fisher_size", "fisher_at", "fisher_examples")
AT_BASE = ("gradient_examples", "against")
_OF_DELTAS = ("l2", "normalise", "normalise_within", "zero_delta", "cosine")
METHODS: dict[str, Method] = {
    "lf": Method(lf, "size of the update and Fisher information (eq. 3-5)", ignores=AT_BASE),
    "cs": Method(
        cs, "how unlike the other tasks' updates its direction is (eq. 6-8)",
        ignores=(*_OF_FISHER, *AT_BASE, "l2", "normalise", "normalise_within"), num_tasks=2,
    ),
    "l2": Method(l2, "size of the update alone", ignores=(*_OF_FISHER, *AT_BASE)),
    "fisher": Method(fisher, "Fisher information alone", ignores=("alpha", "l2", *AT_BASE)),
    "snr": Method(
        snr, "the task's gradient against the others' Fisher information, at the base: no warm start",
        ignores=(*_OF_FISHER, *_OF_DELTAS),
        of_parameters=lambda signal, own, others, mean: signal_to_noise(signal, others, mean),
    ),
    "fisher-base": Method(
        fisher_base, "Fisher information at the base: no warm start", ignores=(*_OF_FISHER, *_OF_DELTAS, "against"),
        of_parameters=lambda signal, own, others, mean: own,
    ),
}  # fmt: skip


def all_scores(statistics: Statistics, settings: ScoreSettings, takes_part_P: NDArray[np.bool_]) -> list[Scores]:
    """The scores of each task; NaN for the entries that take no part, which have no influence on the others' either."""
    method = METHODS[settings.method].score
    chosen = statistics.of_entries(takes_part_P)

    def spread(values: Vector) -> Vector:
        whole_P = np.full(len(takes_part_P), np.nan)
        whole_P[takes_part_P] = values
        return whole_P

    found = [method(chosen, task, settings) for task in range(len(statistics.tasks_K))]
    return [Scores(spread(s.score_P), {name: spread(term) for name, term in s.terms.items()}) for s in found]


# ---- settings

Normalisation = Literal["min-max", "rank", "z-score"]
if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]


class ScoreSettings(Settings):
    """From deltas and Fisher information to a core set: what the paper leaves open, each with a default."""

    GROUP: ClassVar[str] = "Scoring"
    LATER: ClassVar[frozenset[str]] = frozenset({*AT_BASE, "within", "prior"})
    # `paper` is the text, section 3.2; `authors-code` what its published code does: 150 batches of 2, 10 %, cosine 0.
    PROFILES: ClassVar = {
        "default": {},
        "paper": {"unit": "tensors", "l2": "norm", "fisher_size": "sum"},
        "authors-code": {"unit": "tensors", "fisher": "batch", "ratio": 0.1, "zero_delta": "cosine-0"},
    }

    method: MethodName = setting(
        "lf", "How tensors are scored. " + "; ".join(f"{name}: {one.about}" for name, one in METHODS.items()) + ".",
        common=True,
    )  # fmt: skip
    ratio: Share = setting(0.05, "Share of the model in a core set.", common=True)
    unit: Unit = setting(
        "elements",
        "What the ratio counts. elements: the parameters in whole tensors; tensors: named tensors, as in the paper; "
        "rows: parameters again, with each head and neuron scored by itself; parameters: each parameter by itself "
        "(snr, fisher-base).",
        common=True,
    )
    alpha: Annotated[float, Ge(0), Le(1)] = setting(0.5, "Weight of L2 in lf (eq. 5); Fisher has the rest.")
    l2: Literal["rms", "norm", "relative"] = setting(
        "rms",
        "Size of an update. rms: does not favour large tensors; norm: eq. 3; relative: divided by the base's norm.",
    )
    fisher: Literal["example", "batch"] = setting(
        "example", "Square the gradients of single examples (eq. 4) or of batches of two (the authors' code)."
    )
    fisher_size: Literal["mean", "sum"] = setting(
        "mean", "Fisher information of a tensor. mean: does not favour large tensors; sum: eq. 4."
    )
    fisher_at: Literal["tuned", "base"] = setting(
        "tuned", "Fisher information at the tuned model (eq. 4) or at the base (Algorithm 1)."
    )
    fisher_examples: Count = setting(300, "Examples drawn from each task for the Fisher information.")
    gradient_examples: Count = setting(32, "snr, fisher-base: examples drawn from each task for gradients at the base.")
    against: Literal["auto", "tasks", "text"] = setting(
        "auto", "snr: weigh against what the other tasks need, or generic text (the probe set). auto: tasks, if any."
    )
    normalise: Normalisation = setting("min-max", "Scaling of L2 and Fisher before they are added.")
    normalise_within: Literal["all", "kind"] = setting(
        "all", "Scale over all tensors, or over each kind of tensor (all q_proj, all norms …) by itself."
    )
    zero_delta: Literal["unscored", "cosine-0"] = setting(
        "unscored", "cs: leave a tensor that did not move without a score, or give it cosine 0 (the authors' code)."
    )
    cosine: Literal["plain", "corrected"] = setting(
        "plain", "cs: correct cosines for the noise measured by --replicates 2."
    )
    exclude: Texts = setting(
        (), "Leave out a component (attention.query, head), a group (norm, mlp) or 'bias'. May be repeated.",
        metavar="COMPONENT",
    )  # fmt: skip
    within: Path | None = setting(
        None,
        "Choose only from the core sets in this directory (TASK.core.json), such as those that map has carried over.",
        metavar="DIRECTORY",
    )
    prior: Path | None = setting(
        None,
        "Multiply the scores of tensors and rows by those that core files in this directory give their tensors.",
        metavar="DIRECTORY",
    )
    min_elements: Count = setting(1, "Leave out tensors with fewer parameters than this.")

    @property
    def needs_fisher(self) -> bool:
        """Whether the method reads Fisher information; one that mixes it in does not with alpha = 1."""
        ignored = METHODS[self.method].ignores
        return "fisher" not in ignored and ("alpha" in ignored or self.alpha < 1)

    @property
    def at_base(self) -> bool:
        return METHODS[self.method].of_parameters is not None

    def deciding(self) -> dict[str, Any]:
        ignored = METHODS[self.method].ignores
        later = {name: getattr(self, name) for name in AT_BASE}
        return {name: value for name, value in (self.recorded() | later).items() if name not in ignored}


# ---- arithmetic


def cosines_of(gram_PKK: Vector) -> Vector:
    """Cosine of each pair of deltas, [P, K, K] (eq. 7); NaN where a delta is zero."""
    norms_PK = np.sqrt(np.diagonal(gram_PKK, axis1=1, axis2=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines_PKK: Vector = gram_PKK / (norms_PK[:, :, None] * norms_PK[:, None, :])
    clipped_PKK: Vector = np.clip(cosines_PKK, -1.0, 1.0)
    return clipped_PKK


def _normalised(values: Vector, how: str) -> Vector:
    if how == "rank":  # equal values share the mean of their ranks
        from scipy.stats import rankdata

        ranks: Vector = rankdata(values)
        return (ranks - 1.0) / (len(values) - 1.0)
    lowest = float(values.min())
    unit = (values - lowest) / (float(values.max()) - lowest)
    # Of these the z-scores are the same, and the squares of tiny values do not vanish; of the population (ddof 0).
    return (unit - float(unit.mean())) / float(unit.std()) if how == "z-score" else unit


def normalise(values_P: Vector, how: str, kinds_P: Sequence[str] | NDArray[np.str_] | None = None) -> Vector:
    """min-max: in [0, 1]; rank: from 0 for the smallest to 1 for the largest; z-score. Over all entries or those of one
    kind at a time. NaN takes no part and stays; equal values say nothing about importance and become zeros."""
    kinds = np.zeros(len(values_P), int) if kinds_P is None else np.asarray(kinds_P)
    known_P, result_P = ~np.isnan(values_P), np.full(len(values_P), np.nan)
    for kind in np.unique(kinds[known_P]):
        members_P = known_P & (kinds == kind)
        values = values_P[members_P]
        result_P[members_P] = _normalised(values, how) if values.min() < values.max() else 0.0
    return result_P
