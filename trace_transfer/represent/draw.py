"""How models represent the texts of several tasks: a panel of t-SNE coordinates per model; page and picture.

Shapes: N texts (task by task), K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray

from trace_transfer import figures
from trace_transfer.figures import Axis, Figure, Marks, Panel, Row, shortened
from trace_transfer.represent.embedding import covariance_ellipse, mean_distance
from trace_transfer.represent.records import RepresentationFile, RepresentedModel
from trace_transfer.tables import Table, to_markdown

METADATA_TEXTS = "texts"  # in embeddings.safetensors: JSON, id and first words of each text
# Okabe and Ito's colours, told apart by the colour-blind, without those too light for a white page; with the symbols
# 35 tasks look different.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4423")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "triangle-down")
OTHERS = "#d3d3d3"  # texts as the other models represent them
SHARE = 0.95
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
UNIFIED = (
    "All panels share one space and one scale, so that they can be compared; grey dots are the same texts as the other "
    "models represent them."
)
OTHER_KINDS = (
    " The models are not of one kind: though equally wide, their coordinates have nothing to do with each other, and "
    "texts lie apart by model first."
)
SEPARATE = (
    "The models are not equally wide, so that each has a space of its own: where a point lies in one panel says "
    "nothing about another."
)

Points2 = NDArray[np.float32]


@dataclass(frozen=True)
class Representation:
    """A `representation.json`, and of each of its models the t-SNE coordinates [N, 2].

    Attributes:
        texts: each has an `id` (`math:17`) and its first `words`, which may be empty.
    """

    file: RepresentationFile
    coordinates: Sequence[Points2]
    texts: Sequence[Mapping[str, str]]

    @property
    def unified(self) -> bool:
        """Whether all panels share one t-SNE space."""
        return self.file.settings.get("space") == "unified"

    @property
    def title(self) -> str:
        names = self.file.tasks
        several = f"{len(names)} tasks" if len(names) > MOST_PAIRS else ", ".join(names[:-1]) + f" and {names[-1]}"
        return f"Last-layer representations of {several}"

    @property
    def subtitle(self) -> str:
        settings, one = self.file.settings, len(self.file.models) == 1
        pooled = "the last token" if settings.get("pool") == "last" else "mean over tokens"
        space = "t-SNE" if one else "one t-SNE space of all models" if self.unified else "a t-SNE space of each model"
        drawn = f"perplexity {settings.get('perplexity', 0):g}, seed {settings.get('seed', '?')}"
        return f"Final hidden states, {pooled}; {sum(self.file.num_texts)} texts; {space} ({drawn})"

    def of_task(self, task: int) -> slice:
        start = sum(self.file.num_texts[:task])
        return slice(start, start + self.file.num_texts[task])


def write_html(path: Path, representation: Representation) -> None:
    """Write the interactive page."""
    kinds = {model.model.names_sha256 for model in representation.file.models}
    compare = UNIFIED + (OTHER_KINDS if len(kinds) > 1 else "") if representation.unified else SEPARATE
    caption = CAPTION.format(compare=compare if len(representation.file.models) > 1 else "")
    more = f"{to_markdown(table_of(representation.file))}\n\n{TOLD}"
    figures.write_html(path, figure(representation), caption, more)


def write_png(path: Path, representation: Representation) -> None:
    """Draw the picture, 150 dpi."""
    figures.write_png(path, figure(representation))


def figure(representation: Representation) -> Figure:
    """A panel for each model; the others' texts below, then the ellipses, then the points."""
    file, count = representation.file, len(representation.file.models)
    columns = count if count <= 3 else 2 if count == 4 else 3
    side = min((WIDTH - (columns - 1) * GAP) / columns, LARGEST_PANEL)
    ranges = _ranges(representation)
    size = 8.0 if sum(file.num_texts) <= 150 else 6.5 if sum(file.num_texts) <= 500 else 5.0
    panels = []
    for index, (model, points) in enumerate(zip(file.models, representation.coordinates, strict=True)):
        marks = _ellipses(representation, points)
        if representation.unified and count > 1:
            others = np.concatenate([one for other, one in enumerate(representation.coordinates) if other != index])
            marks.append(Marks("other models", others, OTHERS, 0.7 * size, edge=OTHERS))
        for task, name in enumerate(file.tasks):
            part = representation.of_task(task)
            texts = ["\n".join([one["id"], *wrap(one["words"], HOVER_WIDTH)]) for one in representation.texts[part]]
            symbol, colour = SYMBOLS[task % len(SYMBOLS)], COLOURS[task % len(COLOURS)]
            marks.append(Marks(name, points[part], colour, size, symbol, "white", texts=texts, opacity=0.85))
        title = f"{shortened(model.label, int(side / figures.CHARACTER))}\n{_told(model)}"
        x, y = (Axis(*ends, ticks={}) for ends in ranges[index])
        gap = GAP if index % columns else 0
        panels.append(Panel(x, y, side, side, (), marks, title, gap))
    return Figure(representation.title, representation.subtitle, [Row("", panels, columns=columns)])


def _ellipses(representation: Representation, points: Points2) -> list[Marks]:
    return [
        Marks("95 % ellipses", covariance_ellipse(points[representation.of_task(task)], SHARE).outline(),
              COLOURS[task % len(COLOURS)], dash="solid", filled=True)
        for task in range(len(representation.file.tasks))
    ]  # fmt: skip


def _ranges(representation: Representation) -> list[list[tuple[float, float]]]:
    """Of each panel in both coordinates, of equal length; the same for all in a unified space."""
    shown = [
        np.concatenate([points, *(line.places for line in _ellipses(representation, points))])
        for points in representation.coordinates
    ]
    if representation.unified:
        shown = [np.concatenate(shown)] * len(shown)
    found = []
    for points in shown:
        low, high = points.min(axis=0), points.max(axis=0)
        half = float((high - low).max()) * (0.5 + MARGIN) or 1.0
        found.append([(middle - half, middle + half) for middle in ((low + high) / 2).tolist()])
    return found


def _told(model: RepresentedModel) -> str:
    return f"silhouette {model.silhouette:.3f}, S {number(mean_distance(np.array(model.distances)))}"


def number(value: float) -> str:
    """Distances of embeddings are of any size; 0 is as it is."""
    if value and not 0.1 <= value < 1e5:
        return f"{value:.2e}"
    return f"{value:.2f}" if value >= 10 else f"{value:.3f}"


def table_of(file: RepresentationFile) -> Table:
    """A row per model: silhouette, S, distances between tasks (of many the extremes), spread of each."""
    tasks = file.tasks
    pairs = [(a, b) for a in range(len(tasks)) for b in range(a + 1, len(tasks))]
    few = len(pairs) <= MOST_PAIRS
    between = [f"{tasks[a]} – {tasks[b]}" for a, b in pairs] if few else ["nearest tasks", "farthest tasks"]
    rows = []
    for model in file.models:
        distances = {pair: model.distances[pair[0]][pair[1]] for pair in pairs}
        chosen = pairs if few else [least(distances, key=distances.__getitem__) for least in (min, max)]
        names = ["" if few else f" ({tasks[a]} – {tasks[b]})" for a, b in chosen]
        told = [number(distances[pair]) + name for pair, name in zip(chosen, names, strict=True)]
        mean = number(mean_distance(np.array(model.distances)))
        rows.append((model.label, f"{model.silhouette:.3f}", mean, *told, *map(number, model.spread)))
    headings = ("model", "silhouette", "S", *between, *(f"spread of {task}" for task in tasks))
    return Table("representation", "", headings, tuple(rows))
