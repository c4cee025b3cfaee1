"""Core files of one model → `Importance`: each parameter's score in the cell of its layer and module.

Reads: core files, and the rules of their family for parameters that do not say what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trace_transfer.core_sets.core_file import CoreFile, CoreParameter
from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.families.registry import FamilyRegistry
from trace_transfer.identification.importance_places import BIAS, NORM, FamilyNames, Place
from trace_transfer.identification.importance_view import (
    BANDS,
    CLEARER,
    COLUMNS,
    PRE_MLP,
    Cell,
    Column,
    Entry,
    Grid,
    Importance,
    Row,
    epochs_title,
)


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


def importance_of(
    cores: Sequence[CoreFile], names: Sequence[str] | None = None, registry: FamilyRegistry | None = None
) -> Importance:
    """Arrange core files of one model: a row per task (and method, if there are several), by warm-start length.

    Args:
        names: what messages call the core files, such as their paths; by default their tasks.
        registry: the families that the model may be of; by default the shipped ones.

    Raises:
        UserError: no core file, files of several models, two for one task, method and length, or no parameter in them
            that belongs to a component.
    """
    names = names or [core.task for core in cores]
    _check(cores, names)
    known = FamilyNames.of(cores[0].model, registry)
    grids = [_grid(core, known) for core in cores]
    used = {column for grid in grids for _, column in grid.cells}
    if not used:
        raise UserError(
            f"{', '.join(names)}: no parameter belongs to a component of family '{cores[0].model.family}', so nothing "
            "can be drawn; give the family's rules file with --rules"
        )
    if {COLUMNS["norm.post_attention", False], PRE_MLP} <= used:
        grids = [_renamed(grid) for grid in grids]
        used = {CLEARER.get(column, column) for column in used}
    known_columns = [CLEARER.get(c, c) if CLEARER.get(c) in used else c for c in COLUMNS.values()]
    epochs = tuple(sorted({grid.epochs for grid in grids}))
    ids = list(dict.fromkeys(core.model.id for core in cores))
    return Importance(
        model=cores[0].model,
        model_name=", ".join(_short(one) for one in ids),
        rows=tuple(_rows(grids, epochs)),
        epochs=epochs,
        columns=tuple(column for column in known_columns if column in used),
        bands=tuple(band for band in BANDS.values() if band in used),
        subtitle="; ".join(dict.fromkeys(_method(core) for core in cores)),
    )


def _short(model_id: str) -> str:
    """The last part of a path or hub name."""
    return model_id.rstrip("/").rpartition("/")[2] or model_id


def _method(core: CoreFile) -> str:
    method = core.method
    alpha = (method.model_extra or {}).get("alpha") if method.name == "lf" else None
    name = method.name if alpha is None else f"{method.name} (alpha {alpha})"
    return f"{name}, core: top {100 * method.ratio:.3g} % of {method.unit}"


def _check(cores: Sequence[CoreFile], names: Sequence[str]) -> None:
    if not cores:
        raise UserError("no core file is given; importance heatmaps are drawn of one or more")
    models: dict[str, list[int]] = {}
    places: dict[tuple[str, str, float], list[int]] = {}
    for index, core in enumerate(cores):
        models.setdefault(core.model.names_sha256, []).append(index)
        places.setdefault((core.task, core.method.name, epochs_of(core)), []).append(index)
    if len(models) > 1:
        problems = [
            f"{', '.join(names[index] for index in found)}: {cores[found[0]].model.id} "
            f"({cores[found[0]].model.family}, {cores[found[0]].model.num_layers} layers, names {sha[:8]})"
            for sha, found in models.items()
        ]
        raise UserError(
            f"the core files are of {len(models)} models, but one figure is of one; draw them one by one:\n"
            f"{listing(problems)}"
        )
    problems = [
        f"{', '.join(names[index] for index in found)}: task {task}, method {method}, {epochs_title(epochs)}"
        for (task, method, epochs), found in places.items()
        if len(found) > 1
    ]
    if problems:
        raise UserError(f"several core files of one task, method and warm-start length; give one:\n{listing(problems)}")


def _grid(core: CoreFile, known: FamilyNames) -> Grid:
    cells: dict[tuple[int | None, Column], list[Entry]] = {}
    others: list[CoreParameter] = []
    rank = 0
    scores = sorted(enumerate(core.parameters), key=lambda item: _best_first(item[1]))
    places = known.places(core)
    for index, parameter in scores:
        rank += parameter.score is not None
        found = {
            (place.layer, _column(place)): BIAS if place.role.endswith(BIAS) else place.role for place in places[index]
        }
        drawn = {
            (layer, column): role
            for (layer, column), role in found.items()
            if column is not None and _fits(layer, column, core.model.num_layers)
        }
        if not drawn:
            others.append(parameter)
        for (layer, column), role in drawn.items():
            entry = Entry(parameter, role, None if parameter.score is None else rank)
            cells.setdefault((layer, column), []).append(entry)
    sorted_cells = {key: Cell(tuple(sorted(entries, key=lambda e: e.role == BIAS))) for key, entries in cells.items()}
    return Grid(core, epochs_of(core), sorted_cells, tuple(others), rank)


def _best_first(parameter: CoreParameter) -> tuple[bool, float]:
    return parameter.score is None, -(parameter.score or 0.0)


def _column(place: Place) -> Column | None:
    component = place.component
    if component in BANDS:
        return BANDS[component]
    return COLUMNS.get((component, place.role.endswith(NORM) and not component.startswith("norm.")))


def _fits(layer: int | None, column: Column, num_layers: int) -> bool:
    """A column needs a layer that the model has, a band needs none."""
    return layer is None if column.level else layer is not None and 0 <= layer < num_layers


def _renamed(grid: Grid) -> Grid:
    cells = {(layer, CLEARER.get(column, column)): cell for (layer, column), cell in grid.cells.items()}
    return replace(grid, cells=cells)


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
