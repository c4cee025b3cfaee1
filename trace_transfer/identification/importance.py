"""Core files of one model → `Importance`: each tensor's score in the cell of its layer and module, for each task.

Columns are the paper's (figures 6, A.1 and A.2): projections in one panel, norms in the other. What is outside the
layers stands in bands below layer 0 and above the last layer, as in the model. A core file says component and layer of
each tensor; a tensor of which it does not is named and not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.families.language import default_role
from trace_transfer.records import ModelIdentity

BIAS, NORM = "bias", "norm"  # roles
PROJECTIONS, NORMS = "projections", "norms"
LEAST_BAND = 1 / 26  # a band's share of the height of all layers, at least; one layer's height if that is more
BAND_GAP = 0.35  # of a band
NUM_DESCRIBED = 3  # tensors of a cell that are described one by one


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


class Entry(NamedTuple):
    """A tensor in a cell; `rank` counts from 1 among the scored tensors of its file, None without a score."""

    tensor: CoreTensor
    rank: int | None

    @property
    def is_bias(self) -> bool:
        return default_role(self.tensor.name) == BIAS


@dataclass(frozen=True)
class Cell:
    """All tensors of one module of one layer, the weight or its parts first, then biases."""

    entries: tuple[Entry, ...]

    @property
    def principals(self) -> tuple[Entry, ...]:
        """What colour and mark speak of: the weight or its parts; biases only where there is nothing else."""
        return tuple(entry for entry in self.entries if not entry.is_bias) or self.entries

    @cached_property
    def score(self) -> float | None:
        """The weight's score, the mean of its parts' scores, or None."""
        scores = [entry.tensor.score for entry in self.principals if entry.tensor.score is not None]
        return sum(scores) / len(scores) if scores else None

    @cached_property
    def core_share(self) -> float:
        """Core share of the weight's elements."""
        total = sum(entry.tensor.num_elements for entry in self.principals)
        return sum(entry.tensor.num_core for entry in self.principals) / total

    @cached_property
    def mark(self) -> float:
        """Area of the cell's mark: the core share; a small one where only a bias is core; 0 for none."""
        if self.core_share:
            return max(self.core_share, 0.15)
        return 0.15 if any(entry.tensor.core for entry in self.entries) else 0.0

    def rank_share(self, num_ranked: int) -> float | None:
        """Where the weight stands among the scores of its file: 1 for the best, 0 for the last; the mean of parts."""
        shares = [1 - (entry.rank - 1) / max(num_ranked - 1, 1) for entry in self.principals if entry.rank is not None]
        return sum(shares) / len(shares) if shares else None

    def description(self, num_ranked: int) -> list[str]:
        """Name, score and rank of the best tensors, as lines of text; parts are counted."""
        lines, shown = [], sorted(self.entries, key=lambda entry: (entry.is_bias, entry.rank or num_ranked + 1))
        if len(self.principals) > 1:
            mean = "no score" if self.score is None else f"mean score {self.score:.4g}"
            lines.append(f"{len(self.principals):,} parts, {mean}, {self.core_share:.1%} of the elements core")
        for entry in shown[:NUM_DESCRIBED]:
            lines += _described(entry, num_ranked)
        return lines + [f"… and {len(shown) - NUM_DESCRIBED:,} more"] * (len(shown) > NUM_DESCRIBED)


def _described(entry: Entry, num_ranked: int) -> list[str]:
    tensor = entry.tensor
    if tensor.score is None:
        return [tensor.label, "no score"]
    state = "core" if tensor.core else "not core"
    if tensor.chosen is not None:
        state = f"{tensor.chosen / tensor.num_elements:.2%} of its parameters core"
    return [tensor.label, f"score {tensor.score:.4g}, rank {entry.rank:,} of {num_ranked:,}, {state}"]


@dataclass(frozen=True)
class Grid:
    """One core file: its cells by (layer, column), bands having no layer; `others` are in no column."""

    core: CoreFile
    epochs: float
    cells: dict[tuple[int | None, Column], Cell]
    others: tuple[CoreTensor, ...]
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
    def others(self) -> tuple[str, ...]:
        """Names of tensors that stand in no column, each once; a core one has a star."""
        found = [one for row in self.rows for grid in row.present for one in grid.others]
        stars = {one.name for one in found if one.core}
        return tuple(name + "*" * (name in stars) for name in dict.fromkeys(one.name for one in found))

    @property
    def note(self) -> str:
        """The tensors that no column or band is for, or nothing."""
        names = self.others
        shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        star = "; * core" if any(name.endswith("*") for name in names) else ""
        return f"Not drawn, being of no known component: {len(names):,} ({shown}{star})" if names else ""


def epochs_title(epochs: float) -> str:
    """`1 epoch`, `3 epochs`: the length of a warm start."""
    return f"{epochs:g} epoch" + ("" if epochs == 1 else "s")


def describe(grid: Grid, layer: int | None, column: Column) -> list[str]:
    """What a cell says when one points at it, as lines of text."""
    where = f"{column.meaning}" if layer is None else f"layer {layer}, {column.label} ({column.meaning})"
    cell = grid.cells.get((layer, column))
    return [where, *(cell.description(grid.num_ranked) if cell else ["no such tensor"])]


def epochs_of(core: CoreFile) -> float:
    """The warm-start length of a core file, 1 if it does not say.

    Raises:
        ArtefactError: it says something that is not a number of epochs.
    """
    found = (core.method.model_extra or {}).get("epochs")
    if found is None:
        return 1
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
        raise ArtefactError(f"{core.task}: method.epochs is {found!r}, expected a number of epochs")
    return found


def importance_of(cores: Sequence[CoreFile], names: Sequence[str] | None = None) -> Importance:
    """Arrange core files of one model: a row per task (and method, if there are several), by warm-start length.

    Args:
        names: what messages call the core files, such as their paths; by default their tasks.

    Raises:
        UserError: no core file, files of several models, two for one task, method and length, or no tensor in them
            that belongs to a component.
    """
    names = names or [core.task for core in cores]
    _check(cores, names)
    grids = [_grid(core) for core in cores]
    used = {column for grid in grids for _, column in grid.cells}
    if not used:
        raise UserError(
            f"{', '.join(names)}: no tensor is said to be of a known component, so nothing can be drawn; "
            "`trace-transfer import` says so of the tensors of a model"
        )
    epochs = tuple(sorted({grid.epochs for grid in grids}))
    ids = dict.fromkeys(core.model.id for core in cores)
    return Importance(
        model=cores[0].model,
        model_name=", ".join(one.rstrip("/").rpartition("/")[2] or one for one in ids),
        rows=tuple(_rows(grids, epochs)),
        epochs=epochs,
        columns=tuple(column for column in COLUMNS.values() if column in used),
        bands=tuple(band for band in BANDS.values() if band in used),
        subtitle="; ".join(dict.fromkeys(_method(core) for core in cores)),
    )


def _method(core: CoreFile) -> str:
    method = core.method
    alpha = (method.model_extra or {}).get("alpha") if method.name == "lf" else None
    name = method.name if alpha is None else f"{method.name} (alpha {alpha})"
    return f"{name}, core: top {100 * method.ratio:.3g} % of {method.unit}"


def _check(cores: Sequence[CoreFile], names: Sequence[str]) -> None:
    if not cores:
        raise UserError("no core file is given; importance heatmaps are drawn of one or more")
    models: dict[str, list[str]] = {}
    places: dict[str, list[str]] = {}
    for core, name in zip(cores, names, strict=True):
        one = core.model
        model = f"{one.id} ({one.family}, {one.num_layers} layers, names {one.names_sha256[:8]})"
        models.setdefault(model, []).append(name)
        place = f"task {core.task}, method {core.method.name}, {epochs_title(epochs_of(core))}"
        places.setdefault(place, []).append(name)
    if len({core.model.names_sha256 for core in cores}) > 1:
        raise UserError(
            f"the core files are of {len(models)} models, but one figure is of one; draw them one by one:\n"
            + listing([f"{', '.join(found)}: {model}" for model, found in models.items()])
        )
    if twice := [f"{', '.join(found)}: {place}" for place, found in places.items() if len(found) > 1]:
        raise UserError(f"several core files of one task, method and warm-start length; give one:\n{listing(twice)}")


def _grid(core: CoreFile) -> Grid:
    cells: dict[tuple[int | None, Column], list[Entry]] = {}
    others: list[CoreTensor] = []
    rank = 0
    for tensor in sorted(core.parameters, key=lambda one: (one.score is None, -(one.score or 0.0))):
        rank += tensor.score is not None
        places = dict.fromkeys(_places(tensor, core.model.num_layers))
        if not places:
            others.append(tensor)
        for place in places:
            cells.setdefault(place, []).append(Entry(tensor, None if tensor.score is None else rank))
    sorted_cells = {key: Cell(tuple(sorted(entries, key=lambda e: e.is_bias))) for key, entries in cells.items()}
    return Grid(core, epochs_of(core), sorted_cells, tuple(others), rank)


def _places(tensor: CoreTensor, num_layers: int) -> Iterator[tuple[int | None, Column]]:
    """Layer and column, several if the tensor is fused or tied; a band has no layer, a column one of the model's."""
    for component in (tensor.component or "").split("+"):
        is_norm = default_role(tensor.name) == NORM and not component.startswith("norm.")
        if component in BANDS and tensor.layer is None:
            yield None, BANDS[component]
        elif (component, is_norm) in COLUMNS and tensor.layer is not None and tensor.layer < num_layers:
            yield tensor.layer, COLUMNS[component, is_norm]


def _rows(grids: Sequence[Grid], epochs: Sequence[float]) -> Iterator[Row]:
    methods = {grid.core.method.name for grid in grids}
    rows: dict[str, dict[float, Grid]] = {}
    for grid in grids:
        name = grid.core.task + (f", {grid.core.method.name}" if len(methods) > 1 else "")
        rows.setdefault(name, {})[grid.epochs] = grid
    for name, by_epochs in rows.items():
        scores = [
            cell.score
            for grid in by_epochs.values()
            for (layer, _), cell in grid.cells.items()
            if layer is not None and cell.score is not None
        ]
        low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
        scale = (low, high) if high > low else (low - 0.01, high + 0.01)
        yield Row(name, tuple(by_epochs.get(one) for one in epochs), scale)
