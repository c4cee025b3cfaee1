"""Every scoring method: one contract over the registry, and each against its formula in plain loops."""

import math

import numpy as np
import pytest

from trace_transfer.cli.score import METHODS as OFFERED
from trace_transfer.maths.saliency import METHODS, Deltas, l2_norm, l2_rms, specificity


def draw(num_tasks=3, sizes=(1, 5, 40, 7), seed=0, zero=()):
    """Deltas [K, n] of each parameter, and their `Deltas`; `zero` are (parameter, task) that did not move."""
    rng = np.random.default_rng(seed)
    deltas = [rng.normal(size=(num_tasks, n)) * 10.0 ** rng.integers(-6, 2) for n in sizes]
    for parameter, task in zero:
        deltas[parameter][task] = 0
    return deltas, Deltas(np.stack([d @ d.T for d in deltas]), np.array(sizes))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("num_tasks", [2, 3, 5])
def test_one_score_per_parameter_finite_where_all_moved(name, num_tasks):
    _, table = draw(num_tasks)
    for task in range(num_tasks):
        scores = METHODS[name](table, task)
        assert scores.shape == (4,)
        assert scores.dtype == np.float64
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_the_other_tasks_does_not_matter(name):
    _, table = draw(4)
    order = [0, 3, 1, 2]
    shuffled = Deltas(table.gram_PKK[:, order][:, :, order], table.numel_P)
    assert np.allclose(METHODS[name](table, 0), METHODS[name](shuffled, 0), rtol=1e-12)


def test_norms_against_loops():
    deltas, table = draw()
    for task in range(3):
        for p, delta in enumerate(deltas):
            norm = math.sqrt(sum(value * value for value in delta[task]))
            assert l2_norm(table, task)[p] == pytest.approx(norm, rel=1e-12)
            assert l2_rms(table, task)[p] == pytest.approx(norm / math.sqrt(delta.shape[1]), rel=1e-12)


def test_specificity_against_loops():
    deltas, table = draw(4)
    for task in range(4):
        for p, delta in enumerate(deltas):
            cosines = [
                sum(a * b for a, b in zip(delta[task], delta[k], strict=True))
                / math.sqrt(sum(a * a for a in delta[task]) * sum(b * b for b in delta[k]))
                for k in range(4)
                if k != task
            ]
            assert specificity(table, task)[p] == pytest.approx(1 - sum(cosines) / 3, abs=1e-12)


def test_specificity_knows_same_and_opposite_directions():
    same = np.array([[1.0, 2.0], [2.0, 4.0]])
    opposite = np.array([[1.0, 2.0], [-3.0, -6.0]])
    table = Deltas(np.stack([same @ same.T, opposite @ opposite.T]), np.array([2, 2]))
    assert specificity(table, 0) == pytest.approx([0.0, 2.0], abs=1e-12)


def test_a_parameter_that_did_not_move_has_no_specificity_and_the_smallest_norm():
    _, table = draw(zero=[(2, 1)])
    assert np.isnan(specificity(table, 0)[2])
    assert np.isnan(specificity(table, 1)[2])
    assert not np.isnan(specificity(table, 0)[[0, 1, 3]]).any()
    assert l2_rms(table, 1)[2] == 0


def test_two_tasks_get_the_same_specificity():
    _, table = draw(2)
    assert np.array_equal(specificity(table, 0), specificity(table, 1))


def test_one_task_has_nothing_to_be_compared_with():
    _, table = draw(1)
    with pytest.raises(ValueError, match="at least two"):
        specificity(table, 0)


def test_the_command_offers_every_method():
    assert set(OFFERED) == set(METHODS)
