"""Every scoring method: one contract over the registry, and both profiles against what was written out by hand."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from tests.reference.authors_scores import authors_cs, authors_lf, paper_cs, paper_lf
from trace_transfer.core_sets.core_file import CoreParameter
from trace_transfer.core_sets.selection import select
from trace_transfer.identification.normalisation import NORMALISATIONS, normalise
from trace_transfer.identification.saliency import METHODS, RELIABILITY_FLOOR, Options, Statistics, cs, fisher, l2, lf
from trace_transfer.identification.scoring_settings import ScoreSettings
from trace_transfer.settings import choices

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
        kinds_P=tuple(KINDS[index % 4] for index in range(num_entries)),
        reliability_PK=rng.uniform(0.2, 1.0, (num_entries, num_tasks)),
    )


def rows_of(statistics, index):
    """The statistics of some entries, in that order."""
    changed = {}
    for one in fields(statistics):
        value = getattr(statistics, one.name)
        if isinstance(value, np.ndarray):
            changed[one.name] = value[index]
        elif one.name == "kinds_P" and value is not None:
            changed[one.name] = tuple(np.array(value)[index].tolist())
    return replace(statistics, **changed)


def core(scores, ratio=0.25, unit="tensors", numel=None):
    """Indices of the entries that are selected by their scores, best first."""
    parameters = [
        CoreParameter(name=str(i), shape=(1 if numel is None else int(numel[i]),), score=None if np.isnan(s) else s)
        for i, s in enumerate(scores.score_P.tolist())
    ]
    return [int(p.name) for p in select(parameters, ratio, unit) if p.core]


OPTIONS = [
    Options(),
    Options(alpha=0.0),
    Options(alpha=1.0),
    Options(l2="norm", fisher_size="sum"),
    Options(l2="relative", normalise="rank", normalise_within="kind"),
    Options(normalise="z-score", zero_delta="cosine-0"),
    Options(cosine="corrected"),
]
everything = pytest.mark.parametrize(("name", "options"), [(name, options) for name in METHODS for options in OPTIONS])


def _allowed(name):
    return choices(ScoreSettings.model_fields[name].annotation)


def test_the_registry_and_the_options_are_those_of_the_settings():
    assert set(_allowed("method")) == set(METHODS)
    settings = ScoreSettings()
    for one in fields(Options):
        assert getattr(Options(), one.name) == getattr(settings, one.name)
    assert set(_allowed("normalise")) == set(NORMALISATIONS)


@everything
@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_one_finite_score_for_each_entry_and_terms_of_its_length(name, options, num_tasks):
    statistics = draw(num_tasks)
    for task in range(num_tasks):
        found = METHODS[name](statistics, task, options, None)
        assert found.score_P.shape == (12,)
        assert found.score_P.dtype == np.float64
        assert np.isfinite(found.score_P).all()
        assert all(term.shape == (12,) for term in found.terms.values())


@everything
def test_scores_follow_their_entries(name, options):
    statistics, order = draw(), np.random.default_rng(1).permutation(12)
    found = METHODS[name](statistics, 1, options, None)
    shuffled = METHODS[name](rows_of(statistics, order), 1, options, None)
    assert shuffled.score_P == pytest.approx(found.score_P[order], rel=1e-12, abs=1e-15)
    for term, values in found.terms.items():
        assert shuffled.terms[term] == pytest.approx(values[order], rel=1e-12, abs=1e-15)


@everything
def test_the_order_of_the_other_tasks_does_not_matter(name, options):
    statistics, order = draw(4), [0, 3, 1, 2]
    shuffled = replace(
        statistics,
        gram_PKK=statistics.gram_PKK[:, order][:, :, order],
        fisher_PK=statistics.fisher_PK[:, order],
        reliability_PK=statistics.reliability_PK[:, order],
    )
    found = METHODS[name](statistics, 0, options, None).score_P
    assert METHODS[name](shuffled, 0, options, None).score_P == pytest.approx(found, rel=1e-12)


@everything
def test_what_takes_no_part_has_no_score_and_changes_none(name, options):
    statistics, eligible = draw(), np.arange(12) % 3 != 0
    found = METHODS[name](statistics, 2, options, eligible)
    assert np.array_equal(np.isnan(found.score_P), ~eligible)
    alone = METHODS[name](rows_of(statistics, np.flatnonzero(eligible)), 2, options, None)
    assert found.score_P[eligible] == pytest.approx(alone.score_P, rel=1e-12, abs=1e-15)
    nothing = METHODS[name](statistics, 2, options, np.zeros(12, dtype=bool))
    assert np.isnan(nothing.score_P).all()


@everything
def test_everything_is_selected_at_one_and_at_least_one_always(name, options):
    statistics = draw()
    found = METHODS[name](statistics, 0, options, np.arange(12) != 5)
    assert len(core(found, 1.0)) == len(core(found, 1.0, "elements", statistics.numel_P)) == 11
    assert 5 not in core(found, 1.0)
    assert len(core(found, 0.001)) == 1


@everything
def test_a_single_entry_has_a_score(name, options):
    found = METHODS[name](rows_of(draw(), [3]), 0, options, None)
    assert np.isfinite(found.score_P).all()
    assert core(found, 0.05) == [0]


@everything
def test_equal_entries_have_equal_scores_and_keep_their_order(name, options):
    statistics = rows_of(draw(), [4] * 6)
    found = METHODS[name](statistics, 1, options, None)
    assert len(set(found.score_P.tolist())) == 1
    assert core(found, 0.5) == [0, 1, 2]


@everything
def test_what_did_not_move_is_no_error(name, options):
    found = METHODS[name](draw(zero=[(2, 0), (2, 1), (2, 2), (7, 1)]), 0, options, None)
    assert np.isfinite(np.delete(found.score_P, 2)).all()
    assert np.isnan(found.score_P[2]) == (name == "cs" and options.zero_delta != "cosine-0")


def test_norms_and_fisher_against_their_formulas():
    statistics = draw()
    for k in range(3):
        for p in range(12):
            norm, numel = math.sqrt(statistics.gram_PKK[p, k, k]), int(statistics.numel_P[p])
            expected = {"norm": norm, "rms": norm / numel**0.5, "relative": norm / statistics.base_norms_P[p]}
            for which, value in expected.items():
                assert l2(statistics, k, Options(l2=which)).score_P[p] == pytest.approx(value, rel=1e-12)
            squares = statistics.fisher_PK[p, k]
            assert fisher(statistics, k, Options(fisher_size="sum")).score_P[p] == squares
            assert fisher(statistics, k, Options()).score_P[p] == pytest.approx(squares / numel, rel=1e-12)


def test_nothing_is_large_or_small_relative_to_a_base_of_zeros():
    statistics = replace(draw(), base_norms_P=np.array([0.0] + [1.0] * 11))
    options = Options(l2="relative")
    assert np.flatnonzero(np.isnan(l2(statistics, 0, options).score_P)).tolist() == [0]
    assert np.flatnonzero(np.isnan(lf(statistics, 0, options).score_P)).tolist() == [0]
    assert not np.isnan(lf(statistics, 0, replace(options, alpha=0.0)).score_P).any()


@pytest.mark.parametrize("how", NORMALISATIONS)
@pytest.mark.parametrize("seed", range(5))
def test_lf_at_the_ends_of_alpha_selects_as_its_one_term(how, seed):
    """However it is normalised: a normalisation keeps the order."""
    statistics = draw(num_entries=40, seed=seed)
    for ratio in (0.05, 0.3, 0.7):
        of_fisher, of_l2 = core(fisher(statistics, 1, Options()), ratio), core(l2(statistics, 1, Options()), ratio)
        assert core(lf(statistics, 1, Options(alpha=0.0, normalise=how)), ratio) == of_fisher
        assert core(lf(statistics, 1, Options(alpha=1.0, normalise=how)), ratio) == of_l2
        assert of_fisher != of_l2


def test_lf_is_the_weighted_sum_of_its_terms():
    statistics = draw()
    for options in (Options(alpha=0.3, normalise=how, normalise_within="kind") for how in NORMALISATIONS):
        found = lf(statistics, 0, options)
        one, other = found.terms["l2_norm_score"], found.terms["fisher_norm_score"]
        assert found.score_P == pytest.approx(0.3 * one + 0.7 * other, rel=1e-12)
        assert np.array_equal(one, normalise(l2(statistics, 0, options).score_P, options.normalise, statistics.kinds_P))
        assert np.array_equal(found.terms["fisher_info"], fisher(statistics, 0, options).score_P)


def test_lf_without_fisher_is_l2_alone():
    statistics = replace(draw(), fisher_PK=None)
    found = lf(statistics, 0, Options(alpha=1.0))
    assert found.terms.keys() == {"l2_delta", "l2_norm_score"}
    assert core(found) == core(l2(statistics, 0, Options()))
    with pytest.raises(ValueError, match="needs Fisher information"):
        lf(statistics, 0, Options(alpha=0.99))


def test_specificity_knows_same_and_opposite_directions():
    same = np.array([[1.0, 2.0], [2.0, 4.0]])
    opposite = np.array([[1.0, 2.0], [-3.0, -6.0]])
    statistics = Statistics(np.stack([same @ same.T, opposite @ opposite.T]), np.array([2, 2]))
    assert cs(statistics, 0, Options()).score_P == pytest.approx([0.0, 2.0], abs=1e-12)


def test_two_tasks_get_the_same_specificity():
    statistics = draw(2)
    assert np.array_equal(cs(statistics, 0, Options()).score_P, cs(statistics, 1, Options()).score_P)


def test_a_task_that_did_not_move_an_entry_is_left_out_of_the_others_means():
    statistics = draw(3, zero=[(2, 1), (4, 1), (4, 2)])
    for task, unscored in ((0, [4]), (1, [2, 4]), (2, [4])):
        assert np.flatnonzero(np.isnan(cs(statistics, task, Options()).score_P)).tolist() == unscored
    found = cs(statistics, 0, Options())
    assert found.score_P[2] == pytest.approx(1 - statistics.cosines_PKK[2, 0, 2], rel=1e-12)
    assert found.terms_of(2).keys() == {"mean_cosine", "cosine with 2"}
    assert cs(statistics, 0, Options(zero_delta="cosine-0")).score_P[4] == 1.0


def test_terms_bear_the_names_of_tasks():
    statistics = replace(draw(3), tasks_K=("math", "code", "law"))
    found = cs(statistics, 1, Options())
    assert list(found.terms) == ["mean_cosine", "cosine with math", "cosine with law"]
    assert found.terms_of(3)["cosine with law"] == statistics.cosines_PKK[3, 1, 2]


@pytest.mark.parametrize("mean_of_replicates", [False, True])
def test_corrected_cosines_are_those_of_the_noiseless_deltas(mean_of_replicates):
    """Signals of a known cosine, noise of known size: what is corrected is near the truth, what is plain is not."""
    rng, numel, noise = np.random.default_rng(0), 200_000, 1.5
    first = rng.normal(size=numel)
    signals = np.stack([first, 0.6 * first + 0.8 * rng.normal(size=numel)])
    a, b = (signals + noise * rng.normal(size=(2, numel)) for _ in range(2))
    delta = (a + b) / 2 if mean_of_replicates else a
    reliability = (a * b).sum(axis=1) / (delta * delta).sum(axis=1)
    statistics = Statistics((delta @ delta.T)[None], np.array([numel]), reliability_PK=reliability[None])
    truth = signals[0] @ signals[1] / np.linalg.norm(signals[0]) / np.linalg.norm(signals[1])
    assert cs(statistics, 0, Options(cosine="corrected")).score_P[0] == pytest.approx(1 - truth, abs=0.02)
    assert cs(statistics, 0, Options()).score_P[0] > 1 - truth + 0.2


def test_what_is_not_reproduced_is_not_corrected_but_left_out():
    statistics = draw(3)
    reliability = statistics.reliability_PK.copy()
    reliability[0, 0] = reliability[1, 1] = RELIABILITY_FLOOR
    reliability[2, 2], reliability[3, 1:], reliability[5] = math.nan, -0.5, [0.4, 0.9, 0.1000001]
    statistics = replace(statistics, reliability_PK=reliability)
    for options in (Options(cosine="corrected"), Options(cosine="corrected", zero_delta="cosine-0")):
        found = cs(statistics, 0, options)
        assert np.flatnonzero(np.isnan(found.score_P)).tolist() == [0, 3]
        expected = statistics.cosines_PKK[1, 0, 2] / math.sqrt(reliability[1, 0] * reliability[1, 2])
        assert found.score_P[1] == pytest.approx(1 - np.clip(expected, -1, 1), rel=1e-12)
        assert found.terms_of(2).keys() == {"mean_cosine", "cosine with 1"}
        assert (np.delete(found.score_P, [0, 3]) >= 0).all()
        assert (np.delete(found.score_P, [0, 3]) <= 2).all()


@pytest.mark.parametrize(
    ("name", "changes", "options", "message"),
    [
        ("l2", {"base_norms_P": None}, Options(l2="relative"), "norms of the base"),
        ("l2", {}, Options(l2="max"), "none of norm, rms, relative"),
        ("fisher", {"fisher_PK": None}, Options(), "needs Fisher"),
        ("fisher", {}, Options(fisher_size="median"), "none of sum, mean"),
        ("lf", {"kinds_P": None}, Options(normalise_within="kind"), "the kind of every entry"),
        ("lf", {}, Options(normalise_within="layer"), "none of all, kind"),
        ("cs", {"reliability_PK": None}, Options(cosine="corrected"), "two replicates"),
        ("cs", {}, Options(cosine="squared"), "none of plain, corrected"),
        ("cs", {}, Options(zero_delta="drop"), "none of unscored, cosine-0"),
    ],
)
def test_what_was_not_computed_is_said(name, changes, options, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](replace(draw(), **changes), 0, options, None)


def test_one_task_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="at least two"):
        cs(draw(1), 0, Options())


def test_statistics_of_other_entries_are_refused():
    with pytest.raises(ValueError, match=r"fisher_PK has shape \[12, 2\], expected \[12, 3\]"):
        replace(draw(3), fisher_PK=np.ones((12, 2)))
    with pytest.raises(ValueError, match=r"kinds_P has shape \[1\]"):
        replace(draw(3), kinds_P=("norm",))


# Both profiles, against tests/reference/authors_scores.py.

SHAPES = {"embed": (20, 6), "q": (6, 6), "q_bias": (6,), "up": (12, 6), "down": (6, 12), "norm": (6,), "still": (6,)}
SHAPES |= {f"layer{index}": (3 + index, 4) for index in range(23)}
TASKS = ("math", "code", "law")


def models(seed=0, still=("still",)):
    """A base, a fine-tuned model for each task, and gradients of five examples; `still` did not move at all."""
    generator = torch.Generator().manual_seed(seed)

    def tensors(scale):
        return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}

    base, common = tensors(1.0), tensors(1e-3)
    tuned = {}
    for task in TASKS:
        moved = tensors(1e-3)
        tuned[task] = {n: base[n] + (0 if n in still else moved[n] + common[n]) for n in SHAPES}
    return base, tuned, [tensors(1e-2) for _ in range(5)]


def statistics_of(base, tuned, gradients):
    deltas = [torch.stack([(tuned[t][n].double() - base[n].double()).flatten() for t in TASKS]) for n in SHAPES]
    squares = [sum(g[n].double().square().sum().item() for g in gradients) / len(gradients) for n in SHAPES]
    return Statistics(
        np.stack([(d @ d.T).numpy() for d in deltas]),
        np.array([d.shape[1] for d in deltas]),
        fisher_PK=np.array(squares)[:, None].repeat(len(TASKS), axis=1),
        tasks_K=TASKS,
    )


def options_of(profile, **given):
    settings = ScoreSettings.of(profile, **given)
    return Options(**{one.name: getattr(settings, one.name) for one in fields(Options)}), settings.ratio


def assert_as_written_out(found, expected, ratio):
    for index, name in enumerate(SHAPES):
        score = expected.scores[name]
        assert found.score_P[index] == pytest.approx(math.nan if score is None else score, rel=1e-10, nan_ok=True)
        terms = found.terms_of(index)
        assert {key: terms[key] for key in expected.terms[name]} == pytest.approx(expected.terms[name], rel=1e-10)
    assert [list(SHAPES)[index] for index in core(found, ratio)] == expected.core


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_profiles_of_lf_are_what_was_written_out(ratio, seed):
    base, tuned, gradients = models(seed)
    statistics = statistics_of(base, tuned, gradients)
    cores = []
    for profile, reference in (("paper", paper_lf), ("authors-code", authors_lf)):
        options, _ = options_of(profile)
        for index, task in enumerate(TASKS):
            expected = reference(base, tuned[task], gradients, ratio)
            assert_as_written_out(lf(statistics, index, options), expected, ratio)
        cores.append(expected.core)
    assert cores[0] != cores[1]


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.15, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_profiles_of_cs_are_what_was_written_out(ratio, seed):
    base, tuned, gradients = models(seed)
    tuned["code"]["layer3"] = base["layer3"].clone()  # one task alone did not move it
    statistics = statistics_of(base, tuned, gradients)
    for profile, reference in (("paper", paper_cs), ("authors-code", authors_cs)):
        options, _ = options_of(profile)
        for index, task in enumerate(TASKS):
            assert_as_written_out(cs(statistics, index, options), reference(base, tuned, task, ratio), ratio)


def test_the_ratios_of_the_profiles():
    assert options_of("paper")[1] == 0.05
    assert options_of("authors-code")[1] == 0.1
