"""What an importance heatmap shows: scores by layer and module, for each task and warm-start length.

Columns are the paper's (figures 6, A.1 and A.2): projections in one panel, norms in the
other. What is outside the layers stands in bands below layer 0 and above the last layer, as in the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from trace_transfer.core_sets.core_file import CoreFile, CoreParameter
from trace_transfer.identification.importance_places import BIAS, label
from trace_transfer.records import ModelIdentity

PROJECTIONS, NORMS = "projections", "norms"
LEAST_BAND = 1 / 26  # a band's share of the height of all layers, at least; one layer's height if that is more
BAND_GAP = 0.35  # of a band
NUM_DESCRIBED = 3  # parameters of a cell that are described one by one
DOT = 0.55  # diameter of the dot of an entirely core cell, of the cell's shorter side


class Column(NamedTuple):
    """A column of one of the panels, or a band across it (`level` -2, -1 below the layers, 1 above, 0 for a column)."""

    label: str
    panel: str
    meaning: str
    level: int = 0


PRE_MLP = Column("LN-PA", NORMS, "norm before the MLP (LLaMA's post-attention layernorm)")
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
    ("norm.post_attention", False): Column("LN-PostA", NORMS, "norm of what attention adds"),
    ("norm.pre_mlp", False): PRE_MLP,
    ("norm.post_mlp", False): Column("LN-PostM", NORMS, "norm of what the MLP adds"),
}
# LN-PA would be taken for LN-PostA beside it.
CLEARER = {PRE_MLP: Column("LN-PreM", NORMS, "norm before the MLP")}
BANDS: dict[str, Column] = {
    "embedding": Column("embed", PROJECTIONS, "token embedding", -2),
    "embedding.position": Column("pos", PROJECTIONS, "position embedding", -1),
    "head": Column("head", PROJECTIONS, "output head", 1),
    "norm.final": Column("final", NORMS, "norm after the last layer", 1),
}


class Entry(NamedTuple):
    """A parameter in a cell; `rank` counts from 1 among the scored parameters of its file, None without a score."""

    parameter: CoreParameter
    role: str
    rank: int | None


@dataclass(frozen=True)
class Cell:
    """All parameters of one module of one layer, the weight or its parts first, then biases."""

    entries: tuple[Entry, ...]

    @property
    def principals(self) -> tuple[Entry, ...]:
        """What colour and mark speak of: the weight or its parts; biases only where there is nothing else."""
        return tuple(entry for entry in self.entries if entry.role != BIAS) or self.entries

    @cached_property
    def score(self) -> float | None:
        """The weight's score, the mean of its parts' scores, or None."""
        scores = [entry.parameter.score for entry in self.principals if entry.parameter.score is not None]
        return sum(scores) / len(scores) if scores else None

    @cached_property
    def core_share(self) -> float:
        """Core share of the weight's elements."""
        total = sum(entry.parameter.num_elements for entry in self.principals)
        return sum(entry.parameter.num_elements for entry in self.principals if entry.parameter.core) / total

    @cached_property
    def mark(self) -> float:
        """Area of the cell's mark: the core share; a small one where only a bias is core; 0 for none."""
        if self.core_share:
            return max(self.core_share, 0.15)
        return 0.15 if any(entry.parameter.core for entry in self.entries) else 0.0

    def rank_share(self, num_ranked: int) -> float | None:
        """Where the weight stands among the scores of its file: 1 for the best, 0 for the last; the mean of parts."""
        shares = [1 - (entry.rank - 1) / max(num_ranked - 1, 1) for entry in self.principals if entry.rank is not None]
        return sum(shares) / len(shares) if shares else None

    def description(self, num_ranked: int) -> list[str]:
        """Name, score and rank of the parameters, as lines of text; parts are counted."""
        lines, shown = [], self.entries
        if len(self.principals) > 1:
            parameters = list(dict.fromkeys(entry.parameter.name for entry in self.principals))
            mean = "no score" if self.score is None else f"mean score {self.score:.4g}"
            lines = [*parameters[:NUM_DESCRIBED], *(["…"] if len(parameters) > NUM_DESCRIBED else [])]
            lines.append(f"{len(self.principals):,} parts, {mean}, {self.core_share:.1%} of the elements core")
            best = min(self.principals, key=lambda entry: entry.rank or num_ranked + 1)
            lines += ["best:", *_described(best, num_ranked)]
            shown = tuple(entry for entry in self.entries if entry.role == BIAS and entry not in self.principals)
        for entry in shown[:NUM_DESCRIBED]:
            lines += _described(entry, num_ranked)
        if len(shown) > NUM_DESCRIBED:
            lines.append(f"… and {len(shown) - NUM_DESCRIBED:,} more")
        return lines


def _described(entry: Entry, num_ranked: int) -> list[str]:
    parameter = entry.parameter
    if parameter.score is None:
        return [label(parameter), "no score"]
    state = "core" if parameter.core else "not core"
    return [label(parameter), f"score {parameter.score:.4g}, rank {entry.rank:,} of {num_ranked:,}, {state}"]


@dataclass(frozen=True)
class Grid:
    """One core file: its cells by (layer, column), bands having no layer; `others` are in no column."""

    core: CoreFile
    epochs: float
    cells: dict[tuple[int | None, Column], Cell]
    others: tuple[CoreParameter, ...]
    num_ranked: int


@dataclass(frozen=True)
class Row:
    """One task (and method), by warm-start length; None where there is no core file of that length.

    `scale` is where colours begin and end: the least and the largest score inside the layers, of all lengths together.
    """

    name: str
    grids: tuple[Grid | None, ...]
    scale: tuple[float, float]

    @property
    def present(self) -> tuple[Grid, ...]:
        return tuple(grid for grid in self.grids if grid is not None)


@dataclass(frozen=True)
class Importance:
    """All rows, in the order of the core files, with the columns and bands that occur in any of them."""

    model: ModelIdentity
    model_name: str
    rows: tuple[Row, ...]
    epochs: tuple[float, ...]
    columns: tuple[Column, ...]
    bands: tuple[Column, ...]
    subtitle: str

    @property
    def num_layers(self) -> int:
        return self.model.num_layers

    @property
    def panels(self) -> tuple[str, ...]:
        """The panels that have anything in them."""
        used = {column.panel for column in (*self.columns, *self.bands)}
        return tuple(panel for panel in (PROJECTIONS, NORMS) if panel in used)

    def columns_of(self, panel: str) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.panel == panel)

    def width_of(self, panel: str) -> int:
        """Columns of a panel; one that has nothing but a band is one column wide."""
        return max(len(self.columns_of(panel)), 1)

    @property
    def num_columns(self) -> int:
        """Columns of one pair of panels."""
        return sum(self.width_of(panel) for panel in self.panels)

    def band_edges(self, band: Column) -> tuple[float, float]:
        """Where a band begins and ends on the axis of layers."""
        height = max(self.num_layers * LEAST_BAND, 1.0)
        if band.level > 0:
            start = self.num_layers - 0.5 + BAND_GAP * height
            return start, start + height
        below = sorted((other.level for other in self.bands if other.level < 0), reverse=True).index(band.level)
        stop = -0.5 - BAND_GAP * height - below * height * (1 + BAND_GAP / 2)
        return stop - height, stop

    @property
    def extent(self) -> tuple[float, float]:
        """The ends of the axis of layers, bands included."""
        edges = [edge for band in self.bands for edge in self.band_edges(band)]
        return min([-0.5, *edges]), max([self.num_layers - 0.5, *edges])

    @property
    def has_gaps(self) -> bool:
        """Whether any cell has no score."""
        return any(cell.score is None for cell in self._cells)

    @property
    def has_parts(self) -> bool:
        """Whether any cell is core in part."""
        return any(0 < cell.mark < 1 for cell in self._cells)

    @property
    def _cells(self) -> list[Cell]:
        return [cell for row in self.rows for grid in row.present for cell in grid.cells.values()]

    @property
    def others(self) -> tuple[str, ...]:
        """Names of parameters that stand in no column, each once; a core one has a star."""
        stars = {p.name: True for row in self.rows for grid in row.present for p in grid.others if p.core}
        names = dict.fromkeys(p.name for row in self.rows for grid in row.present for p in grid.others)
        return tuple(name + ("*" if name in stars else "") for name in names)


def epochs_title(epochs: float) -> str:
    """`1 epoch`, `3 epochs`: the length of a warm start."""
    return f"{epochs:g} epoch" + ("" if epochs == 1 else "s")


def describe(grid: Grid, layer: int | None, column: Column) -> list[str]:
    """What a cell says when one points at it, as lines of text."""
    where = f"{column.meaning}" if layer is None else f"layer {layer}, {column.label} ({column.meaning})"
    cell = grid.cells.get((layer, column))
    return [where, *(cell.description(grid.num_ranked) if cell else ["no such parameter"])]


def others_note(importance: Importance) -> str:
    """The parameters that no column or band is for, or nothing."""
    names = importance.others
    if not names:
        return ""
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    star = "; * core" if any(name.endswith("*") for name in names) else ""
    return f"Not drawn, being of no known component: {len(names):,} ({shown}{star})"
