"""How well embeddings of texts keep tasks apart: silhouette, distances, spread; t-SNE and ellipses to look at them.

Shapes: N texts, D dimensions, K tasks. `task_N` holds for each text the number of its task, 0 to K-1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


def silhouette(embeddings_ND: NDArray[np.floating], task_N: Labels) -> float:
    """Mean over texts of (b - a) / max(a, b), in [-1, 1] (Rousseeuw, 1987).

    a is the mean Euclidean distance to the other texts of the own task, b that to the texts of the nearest other task;
    a text that is alone in its task counts 0. At least two tasks.
    """
    from sklearn.metrics import silhouette_score

    # In float64: float32 squares lose the small distances of embeddings with a large common part.
    return float(silhouette_score(np.asarray(embeddings_ND, np.float64), task_N))


def centroids(embeddings_ND: NDArray[np.floating], task_N: Labels) -> Matrix:
    """The mean of each task's texts, [K, D]."""
    embeddings_ND = np.asarray(embeddings_ND, np.float64)
    return np.stack([embeddings_ND[task_N == task].mean(axis=0) for task in range(int(task_N.max()) + 1)])


def centroid_distances(embeddings_ND: NDArray[np.floating], task_N: Labels) -> Matrix:
    """Euclidean distances between the tasks' centroids, symmetric [K, K]."""
    centres_KD = centroids(embeddings_ND, task_N)
    distances_KK: Matrix = np.linalg.norm(centres_KD[:, None] - centres_KD[None], axis=-1)
    return distances_KK


def spread(embeddings_ND: NDArray[np.floating], task_N: Labels) -> Matrix:
    """Mean distance of each task's texts from its centroid, [K]."""
    centres_KD = centroids(embeddings_ND, task_N)
    distance_N = np.linalg.norm(np.asarray(embeddings_ND, np.float64) - centres_KD[task_N], axis=-1)
    return np.array([distance_N[task_N == task].mean() for task in range(len(centres_KD))])


def mean_distance(distances_KK: Matrix) -> float:
    """Mean over all pairs of tasks (S of the paper's figure 3); two tasks at least."""
    return float(distances_KK[np.triu_indices(len(distances_KK), 1)].mean())


def tsne(points_ND: NDArray[np.floating], *, perplexity: float, seed: int) -> NDArray[np.float32]:
    """Coordinates [N, 2] in which near points stay near (van der Maaten and Hinton, 2008); distances mean little.

    Begins with the first two principal components, so that groups that lie far apart do so in the picture more often
    than from a random beginning. The same on the same machine for the same seed.
    """
    from sklearn.manifold import TSNE

    reduced = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    return np.asarray(reduced.fit_transform(np.asarray(points_ND, np.float32)), np.float32)


def covariance_ellipse(points_N2: NDArray[np.floating], share: float = 0.95, num_points: int = 73) -> Matrix:
    """A closed line [num_points, 2] around that share of a normal distribution with the points' mean and covariance.

    Its half axes are sqrt(eigenvalue x quantile), the quantile that of chi-squared with two degrees of freedom, which
    is -2 ln(1 - share). Two points at least.
    """
    points_N2 = np.asarray(points_N2, np.float64)
    values, vectors = np.linalg.eigh(np.cov(points_N2.T))
    short, long = np.sqrt(np.maximum(values, 0) * -2 * np.log1p(-share))
    along, turn = vectors[:, 1], np.linspace(0, 2 * np.pi, num_points)
    across = np.array([-along[1], along[0]])
    around_N2 = np.outer(long * np.cos(turn), along) + np.outer(short * np.sin(turn), across)
    line_N2: Matrix = around_N2 + points_N2.mean(axis=0)
    return line_N2
