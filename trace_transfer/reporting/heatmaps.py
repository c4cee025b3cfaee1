"""Layer matches and importance heatmaps in the report: the figures of `map` and `identify`, one shown at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import UserError
from trace_transfer.identification.draw import importance_of
from trace_transfer.identification.importance_html import MARGIN, figure
from trace_transfer.identification.importance_view import Importance
from trace_transfer.pages import Plot
from trace_transfer.palette import tick_step
from trace_transfer.reporting.finished_run import FinishedRun, MatchFound
from trace_transfer.transfer.draw import LEAST_CELL, figure_of, plot_size
from trace_transfer.transfer.draw import MARGIN as MATCH_MARGIN
from trace_transfer.transfer.heatmap_view import Heatmap, View

COLUMN, WIDEST = 46, 1060  # px of a column of an importance heatmap, of the cells together
LAYER, SMALLEST, LARGEST = 15, 190, 760  # px of a layer in it, of all of them
TICK_HEIGHT = 17


def match_plot(run: FinishedRun, found: MatchFound, title: str) -> Plot:
    """The similarity of all layers with the chosen pairs."""
    match = found.match
    runner_ups = tuple(
        (pair.runner_up, pair.target) if match.chosen_by == "target" else (pair.source, pair.runner_up)
        for pair in match.pairs
        if pair.runner_up is not None
    )
    view = View(
        name=match.representation,
        similarity=found.similarity,
        pairs=tuple((pair.source, pair.target) for pair in match.pairs),
        runner_ups=runner_ups,
        margins={(p.source, p.target): p.margin for p in match.pairs if p.margin is not None},
        used=True,
    )
    heatmap = Heatmap(run.name_of("source"), run.name_of("target"), (view,), "")
    cells = plot_size(*heatmap.shape)
    width = int(cells[0] + MATCH_MARGIN["l"] + MATCH_MARGIN["r"])
    height = int(cells[1] + MATCH_MARGIN["t"] + MATCH_MARGIN["b"])
    spec = json.loads(figure_of(heatmap).to_json())
    spec.pop("config", None)
    least = min(max(match.target.num_layers * LEAST_CELL + MATCH_MARGIN["l"] + MATCH_MARGIN["r"], 420), width)
    return Plot(title, spec, height, width, least)


def importance_plot(cores: Sequence[CoreFile], title: str) -> Plot | None:
    """Scores by layer and module, warm-start lengths side by side; None where no parameter is of a known component."""
    try:
        importance = importance_of(cores)
    except UserError:
        return None
    return _drawn(importance, title)


def _drawn(importance: Importance, title: str) -> Plot:
    spec = figure(importance)
    low, high = importance.extent
    columns = len(importance.epochs) * importance.num_columns
    cells_width = min(columns * COLUMN + 60, WIDEST)
    cells_height = min(max((high - low) * LAYER, SMALLEST), LARGEST)
    layout = spec["layout"]
    step = tick_step(cells_height / (high - low), TICK_HEIGHT)
    labels = dict(zip(layout["meta"]["bands"][1], layout["meta"]["bands"][0], strict=True))
    shown = list(range(0, importance.num_layers, step))
    layout["yaxis"].update(tickvals=[*shown, *labels.values()], ticktext=[*map(str, shown), *labels])
    longest = max((len(column.label) for column in importance.columns), default=0) * 8
    upright = longest < cells_width / max(columns, 1)
    below = MARGIN["b"] if upright else max(MARGIN["b"], longest + 18)
    layout["margin"] = {**MARGIN, "b": below}
    for name, axis in layout.items():
        if name.startswith("xaxis"):
            axis["tickangle"] = 0 if upright else -90
    side = min(max(min(cells_height / (high - low), cells_width / max(columns, 1)) * 0.55, 4), 12)
    for trace in spec["data"]:
        if trace.get("name") == "core":
            trace["marker"]["size"] = [max(round(share * side, 2), 2) for share in trace.get("customdata", [])]
        trace.pop("customdata", None)
    width = int(cells_width + MARGIN["l"] + MARGIN["r"])
    height = int(cells_height + MARGIN["t"] + below)
    least = min(columns * 17 + MARGIN["l"] + MARGIN["r"], width)
    return Plot(title, spec, height, width, least)
