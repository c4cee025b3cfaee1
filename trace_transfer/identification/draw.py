"""Importance heatmaps (the paper's figures 6, A.1 and A.2): as a page, as a picture, in a report.

A row of the figure is a task: a pair of panels, projections and norms, for each warm-start length. What is outside the
layers stands in bands below layer 0 and above the last layer, as in the model. A tensor of no known component is named
and not drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from trace_transfer import figures
from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.errors import UserError, few, listing
from trace_transfer.families.language import default_role
from trace_transfer.figures import Axis, Cells, Marks, Panel, tick_step
from trace_transfer.pages import escaped
from trace_transfer.records import model_line

PROJECTIONS, NORMS = "projections", "norms"
LEAST_BAND = 1 / 26  # a band's share of the height of all layers, at least; one layer's height if that is more
BAND_GAP = 0.35  # of a band
NUM_DESCRIBED = 3  # tensors of a cell that are described one by one
LEAST_MARK = 0.15  # area of a mark that says that little is core

COLUMN, NARROW_COLUMN, WIDEST = 46, 22, 1060  # px of a column, of one among many, of all cells
LAYER, SMALLEST, LARGEST = 15, 190, 760  # px of a layer, of all of them
GAP, PAIR_GAP = 14, 44  # px between the panels of a pair, between pairs
DOT = 0.55  # diameter of the dot of an entirely core cell, of the cell's shorter side
CAPTION = (
    "Each cell is the score of a module's weight: layers upwards from 0, modules to the right. All warm-start lengths "
    "of a task share the scale of the scores in its layers. A few large scores can leave all others dark: ranks show "
    "those. A dot marks what is core, a small one what is core in part; grey cells have no score. Point at a cell for "
    "its tensor, score and rank; drag to enlarge, double-click to go back. "
)


class Column(NamedTuple):
    """A column of one of the panels, or a band across it (`level` -2, -1 below the layers, 1 above, 0 for a column)."""

    label: str
    panel: str
    meaning: str
    level: int = 0


# (component, whether it is the norm of a projection's output) → column, from left to right.
COLUMNS: dict[tuple[str, bool], Column] = {
    ("attention.query", False): Column("A-Q", PROJECTIONS, "attention query"),
    ("attention.key", False): Column("A-K", PROJECTIONS, "attention key"),
    ("attention.value", False): Column("A-V", PROJECTIONS, "attention value"),
    ("attention.output", False): Column("A-O", PROJECTIONS, "attention output"),
    ("mlp.router", False): Column("M-R", PROJECTIONS, "MLP router"),
    ("mlp.gate", False): Column("M-G", PROJECTIONS, "MLP gate"),
    ("mlp.up", False): Column("M-U", PROJECTIONS, "MLP up"),
    ("mlp.down", False): Column("M-D", PROJECTIONS, "MLP down"),
    ("norm.pre_attention", False): Column("LN-In", NORMS, "norm before attention"),
    ("attention.query", True): Column("Q-Norm", NORMS, "norm of the queries"),
    ("attention.key", True): Column("K-Norm", NORMS, "norm of the keys"),
    ("norm.post_attention", False): Column("LN-OutA", NORMS, "norm of what attention adds"),
    ("norm.pre_mlp", False): Column("LN-PA", NORMS, "norm before the MLP (LLaMA's post-attention layernorm)"),
    ("norm.post_mlp", False): Column("LN-OutM", NORMS, "norm of what the MLP adds"),
}
BANDS: dict[str, Column] = {
    "embedding": Column("embed", PROJECTIONS, "token embedding", -2),
    "embedding.position": Column("pos", PROJECTIONS, "position embedding", -1),
    "head": Column("head", PROJECTIONS, "output head", 1),
    "norm.final": Column("final", NORMS, "norm after the last layer", 1),
}


class Cell(NamedTuple):
    """What is told of the tensors of one module of one layer: the mean score and rank (1 for the best of the file, 0
    for the last) of the weight's parts, or of biases where there is nothing else; the core share of its elements, a
    small one where only a bias is core; and lines about the best tensors."""

    score: float | None
    rank: float | None
    mark: float
    lines: tuple[str, ...]


Place = tuple[int | None, Column]  # a layer, and a column; a band has no layer
Ranked = tuple[CoreTensor, int]  # the rank counts from 1 among the scored tensors of a file
Grid = Mapping[Place, Cell]  # of one core file


@dataclass(frozen=True)
class Layout:
    """The columns and bands that occur in any of the core files, and where they are drawn."""

    num_layers: int
    columns: Mapping[str, Sequence[Column]]
    bands: Sequence[Column]

    @property
    def panels(self) -> list[str]:
        return [name for name, own in self.columns.items() if own or any(band.panel == name for band in self.bands)]

    def width(self, panel: str) -> int:
        return max(len(self.columns[panel]), 1)  # a band alone needs a column

    def edges(self, band: Column) -> tuple[float, float]:
        height = max(self.num_layers * LEAST_BAND, 1.0)
        if band.level > 0:
            start = self.num_layers - 0.5 + BAND_GAP * height
            return start, start + height
        below = sorted((other.level for other in self.bands if other.level < 0), reverse=True).index(band.level)
        stop = -0.5 - BAND_GAP * height - below * height * (1 + BAND_GAP / 2)
        return stop - height, stop


def figure(cores: Sequence[CoreFile]) -> figures.Figure:
    """A row for each task (and method, if there are several), in the order of the core files of one model."""
    _check(cores)
    grids = [cells_of(core) for core in cores]
    used = {column for grid in grids for _, column in grid}
    if not used:
        raise UserError("no tensor is said to be of a known component; `trace-transfer import` says so of a model's")
    known = [one for one in COLUMNS.values() if one in used]
    columns = {name: [one for one in known if one.panel == name] for name in (PROJECTIONS, NORMS)}
    layout = Layout(cores[0].model.num_layers, columns, [band for band in BANDS.values() if band in used])
    lengths = sorted({epochs_of(core) for core in cores})
    several = len({core.method.name for core in cores}) > 1
    tasks: dict[str, dict[float, Grid]] = {}
    for core, grid in zip(cores, grids, strict=True):
        name = core.task + (f", {core.method.name}" if several else "")
        tasks.setdefault(name, {})[epochs_of(core)] = grid
    ids = dict.fromkeys(core.model.id for core in cores)
    model = ", ".join(one.rstrip("/").rpartition("/")[2] or one for one in ids)
    key = "; ".join(f"**{escaped(one.label)}** {escaped(one.meaning)}" for one in (*known, *layout.bands))
    return figures.Figure(
        f"Parameter importance: {model}", "; ".join(dict.fromkeys(map(_method, cores))),
        [_row(layout, name, {one: by_length.get(one) for one in lengths}) for name, by_length in tasks.items()],
        _note(cores), "no score", f"{CAPTION}{key}.", ranks=True,
    )  # fmt: skip


def _check(cores: Sequence[CoreFile]) -> None:
    if not cores:
        raise UserError("no core file is given; importance heatmaps are drawn of one or more")
    if len({core.model.names_sha256 for core in cores}) > 1:
        models = listing([f"{core.task}: {model_line(core.model)}" for core in cores])
        raise UserError(f"the core files are of several models, but one figure is of one:\n{models}")
    places = Counter(f"task {core.task}, method {core.method.name}, {_title(epochs_of(core))}" for core in cores)
    if twice := [place for place, count in places.items() if count > 1]:
        raise UserError(f"several core files of one task, method and warm-start length; give one:\n{listing(twice)}")


def epochs_of(core: CoreFile) -> float:
    found = (core.method.model_extra or {}).get("epochs")
    return found if isinstance(found, int | float) and found > 0 else 1


def _title(epochs: float) -> str:
    return f"{epochs:g} epoch" + ("" if epochs == 1 else "s")


def _method(core: CoreFile) -> str:
    method = core.method
    alpha = (method.model_extra or {}).get("alpha") if method.name == "lf" else None
    name = method.name if alpha is None else f"{method.name} (alpha {alpha})"
    return f"{name}, core: top {100 * method.ratio:.3g} % of {method.unit}"


def _note(cores: Sequence[CoreFile]) -> str:
    found = [one for core in cores for one in core.parameters if not any(_places(one, core.model.num_layers))]
    names = list(dict.fromkeys(one.name for one in found))
    return f"Not drawn, being of no known component: {len(names):,} ({few(names, 4)})" if names else ""


def _places(tensor: CoreTensor, num_layers: int) -> Iterator[tuple[int | None, Column]]:
    """Layer and column, several if the tensor is fused or tied; a band has no layer, a column one of the model's."""
    for component in (tensor.component or "").split("+"):
        is_norm = default_role(tensor.name) == "norm" and not component.startswith("norm.")
        if component in BANDS and tensor.layer is None:
            yield None, BANDS[component]
        elif (component, is_norm) in COLUMNS and tensor.layer is not None and tensor.layer < num_layers:
            yield tensor.layer, COLUMNS[component, is_norm]


def cells_of(core: CoreFile) -> Grid:
    ordered = sorted(core.parameters, key=lambda one: (one.score is None, -(one.score or 0.0)))
    found: dict[Place, list[Ranked]] = {}
    for rank, tensor in enumerate(ordered, start=1):
        for place in dict.fromkeys(_places(tensor, core.model.num_layers)):
            found.setdefault(place, []).append((tensor, rank))
    num_ranked = sum(tensor.score is not None for tensor in ordered)
    return {place: _cell(tensors, num_ranked) for place, tensors in found.items()}


def _cell(tensors: Sequence[Ranked], num_ranked: int) -> Cell:
    """`tensors` by rank."""
    biases = [one for one in tensors if default_role(one[0].name) == "bias"]
    weights = [one for one in tensors if default_role(one[0].name) != "bias"]
    principals = weights or biases
    scores = [tensor.score for tensor, _ in principals if tensor.score is not None]
    score, best = None, None
    if scores:
        score = sum(scores) / len(scores)
        best = sum(1 - (rank - 1) / max(num_ranked - 1, 1) for _, rank in principals[: len(scores)]) / len(scores)
    share = sum(tensor.num_core for tensor, _ in principals) / sum(tensor.num_elements for tensor, _ in principals)
    mark = max(share, LEAST_MARK) if any(tensor.core for tensor, _ in tensors) else 0.0
    lines = []
    if len(principals) > 1:
        mean = "no score" if score is None else f"mean score {score:.4g}"
        lines.append(f"{len(principals):,} parts, {mean}, {share:.1%} of the parameters core")
    shown = [*weights, *biases]
    for tensor, rank in shown[:NUM_DESCRIBED]:
        lines += [tensor.label, _described(tensor, rank, num_ranked)]
    lines += [f"… and {len(shown) - NUM_DESCRIBED:,} more"] * (len(shown) > NUM_DESCRIBED)
    return Cell(score, best, mark, tuple(lines))


def _described(tensor: CoreTensor, rank: int, num_ranked: int) -> str:
    if tensor.score is None:
        return "no score"
    state = "core" if tensor.core else "not core"
    if tensor.chosen is not None:
        state = f"{tensor.chosen / tensor.num_elements:.2%} of its parameters core"
    return f"score {tensor.score:.4g}, rank {rank:,} of {num_ranked:,}, {state}"


def _row(layout: Layout, title: str, grids: Mapping[float, Grid | None]) -> figures.Row:
    """Panels of one task, by warm-start length; None where there is no core file of that length."""
    edges = [edge for band in layout.bands for edge in layout.edges(band)]
    low, high = min([-0.5, *edges]), max([layout.num_layers - 0.5, *edges])
    width = min(max(WIDEST / (len(grids) * sum(map(layout.width, layout.panels))), NARROW_COLUMN), COLUMN)
    height = min(max((high - low) * LAYER, SMALLEST), LARGEST)
    dot = min(max(min(height / (high - low), width) * DOT, 4), 12)
    step = tick_step(height / (high - low), figures.TICK_HEIGHT)
    first = layout.panels[0]
    bands = {
        name: {sum(layout.edges(band)) / 2: band.label for band in layout.bands if band.panel == name}
        for name in layout.panels
    }
    layers = {float(layer): str(layer) for layer in range(0, layout.num_layers, step)} | bands[first]
    panels: list[Panel] = []
    for epochs, grid in grids.items():
        for name in layout.panels:
            labels = {float(at): column.label for at, column in enumerate(layout.columns[name])}
            told = name == first
            panel = Panel(
                Axis(-0.5, layout.width(name) - 0.5, ticks=labels),
                Axis(low, high, "layer" if told and not panels else "", layers), width * layout.width(name), height,
                title=_title(epochs) if told and len(grids) > 1 else "",
                gap=0 if not panels else PAIR_GAP if told else GAP,
            )  # fmt: skip
            if grid is not None:
                cells, dots = _cells(layout, grid, name), _dots(layout, grid, name, dot)
                panel = replace(panel, cells=cells, marks=dots, beside={} if told else bands[name])
            elif told:
                panel = replace(panel, note=f"no core file of {_title(epochs)}")
            panels.append(panel)
    return figures.Row(title, panels, _scale(grids.values()), "score")


def _scale(grids: Iterable[Grid | None]) -> tuple[float, float]:
    """The least and the largest score inside the layers, of all lengths together."""
    places = [(layer, cell) for grid in grids for (layer, _), cell in (grid or {}).items()]
    scores = [cell.score for layer, cell in places if layer is not None and cell.score is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _cells(layout: Layout, grid: Grid, panel: str) -> list[Cells]:
    columns, across = layout.columns[panel], (-0.5, layout.width(panel) - 0.5)
    inside: list[list[Place]] = [[(layer, column) for column in columns] for layer in range(layout.num_layers)]
    parts = [(inside, (-0.5, layout.num_layers - 0.5))] if inside and columns else []
    parts += [([[(None, band)]], layout.edges(band)) for band in layout.bands if band.panel == panel]
    found = []
    for places, edges in parts:
        cells = [[grid.get(place) for place in line] for line in places]
        texts = [["\n".join(_told(*place, grid.get(place))) for place in line] for line in places]
        there = np.array([[cell is not None for cell in line] for line in cells])
        scores, ranks = (
            np.array([[getattr(cell, what, None) for cell in line] for line in cells], float)
            for what in ("score", "rank")
        )
        found.append(Cells(scores, texts, there, across, edges, ranks))
    return found


def _told(layer: int | None, column: Column, cell: Cell | None) -> list[str]:
    where = column.meaning if layer is None else f"layer {layer}, {column.label} ({column.meaning})"
    return [where, *(cell.lines if cell else ["no such tensor"])]


def _dots(layout: Layout, grid: Grid, panel: str, size: float) -> list[Marks]:
    found: list[tuple[float, float, float]] = []
    for (layer, column), cell in grid.items():
        if column.panel == panel and cell.mark:
            across = (layout.width(panel) - 1) / 2 if layer is None else layout.columns[panel].index(column)
            up = sum(layout.edges(column)) / 2 if layer is None else layer
            found.append((across, up, max(cell.mark**0.5 * size, 2)))
    places = np.array(sorted(found), float).reshape(-1, 3)
    return [Marks("core", places[:, :2], sizes=places[:, 2].tolist())] if found else []
