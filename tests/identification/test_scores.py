"""Every scoring method: one contract over the registry; each against its formula."""

import math
import statistics as plain
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_transfer.core_sets.core_file import CoreTensor
from trace_transfer.core_sets.selection import select
from trace_transfer.identification.scores import (
    METHODS,
    RELIABILITY_FLOOR,
    Normalisation,
    Scores,
    ScoreSettings,
    Statistics,
    all_scores,
    cosines_of,
    cs,
    fisher,
    l2,
    lf,
    normalise,
)

NORMALISATIONS = get_args(Normalisation)
KINDS = ("attention.query", "mlp.up", "attention.query", "norm.final")


def draw(num_tasks=3, num_entries=12, seed=0, zero=()):
    """Statistics of made-up deltas; `zero` are (entry, task) that did not move."""
    rng = np.random.default_rng(seed)
    deltas = [rng.normal(size=(num_tasks, n)) * 10.0 ** rng.integers(-6, 2) for n in rng.integers(2, 40, num_entries)]
    for entry, task in zero:
        deltas[entry][task] = 0
    return Statistics(
        gram_PKK=np.stack([d @ d.T for d in deltas]),
        numel_P=np.array([d.shape[1] for d in deltas]),
        fisher_PK=10.0 ** rng.uniform(-8, 0, (num_entries, num_tasks)),
        base_norms_P=10.0 ** rng.uniform(-1, 1, num_entries),
        kinds_P=np.array([KINDS[index % 4] for index in range(num_entries)]),
        reliability_PK=rng.uniform(0.2, 1.0, (num_entries, num_tasks)),
        tasks_K=tuple(f"task {k}" for k in range(num_tasks)),
    )


def core(scores, ratio=0.25, unit="tensors", numel=None):
    """Indices of the entries that are selected by their scores, best first."""
    parameters = [
        CoreTensor(name=str(i), shape=(1 if numel is None else int(numel[i]),), score=None if np.isnan(s) else s)
        for i, s in enumerate(scores.score_P.tolist())
    ]
    return [int(p.name) for p in select(parameters, ratio, unit) if p.core]


SETTINGS = [
    ScoreSettings(),
    ScoreSettings(alpha=0.0),
    ScoreSettings(alpha=1.0),
    ScoreSettings(l2="norm", fisher_size="sum"),
    ScoreSettings(l2="relative", normalise="rank", normalise_within="kind"),
    ScoreSettings(normalise="z-score", zero_delta="cosine-0"),
    ScoreSettings(cosine="corrected"),
]
everything = pytest.mark.parametrize(("name", "options"), [(name, options) for name in METHODS for options in SETTINGS])


def scored(name, statistics, task, options) -> Scores:
    return METHODS[name].score(statistics, task, options)


def test_the_registry_is_what_can_be_chosen():
    assert get_args(ScoreSettings.model_fields["method"].annotation) == tuple(METHODS)
    for name, method in METHODS.items():
        assert set(method.ignores) <= ScoreSettings.names()
        assert method.score.__doc__
        expected = ScoreSettings.names() - {*method.ignores, "within", "prior"}
        assert set(ScoreSettings(method=name).deciding()) == expected


@everything
def test_scores_follow_their_entries_whatever_the_order_of_the_other_tasks(name, options):
    statistics, order = draw(4), np.random.default_rng(1).permutation(12)
    found = scored(name, statistics, 0, options)
    assert (found.score_P.shape, found.score_P.dtype) == ((12,), np.float64)
    assert np.isfinite(found.score_P).all()
    shuffled = scored(name, statistics.of_entries(order), 0, options)
    assert shuffled.score_P == pytest.approx(found.score_P[order], rel=1e-12, abs=1e-15)
    for term, values in found.terms.items():
        assert shuffled.terms[term] == pytest.approx(values[order], rel=1e-12, abs=1e-15)
    tasks = [0, 3, 1, 2]
    others = replace(
        statistics,
        gram_PKK=statistics.gram_PKK[:, tasks][:, :, tasks],
        fisher_PK=statistics.fisher_PK[:, tasks],
        reliability_PK=statistics.reliability_PK[:, tasks],
    )
    assert scored(name, others, 0, options).score_P == pytest.approx(found.score_P, rel=1e-12)


@everything
def test_what_takes_no_part_has_no_score_and_changes_none(name, options):
    statistics, takes_part = draw(), np.arange(12) % 3 != 0
    options = options.model_copy(update={"method": name})
    for task, found in enumerate(all_scores(statistics, options, takes_part)):
        assert np.array_equal(np.isnan(found.score_P), ~takes_part)
        alone = scored(name, statistics.of_entries(np.flatnonzero(takes_part)), task, options)
        assert np.array_equal(found.score_P[takes_part], alone.score_P)
        assert found.terms.keys() == alone.terms.keys()
    found = scored(name, draw(zero=[(2, 0), (2, 1), (2, 2), (7, 1)]), 0, options)  # what did not move is no error
    assert np.isfinite(np.delete(found.score_P, 2)).all()
    assert np.isnan(found.score_P[2]) == (name == "cs" and options.zero_delta != "cosine-0")


def test_norms_and_fisher_against_their_formulas():
    statistics = draw()
    for k in range(3):
        for p in range(12):
            norm, numel = math.sqrt(statistics.gram_PKK[p, k, k]), int(statistics.numel_P[p])
            expected = {"norm": norm, "rms": norm / numel**0.5, "relative": norm / statistics.base_norms_P[p]}
            for which, value in expected.items():
                assert l2(statistics, k, ScoreSettings(l2=which)).score_P[p] == pytest.approx(value, rel=1e-12)
            squares = statistics.fisher_PK[p, k]
            assert fisher(statistics, k, ScoreSettings(fisher_size="sum")).score_P[p] == squares
            assert fisher(statistics, k, ScoreSettings()).score_P[p] == pytest.approx(squares / numel, rel=1e-12)


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_lf_is_the_weighted_sum_of_its_terms(how):
    """At the ends of alpha it selects as its one term does: a normalisation keeps the order."""
    statistics = draw(num_entries=40)
    options = ScoreSettings(alpha=0.3, normalise=how, normalise_within="kind")
    found = lf(statistics, 0, options)
    one, other = found.terms["l2_norm_score"], found.terms["fisher_norm_score"]
    assert found.score_P == pytest.approx(0.3 * one + 0.7 * other, rel=1e-12)
    kinds = {kind: statistics.kinds_P == kind for kind in KINDS}
    for members in kinds.values():  # each alone
        assert np.array_equal(one[members], normalise(l2(statistics, 0, options).score_P[members], how))
    assert np.array_equal(found.terms["fisher_info"], fisher(statistics, 0, options).score_P)
    for ratio in (0.05, 0.3, 0.7):
        of_fisher = core(fisher(statistics, 1, ScoreSettings()), ratio)
        of_l2 = core(l2(statistics, 1, ScoreSettings()), ratio)
        assert core(lf(statistics, 1, ScoreSettings(alpha=0.0, normalise=how)), ratio) == of_fisher
        assert core(lf(statistics, 1, ScoreSettings(alpha=1.0, normalise=how)), ratio) == of_l2
        assert of_fisher != of_l2


def test_specificity_knows_same_and_opposite_directions():
    rows = [np.array([[1.0, 2.0], [2.0, 4.0]]), np.array([[1.0, 2.0], [-3.0, -6.0]])]
    statistics = replace(draw(2, 2), gram_PKK=np.stack([one @ one.T for one in rows]))
    for task in (0, 1):  # two tasks get the same
        assert cs(statistics, task, ScoreSettings()).score_P == pytest.approx([0.0, 2.0], abs=1e-12)


def test_a_task_that_did_not_move_an_entry_is_left_out_of_the_others_means():
    statistics = draw(3, zero=[(2, 1), (4, 1), (4, 2)])
    for task, unscored in ((0, [4]), (1, [2, 4]), (2, [4])):
        assert np.flatnonzero(np.isnan(cs(statistics, task, ScoreSettings()).score_P)).tolist() == unscored
    found, cosine = cs(statistics, 0, ScoreSettings()), cosines_of(statistics.gram_PKK)[2, 0, 2]
    assert found.score_P[2] == pytest.approx(1 - cosine, rel=1e-12)
    assert found.terms_of(2) == {"mean_cosine": cosine, "cosine with task 2": cosine}
    assert cs(statistics, 0, ScoreSettings(zero_delta="cosine-0")).score_P[4] == 1.0


@pytest.mark.parametrize("mean_of_replicates", [False, True])
def test_corrected_cosines_are_those_of_the_noiseless_deltas(mean_of_replicates):
    """Signals of a known cosine, noise of known size: what is corrected is near the truth, what is plain is not."""
    rng, numel, noise = np.random.default_rng(0), 200_000, 1.5
    first = rng.normal(size=numel)
    signals = np.stack([first, 0.6 * first + 0.8 * rng.normal(size=numel)])
    a, b = (signals + noise * rng.normal(size=(2, numel)) for _ in range(2))
    delta = (a + b) / 2 if mean_of_replicates else a
    reliability = (a * b).sum(axis=1) / (delta * delta).sum(axis=1)
    statistics = replace(draw(2, 1), gram_PKK=(delta @ delta.T)[None], reliability_PK=reliability[None])
    truth = signals[0] @ signals[1] / np.linalg.norm(signals[0]) / np.linalg.norm(signals[1])
    assert cs(statistics, 0, ScoreSettings(cosine="corrected")).score_P[0] == pytest.approx(1 - truth, abs=0.02)
    assert cs(statistics, 0, ScoreSettings()).score_P[0] > 1 - truth + 0.2


def test_what_is_not_reproduced_is_not_corrected_but_left_out():
    statistics = draw(3)
    reliability = statistics.reliability_PK.copy()
    reliability[0, 0] = reliability[1, 1] = RELIABILITY_FLOOR
    reliability[2, 2], reliability[3, 1:], reliability[5] = math.nan, -0.5, [0.4, 0.9, 0.1000001]
    statistics = replace(statistics, reliability_PK=reliability)
    found = cs(statistics, 0, ScoreSettings(cosine="corrected"))
    assert np.flatnonzero(np.isnan(found.score_P)).tolist() == [0, 3]
    cosine = cosines_of(statistics.gram_PKK)[1, 0, 2] / math.sqrt(reliability[1, 0] * reliability[1, 2])
    assert found.score_P[1] == pytest.approx(1 - np.clip(cosine, -1, 1), rel=1e-12)
    assert found.terms_of(2).keys() == {"mean_cosine", "cosine with task 1"}


# ---- normalisations


def by_hand(values, how):
    """The same without numpy, one value at a time."""
    if how == "min-max":
        return [(v - min(values)) / (max(values) - min(values)) for v in values]
    if how == "z-score":
        return [(v - plain.fmean(values)) / plain.pstdev(values) for v in values]
    ranks = [sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]
    return [rank / (len(values) - 1) for rank in ranks]


@pytest.mark.parametrize("how", NORMALISATIONS)
@given(values=st.lists(st.integers(-1000, 1000), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1))
def test_normalisations_against_plain_python(how, values):
    """NaN takes no part and stays."""
    found = normalise(np.array([math.nan, *values, math.nan], float), how)
    assert np.isnan(found[[0, -1]]).all()
    assert found[1:-1] == pytest.approx(by_hand(values, how), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("how", NORMALISATIONS)
@pytest.mark.parametrize("values", [[], [7.0], [0.1, math.nan, 0.1], [math.nan]])
def test_what_is_constant_becomes_zero(how, values):
    found = normalise(np.array(values), how)
    assert np.array_equal(np.isnan(found), np.isnan(values))
    assert np.nan_to_num(found).tolist() == [0.0] * len(values)
