"""What is said of embeddings against loops, and what must not change it."""

from math import dist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from trace_transfer.represent.draw import centroid_distances, covariance_ellipse, mean_distance, silhouette, spread


def draw(seed, sizes=(7, 5, 9), width=6, apart=1.5):
    generator = np.random.default_rng(seed)
    task_N = np.repeat(np.arange(len(sizes)), sizes)
    points = generator.normal(size=(len(task_N), width))
    return points + apart * generator.normal(size=(len(sizes), width))[task_N], task_N


def silhouette_by_hand(points, tasks):
    values = []
    for i, point in enumerate(points):
        means = {}
        for task in set(tasks.tolist()):
            others = [dist(point, other) for j, other in enumerate(points) if tasks[j] == task and j != i]
            means[task] = sum(others) / len(others) if others else None
        own = means.pop(int(tasks[i]))
        nearest = min(means.values())
        values.append(0.0 if own is None else (nearest - own) / max(nearest, own))
    return sum(values) / len(values)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_silhouette_is_its_definition(seed, sizes):
    sizes[0] += 1  # not every text alone in its task
    points, tasks = draw(seed, tuple(sizes))
    assert silhouette(points, tasks) == pytest.approx(silhouette_by_hand(points, tasks), abs=1e-9)


def test_a_large_common_part_of_float32_embeddings_hides_nothing():
    points, tasks = draw(3)
    moved = (points + 300).astype(np.float32)
    assert silhouette(moved, tasks) == pytest.approx(silhouette(points, tasks), abs=1e-4)


def test_distances_and_spread_by_hand():
    points, tasks = draw(4)
    centres = [np.mean([p for p, t in zip(points, tasks, strict=True) if t == task], axis=0) for task in range(3)]
    distances = centroid_distances(points, tasks)
    for a in range(3):
        for b in range(3):
            assert distances[a, b] == pytest.approx(dist(centres[a], centres[b]), abs=1e-9)
    assert mean_distance(distances) == pytest.approx((distances[0, 1] + distances[0, 2] + distances[1, 2]) / 3)
    for task in range(3):
        own = [dist(p, centres[task]) for p, t in zip(points, tasks, strict=True) if t == task]
        assert spread(points, tasks)[task] == pytest.approx(sum(own) / len(own))


def test_an_ellipse_is_where_its_share_of_a_normal_distribution_ends():
    share = 0.5
    covariance = np.array([[4.0, 1.5], [1.5, 1.0]])
    points = np.random.default_rng(5).multivariate_normal([3, -2], covariance, size=20_000)
    inverse = np.linalg.inv(np.cov(points.T))
    inside = np.einsum("ni,ij,nj->n", points - points.mean(0), inverse, points - points.mean(0))
    assert np.mean(inside <= chi2.ppf(share, 2)) == pytest.approx(share, abs=0.01)
    outline = covariance_ellipse(points, share, 200) - points.mean(0)
    on_it = np.einsum("ni,ij,nj->n", outline, inverse, outline)
    assert on_it == pytest.approx(np.full(200, chi2.ppf(share, 2)), rel=1e-6) and np.allclose(outline[0], outline[-1])
