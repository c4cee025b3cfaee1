"""How well embeddings of texts keep tasks apart, in numbers; and a panel of t-SNE coordinates for each model.

Shapes: N texts (task by task), D dimensions, K tasks. `task_N` holds for each text the number of its task, 0 to K-1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trace_transfer import figures
from trace_transfer.figures import Axis, Figure, Marks, Panel, Row, shortened
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.tables import Table, draw_tables, to_markdown
from trace_transfer.terminal import Page, as_text

if TYPE_CHECKING:
    from trace_transfer.represent.representing import RepresentPlan

METADATA_TEXTS = "texts"  # in embeddings.safetensors: JSON, id and first words of each text
# Okabe and Ito's colours, told apart by the colour-blind, without those too light for a white page; with the symbols
# 35 tasks look different.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4423")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "triangle-down")
OTHERS = "#d3d3d3"  # texts as the other models represent them
MARGIN = 0.06  # of the range around the outermost points
MOST_PAIRS = 6  # distances between tasks that a table lists; of more only the least and the largest
WIDTH, LARGEST_PANEL, GAP = 1120, 460, 16  # px of all panels, of the side of one, between them
HOVER_WIDTH = 56  # characters of a line
CAPTION = (
    "Each dot is one text; point at it for its first words. Ellipses hold 95 % of a normal distribution with the "
    "covariance of a task's dots. {compare} t-SNE keeps neighbours together; how far apart its groups lie, and how "
    "large they are, says little. Click a name to hide it; drag to enlarge, double-click to go back."
)
TOLD = (
    "The numbers are of the embeddings themselves, not of the picture: the silhouette is 1 where each text lies among "
    "its own task and far from the others, and 0 where tasks overlap; S is the mean distance between the tasks' "
    "centroids, the spread the mean distance of a task's texts from its own. Distances compare only between models of "
    "one kind."
)
# How the panels of several models compare.
UNIFIED = "All panels share one space and one scale; grey dots are the same texts as the other models represent them."
OTHER_KINDS = " The models are not of one kind: their coordinates have nothing to do with each other."
SEPARATE = "The models are not equally wide, so that each has a space of its own: panels do not compare."

Points2 = NDArray[np.float32]
Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


# ---- numbers


def silhouette(embeddings_ND: NDArray[np.floating], task_N: Labels) -> float:
    """Mean over texts of (b - a) / max(a, b), in [-1, 1] (Rousseeuw, 1987).

    a is the mean Euclidean distance to the other texts of the own task, b that to the texts of the nearest other task.
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
    return np.asarray(np.linalg.norm(centres_KD[:, None] - centres_KD[None], axis=-1))


def spread(embeddings_ND: NDArray[np.floating], task_N: Labels) -> Matrix:
    """Mean distance of each task's texts from its centroid, [K]."""
    centres_KD = centroids(embeddings_ND, task_N)
    distance_N = np.linalg.norm(np.asarray(embeddings_ND, np.float64) - centres_KD[task_N], axis=-1)
    return np.array([distance_N[task_N == task].mean() for task in range(len(centres_KD))])


def mean_distance(distances_KK: Matrix) -> float:
    """Mean over all pairs of tasks (S of the paper's figure 3); two tasks at least."""
    return float(distances_KK[np.triu_indices(len(distances_KK), 1)].mean())


def tsne(points_ND: NDArray[np.floating], *, perplexity: float, seed: int) -> NDArray[np.float32]:
    """Coordinates [N, 2] in which near points stay near (van der Maaten and Hinton, 2008); distances mean little."""
    from sklearn.manifold import TSNE

    reduced = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    return np.asarray(reduced.fit_transform(np.asarray(points_ND, np.float32)), np.float32)


def covariance_ellipse(points_N2: NDArray[np.floating], share: float = 0.95, num_points: int = 73) -> Matrix:
    """A closed line [num_points, 2] around that share of a normal distribution with the points' mean and covariance:
    its half axes are sqrt(eigenvalue x quantile), the quantile of chi-squared (2 degrees) being -2 ln(1 - share)."""
    points_N2 = np.asarray(points_N2, np.float64)
    values, vectors = np.linalg.eigh(np.cov(points_N2.T))
    short, long = np.sqrt(np.maximum(values, 0) * -2 * np.log1p(-share))
    along, turn = vectors[:, 1], np.linspace(0, 2 * np.pi, num_points)
    across = np.array([-along[1], along[0]])
    around_N2 = np.outer(long * np.cos(turn), along) + np.outer(short * np.sin(turn), across)
    return np.asarray(around_N2 + points_N2.mean(axis=0))


# ---- page and picture


def figure(file: RepresentationFile, coordinates: Sequence[Points2], texts: Sequence[Mapping[str, str]]) -> Figure:
    """A panel for each model; the others' texts below, then the ellipses, then the points.

    `coordinates` are the t-SNE of each model, [N, 2]; each text has an `id` (`math:17`) and its first `words`."""
    count, unified = len(file.models), file.settings.get("space") == "unified"
    ends = list(accumulate(file.num_texts, initial=0))
    columns = count if count <= 3 else 2 if count == 4 else 3
    side = min((WIDTH - (columns - 1) * GAP) / columns, LARGEST_PANEL)
    size = 8.0 if sum(file.num_texts) <= 150 else 6.5 if sum(file.num_texts) <= 500 else 5.0
    parts = [slice(start, end) for start, end in pairwise(ends)]
    looks = [(SYMBOLS[task % len(SYMBOLS)], COLOURS[task % len(COLOURS)]) for task in range(len(file.tasks))]
    outlines = [[covariance_ellipse(points[part]) for part in parts] for points in coordinates]
    shown = [np.concatenate([points, *lines]) for points, lines in zip(coordinates, outlines, strict=True)]
    panels = []
    for index, (model, points) in enumerate(zip(file.models, coordinates, strict=True)):
        marks = [
            Marks("95 % ellipses", outline, colour, dash="solid", filled=True)
            for outline, (_, colour) in zip(outlines[index], looks, strict=True)
        ]
        if unified and count > 1:
            others = np.concatenate([one for other, one in enumerate(coordinates) if other != index])
            marks.append(Marks("other models", others, OTHERS, 0.7 * size, edge=OTHERS))
        for name, part, (symbol, colour) in zip(file.tasks, parts, looks, strict=True):
            told = ["\n".join([one["id"], *wrap(one["words"], HOVER_WIDTH)]) for one in texts[part]]
            marks.append(Marks(name, points[part], colour, size, symbol, "white", texts=told, opacity=0.85))
        numbers = f"silhouette {model.silhouette:.3f}, S {mean_distance(np.array(model.distances)):.4g}"
        title = f"{shortened(model.label, int(side / figures.CHARACTER))}\n{numbers}"
        x, y = _square(np.concatenate(shown) if unified else shown[index])
        panels.append(Panel(x, y, side, side, (), marks, title, GAP if index % columns else 0))
    kinds = {model.model.names_sha256 for model in file.models}
    compare = UNIFIED + (OTHER_KINDS if len(kinds) > 1 else "") if unified else SEPARATE
    caption = CAPTION.format(compare=compare if count > 1 else "")
    more = f"{to_markdown(table_of(file))}\n\n{TOLD}"
    few = len(file.tasks) <= MOST_PAIRS
    title = f"Last-layer representations of {', '.join(file.tasks) if few else f'{len(file.tasks)} tasks'}"
    return Figure(title, _subtitle(file), [Row("", panels, columns=columns)], caption=caption, more=more)


def _subtitle(file: RepresentationFile) -> str:
    settings = file.settings
    pooled = "the last token" if settings.get("pool") == "last" else "mean over tokens"
    together = "one t-SNE space of all models" if settings.get("space") == "unified" else "a t-SNE space of each model"
    drawn = f"perplexity {settings.get('perplexity', 0):g}, seed {settings.get('seed', '?')}"
    return f"Final hidden states, {pooled}; {sum(file.num_texts)} texts; {together} ({drawn})"


def _square(places_N2: NDArray[np.floating]) -> list[Axis]:
    """Axes of equal length around all of these."""
    low, high = places_N2.min(axis=0), places_N2.max(axis=0)
    half = float((high - low).max()) * (0.5 + MARGIN) or 1.0
    return [Axis(float(middle - half), float(middle + half), ticks={}) for middle in (low + high) / 2]


def table_of(file: RepresentationFile) -> Table:
    """A row per model; of many distances between tasks the extremes."""
    names = {(a, b): f"{file.tasks[a]} – {file.tasks[b]}" for a, b in combinations(range(len(file.tasks)), 2)}
    few = len(names) <= MOST_PAIRS
    rows = []
    for model in file.models:
        distances = {(a, b): model.distances[a][b] for a, b in names}
        told = [f"{distance:.4g}" for distance in distances.values()]
        if not few:
            ends = (least(distances, key=distances.__getitem__) for least in (min, max))
            told = [f"{distances[pair]:.4g} ({names[pair]})" for pair in ends]
        mean, *spread = (f"{one:.4g}" for one in (mean_distance(np.array(model.distances)), *model.spread))
        rows.append((model.label, f"{model.silhouette:.3f}", mean, *told, *spread))
    between = names.values() if few else ("nearest tasks", "farthest tasks")
    headings = ("model", "silhouette", "S", *between, *(f"spread of {task}" for task in file.tasks))
    return Table("representation", "", headings, tuple(rows))


# ---- text


@as_text
def render_plan(page: Page, plan: RepresentPlan) -> None:
    page.line(f"texts: {_counts(plan.tasks, plan.num_texts)}", "bold")
    rows = []
    for one in plan.models:
        lengths = [len(text) for text in one.ids]
        rows.append((one.label, one.opened.name, one.opened.anatomy.family, one.width, len(one.state.patches),
                     sum(lengths), max(lengths), one.num_cut))  # fmt: skip
    page.table(("label", "model", "family", "width", "patches", "tokens", "longest", "cut"), rows)
    space = "one space for all models" if plan.unified else "models of different widths: a space for each"
    page.line(f"t-SNE: {space}; perplexity {plan.settings.perplexity:g}")


@as_text
def render_representation(page: Page, file: RepresentationFile, files: Sequence[Path]) -> None:
    draw_representation(page, file)
    page.written(files)


def draw_representation(page: Page, file: RepresentationFile) -> None:
    """How well each model keeps the tasks apart, and how the pictures compare."""
    page.line(f"Last-layer embeddings of texts: {_counts(file.tasks, file.num_texts)}", "bold")
    draw_tables([table_of(file)], page)
    page.line("S: mean distance between the tasks' centroids, which the columns after it are of")
    if len(file.models) > 1:
        apart = "a space for each model; panels do not compare"
        page.line(f"t-SNE: {'one space for all models' if file.settings.get('space') == 'unified' else apart}")
    for label, count in file.settings.get("num_cut", {}).items():
        if count:
            length = file.settings.get("max_length")
            page.line(f"! {label}: {count} of {sum(file.num_texts)} texts were cut at {length} tokens")


def _counts(tasks: Sequence[str], counts: Sequence[int]) -> str:
    return ", ".join(f"{task} {count}" for task, count in zip(tasks, counts, strict=True))
