"""Any file that this program wrote, drawn in the terminal: what one looks at before trusting it.

Reads: an artefact (for a layer match also `similarity.safetensors` beside it), or the header of any safetensors file.
Of a heatmap each value is a character.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import ArtefactError, first_line
from trace_transfer.evaluation.records import EvaluationFile, ScoreMatrix
from trace_transfer.evaluation.show import draw_evaluation
from trace_transfer.families.anatomy import folded_name
from trace_transfer.figures import Pair, colour_range, shortened
from trace_transfer.formats import read_any as read
from trace_transfer.identification.records import DeltaFile, StabilityFile
from trace_transfer.identification.show import draw_deltas, draw_stability
from trace_transfer.models.stored_weights import stored_tensors
from trace_transfer.patch.records import Verification, draw_verification
from trace_transfer.records import Strict, model_line
from trace_transfer.reporting.records import Summary
from trace_transfer.reporting.report import settings
from trace_transfer.reporting.summary_tables import short_tables
from trace_transfer.reporting.verdicts import sentences
from trace_transfer.represent.draw import draw_representation
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.tables import draw_tables
from trace_transfer.terminal import Page
from trace_transfer.training.settings import StreamFile
from trace_transfer.training.show import draw_stream
from trace_transfer.transfer.draw import draw_match, read_similarities
from trace_transfer.transfer.records import CorrespondenceFile, LayerMatch

NUM_SCORES = 15
LONGEST = 60  # characters of a value that are shown
RAMP = " .:-=+*#%@"


def draw(path: Path, console: Console) -> None:
    """Draw a file within the console's width."""
    page = Page(console)
    if path.suffix == ".safetensors":
        _draw_tensors(page, path)
        return
    artefact = read(path)
    if isinstance(artefact, LayerMatch):
        _draw_layer_match(page, artefact, path)
    else:
        DRAWN.get(type(artefact), _draw_record)(page, artefact)


def _draw_layer_match(page: Page, match: LayerMatch, path: Path) -> None:
    draw_match(page, match, f"Layer match: {model_line(match.source)} → {model_line(match.target)}")
    read = f"{match.probe.rows} rows of {match.probe.num_texts} texts ({match.probe.name}), {match.transform}"
    page.line((read if match.probe.num_texts else "neither model was read") + "\n")
    beside = path.with_name("similarity.safetensors")
    if beside.is_file():
        similarity = read_similarities(beside, match)[match.representation]
        draw_heatmap(similarity, {(p.source, p.target): p.is_ambiguous for p in match.pairs}, page)
    else:
        page.line(f"(no heatmap: {beside.name} is not beside {path.name})")
    page.line()
    other = "target" if match.chosen_by == "source" else "source"

    def told(value: float | None, form: str) -> str | None:
        return None if value is None else format(value, form)

    rows = [
        (pair.source, pair.target, told(pair.similarity, ".3f"), told(pair.margin, "+.4f"), pair.runner_up,
         told(pair.flip_rate, ".0%"))
        for pair in match.pairs
    ]  # fmt: skip
    page.table(("source", "target", "CKA", "margin", f"runner-up {other}", "flip rate"), rows)
    page.lines(("", *(f"! {warning}" for warning in match.warnings)))
    page.line(match.verdict, "bold")


def draw_heatmap(similarity: NDArray[np.float64], pairs: Mapping[Pair, bool], page: Page) -> None:
    """Source layers upwards, target layers to the right; if too wide, squares of layers show their largest value.
    Of the matched pairs it is told whether they are ambiguous."""
    num_source, num_target = similarity.shape
    margin = len(str(num_source - 1)) + 1
    wide, pool = _cell_width(num_target, page.width - margin)
    low, high = colour_range(similarity)
    starts = [np.arange(0, count, pool) for count in similarity.shape]
    pooled = np.fmax.reduceat(np.fmax.reduceat(similarity, starts[0], axis=0), starts[1], axis=1)
    marked: dict[Pair, bool] = {}  # a square is ambiguous if all of its pairs are
    for (source, target), ambiguous in pairs.items():
        at = source // pool, target // pool
        marked[at] = ambiguous and marked.get(at, True)
    sure, doubtful = ("[]", "()") if wide == 2 else ("O", "o")
    levels = np.clip((pooled - low) / (high - low), 0, 1)

    def cell(row: int, column: int) -> str:
        if (row, column) in marked:
            return doubtful if marked[row, column] else sure
        level = levels[row, column]
        return ("?" if np.isnan(level) else RAMP[min(int(level * len(RAMP)), len(RAMP) - 1)]) * wide

    for row in reversed(range(len(levels))):
        cells = "".join(cell(row, column) for column in range(levels.shape[1]))
        page.line(f"{row * pool:>{margin - 1}} {cells}".rstrip())
    page.line(" " * margin + _ruler(levels.shape[1], wide, pool))
    several = f"; a cell shows the largest value of {pool} x {pool} layers" if pool > 1 else ""
    page.line(f"rows are source layers, columns target layers, from 0 at the lower left{several}")
    told = [f"CKA '{RAMP}' from {low:.2f} to {high:.2f}", f"{sure} matched pair"]
    told += [f"{doubtful} ambiguous pair"] * any(pairs.values()) + ["? no value"] * bool(np.isnan(similarity).any())
    page.line(", ".join(told))


def _draw_core(page: Page, core: CoreFile) -> None:
    method, chosen, scored = core.method, core.core, [one for one in core.parameters if one.score is not None]
    page.line(f"Core set of {core.task}: {model_line(core.model)}", "bold")
    settings = "".join(f", {name} {value}" for name, value in (method.model_extra or {}).items())
    page.line(f"method {method.name}, ratio {method.ratio:g} of {method.unit}{settings}")
    counted = "parts of tensors" if method.unit == "rows" else "tensors"
    page.line(
        f"core: {len(chosen):,} of {len(core.parameters):,} {counted} ({core.ratio_of_tensors:.2%}), "
        f"{sum(one.num_core for one in chosen):,} of {sum(one.num_elements for one in core.parameters):,} parameters "
        f"({core.ratio_of_elements:.2%})"
    )
    if len(scored) < len(core.parameters):
        page.line(f"{counted} without a score: {len(core.parameters) - len(scored):,}")
    if origin := core.transferred_from:
        page.line(
            f"carried over from {model_line(origin.model)}, carry {origin.carry}, rules {', '.join(origin.rules)}"
        )
    page.line()
    _draw_grid(page, core)
    page.line()
    best = scored[:NUM_SCORES]
    page.line(f"The {len(best)} best of {len(scored):,} scores")
    rows = [(i, f"{one.score:.4g}", "core" if one.core else "", one.label) for i, one in enumerate(best, 1)]
    page.table(("", "score", "", "tensor"), rows)


def _kind(name: str) -> tuple[str, int | None]:
    """A tensor's name below its layer, and the layer; the whole name and None outside the layers."""
    folded = folded_name(name)
    head, hole, kind = folded.partition("{layer}.")
    return (kind, int(name.split(".")[head.count(".")])) if hole else (folded, None)


def _draw_grid(page: Page, core: CoreFile) -> None:
    """Kinds of tensors down, layers across: what is core."""
    kinds: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))  # shares that are core
    outside = set()
    for one in core.parameters:
        kind, layer = _kind(one.name)
        outside |= {kind} if layer is None else set()
        kinds[kind][layer or 0].append(one.num_core / one.num_elements)
    num_layers = max([core.model.num_layers, *(1 + layer for row in kinds.values() for layer in row)])
    names = min(max(map(len, kinds)), page.width // 2)
    wide, pool = _cell_width(num_layers, page.width - names - 12)
    num_cells = -(-num_layers // pool)

    def block(shares: list[float]) -> str:
        if not any(shares):
            return ("·" if shares else " ").ljust(wide)
        return ("█" if min(shares) == 1 else "▒") * wide

    page.line(" " * (names + 1) + _ruler(num_cells, wide, pool))
    for kind in sorted(kinds, key=lambda kind: (kind in outside, kind)):
        cells: list[list[float]] = [[] for _ in range(num_cells)]
        for layer, shares in kinds[kind].items():
            cells[layer // pool] += shares
        count = f"{sum(share > 0 for cell in cells for share in cell)}/{sum(map(len, cells))}"
        page.line(f"{shortened(kind, names):<{names}} {''.join(map(block, cells))} {count:>9}")
    several = f"; a column is {pool} layers" if pool > 1 else ""
    page.line(f"columns: layers, outside of them the first{several}; █ core, ▒ partly core, · not core")


def _cell_width(num_cells: int, available: int) -> tuple[int, int]:
    """Characters of a cell, and how many layers share one where there is no room for all."""
    available = max(available, 8)
    return 2 if 2 * num_cells <= available else 1, -(-num_cells // available)


def _ruler(num_cells: int, wide: int, pool: int) -> str:
    """Layer numbers below every fifth cell."""
    text = ""
    for cell in range(0, num_cells, 5):
        label = str(cell * pool)
        if cell * wide + len(label) <= num_cells * wide + 2:
            text = text.ljust(cell * wide) + label
    return text


def _draw_correspondence(page: Page, file: CorrespondenceFile) -> None:
    """What was not carried, and why; `rules explain` shows what goes where."""
    page.line(f"Correspondence: {model_line(file.source)} → {model_line(file.target)}", "bold")
    told = {"parameters": "tensors", "unreached_targets": "unreached targets"}
    page.line(", ".join(f"{count:,} {told.get(name, name)}" for name, count in file.counts.items()))
    for what, reasons in (
        ("dropped source tensors", Counter(entry.dropped for entry in file.parameters if entry.dropped)),
        ("target tensors that nothing reaches", Counter(entry.reason for entry in file.unreached_targets)),
    ):
        page.lines(("", f"{what}: {reasons.total():,}"))
        if reasons:
            page.table(("count", "reason"), [(count, reason) for reason, count in reasons.most_common()])


def _draw_tensors(page: Page, path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: not a safetensors file, or cut short ({first_line(error)})") from error
    tensors = stored_tensors(path)
    rows = [(name, one.dtype, " x ".join(map(str, one.shape)) or "scalar") for name, one in tensors.items()]
    elements = sum(math.prod(one.shape) for one in tensors.values())
    page.line(f"{path.name}: {len(rows):,} tensors, {elements:,} parameters, {path.stat().st_size:,} bytes", "bold")
    page.lines(f"{name}: {value}".replace("\n", " ") for name, value in sorted(metadata.items()))
    page.line()
    page.table(("tensor", "dtype", "shape"), rows)


def _draw_scores(page: Page, file: ScoreMatrix) -> None:
    """A row for each state of the stream, a column for each evaluation."""
    first = {score.name: score for score in file.stages[0].scores}
    rows = []
    for stage in file.stages:
        values = {score.name: f"{score.value:.4f}" for score in stage.scores}
        rows.append((stage.label, *map(values.get, first)))
    headings = ("after", *(f"{name} ({score.metric})" for name, score in first.items()))
    page.table(headings, rows, f"Scores along a stream: {model_line(file.model)}")
    page.lines(f"task {task} is measured by {name}" for task, name in file.of_task.items() if task != name)


def _draw_record(page: Page, file: Strict) -> None:
    """Field by field: what stands in it once, then its lists of records as tables, the largest values first."""
    plain = file.plain()
    lists = {
        name: value for name, value in plain.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    once = {name: value for name, value in plain.items() if name not in lists}
    page.table(("field", "value"), [(name, shortened(value, LONGEST)) for name, value in settings(once)])
    for name, records in lists.items():
        records = sorted(records, key=lambda one: -one.get("value", 0) if isinstance(one.get("value", 0), float) else 0)
        headings = list(dict.fromkeys(key for one in records for key in one))
        rows = [[_cell(one.get(key)) for key in headings] for one in records[:NUM_SCORES]]
        page.line()
        page.table(headings, rows, f"{name}: {len(rows)} of {len(records):,}")


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return shortened(", ".join(f"{name} {one}" for name, one in value.items()), LONGEST)
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else shortened(str(value), LONGEST)


def _draw_summary(page: Page, file: Summary) -> None:
    """The short tables of the report, and what they say."""
    draw_tables(short_tables(file), page)
    page.lines(("", *(f"- {sentence}" for sentence in sentences(file))))


# What is not drawn field by field; a layer match looks at the matrix beside it.
DRAWN: dict[type[Strict], Callable[[Page, Any], None]] = {
    CoreFile: _draw_core,
    CorrespondenceFile: _draw_correspondence,
    DeltaFile: draw_deltas,
    StabilityFile: draw_stability,
    StreamFile: draw_stream,
    Verification: draw_verification,
    EvaluationFile: draw_evaluation,
    ScoreMatrix: _draw_scores,
    RepresentationFile: draw_representation,
    Summary: _draw_summary,
}
