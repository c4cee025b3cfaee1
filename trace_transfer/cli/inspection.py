"""Any file that this program wrote, drawn in the terminal: what one looks at before trusting it.

Reads: an artefact (for a layer match also `similarity.safetensors` beside it), or the header of any safetensors file.
With colour a heatmap has coloured cells; without (a pipe, NO_COLOR) each cell is a character.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.errors import MAX_LISTED, ArtefactError
from trace_transfer.evaluation.records import EvaluationFile, ScoreMatrix
from trace_transfer.evaluation.show import draw_evaluation
from trace_transfer.families.anatomy import folded_name, layer_ranges
from trace_transfer.files import size
from trace_transfer.formats import read_any as read
from trace_transfer.identification.draw import draw_importance
from trace_transfer.identification.importance import label
from trace_transfer.identification.records import DeltaFile, FisherFile, StabilityFile, WarmStartFile
from trace_transfer.identification.show import draw_deltas, draw_fisher, draw_stability, draw_warm_start
from trace_transfer.patch.records import Verification
from trace_transfer.patch.show import draw_verification
from trace_transfer.records import Strict
from trace_transfer.reporting.records import RunFile, StepFile, Summary
from trace_transfer.reporting.summary_tables import short_tables
from trace_transfer.reporting.verdicts import sentences
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.represent.show import draw_representation
from trace_transfer.tables import to_text
from trace_transfer.terminal import Page
from trace_transfer.terminal_pictures import draw_heatmap, model_line, ruler
from trace_transfer.text_formats import read_tensor_header
from trace_transfer.training.records import StreamFile
from trace_transfer.training.show import draw_stream
from trace_transfer.transfer.records import CorrespondenceFile, LayerMatch, ListedPart

DRAWABLE = "inspect draws the JSON files that trace-transfer writes, such as TASK.core.json, and any safetensors file"
BEGINNING = 100  # bytes of a file of ours in which it says its format
NUM_SCORES = 15
NUM_FOLDED = 20


def draw(path: Path, console: Console) -> None:
    """Draw a file within the console's width.

    Raises:
        ArtefactError: it cannot be read, is damaged or is of no format of ours; or a directory: names the files in it
            that can be drawn.
    """
    if path.is_dir():
        files = _drawable(path)
        held = f"it holds {', '.join(files)}: name one of them" if files else f"nothing in it can be drawn; {DRAWABLE}"
        raise ArtefactError(f"{path}: is a directory; {held}")
    page = Page(console)
    if path.suffix == ".safetensors":
        _draw_tensors(path, page)
        return
    try:
        artefact = read(path)
    except ArtefactError as error:
        if path.is_file() and path.suffix != ".json":
            raise ArtefactError(f"{path}: cannot be drawn; {DRAWABLE}") from error
        raise
    if isinstance(artefact, LayerMatch):
        _draw_layer_match(artefact, path, page)
    else:
        DRAWN[type(artefact)](artefact, page)


def _drawable(directory: Path) -> list[str]:
    """Names of the files in a directory that look like ours: the first 20, and how many more there are."""
    files = sorted(file for file in directory.iterdir() if file.is_file())
    names = [file.name for file in files if file.suffix == ".safetensors" or _is_ours(file)]
    more = [f"{len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
    return names[:MAX_LISTED] + more


def _is_ours(file: Path) -> bool:
    if file.suffix != ".json":
        return False
    with file.open("rb") as stream:
        return b'"format": "trace-transfer/' in stream.read(BEGINNING)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


# A layer match


def _draw_layer_match(match: LayerMatch, path: Path, page: Page) -> None:
    page.line(f"Layer match: {model_line(match.source)} → {model_line(match.target)}", "bold")
    probe = match.probe
    page.line(
        f"{match.similarity}, {match.representation}, {match.transform}, {match.policy}; "
        f"{probe.rows} rows of {probe.num_texts} texts ({probe.name})"
    )
    page.line()
    beside = path.with_name("similarity.safetensors")
    if beside.is_file():
        draw_heatmap(_similarity(beside, match), {(p.source, p.target): p.is_ambiguous for p in match.pairs}, page)
    else:
        page.line(f"(no heatmap: {beside.name} is not beside {path.name})")
    page.line()
    other = "target" if match.chosen_by == "source" else "source"
    columns = ("source", "target", "CKA", "margin", f"runner-up {other}", "flip rate")
    page.table(
        [(column, "right") for column in columns],
        (
            (str(pair.source), str(pair.target), _number(pair.similarity, ".3f"), _number(pair.margin, "+.4f"),
             _number(pair.runner_up, "d"), _number(pair.flip_rate, ".0%"))
            for pair in match.pairs
        ),
    )  # fmt: skip
    page.line()
    for what, layers in (
        ("source layers without a match", match.unmatched_sources),
        ("target layers without a match", match.unmatched_targets),
        ("source layers without a value", match.degenerate_sources),
        ("target layers without a value", match.degenerate_targets),
    ):
        if layers:
            page.line(f"{what}: {layer_ranges(layers)} ({len(layers)})")
    if match.stability:
        page.line(
            f"same choice on other texts: {match.stability.same:.0%} of the layers, {match.stability.within_one:.0%} "
            f"to within one ({match.stability.num_splits} splits)"
        )
    if match.depth:
        page.line(
            f"same as relative depth: {match.depth.agreement:.0%} of the layers, {match.depth.within_one:.0%} to "
            f"within one; mean CKA {match.depth.mean_similarity_gain:+.3f} against it"
        )
    for warning in match.warnings:
        page.line(f"! {warning}", "yellow")
    page.line(match.verdict, "bold")


def _similarity(file: Path, match: LayerMatch) -> NDArray[np.float64]:
    """The matrix of the match, [source layers, target layers]."""
    from safetensors import SafetensorError, safe_open

    expected = [match.source.num_layers, match.target.num_layers]
    try:
        with safe_open(file, framework="np") as tensors:
            matrix: NDArray[np.float64] = tensors.get_tensor("similarity")
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{file}: holds no readable tensor 'similarity' ({error}); run the match again") from error
    if list(matrix.shape) != expected:
        raise ArtefactError(
            f"{file}: 'similarity' is {list(matrix.shape)}, but the layer match is of {expected} layers; "
            "the two files are not of one run"
        )
    return matrix.astype(np.float64)


# A core set


def _draw_core(core: CoreFile, page: Page) -> None:
    method, chosen = core.method, core.core
    page.line(f"Core set of {core.task}: {model_line(core.model)}", "bold")
    settings = "".join(f", {name} {value}" for name, value in (method.model_extra or {}).items())
    page.line(f"method {method.name}, ratio {method.ratio:g} of {method.unit}{settings}")
    counted = "parts of tensors" if method.unit == "rows" else "tensors"
    page.line(
        f"core: {len(chosen):,} of {len(core.parameters):,} {counted} ({core.ratio_of_tensors:.2%}), "
        f"{sum(one.num_core for one in chosen):,} of {sum(one.num_elements for one in core.parameters):,} elements "
        f"({core.ratio_of_elements:.2%})"
    )
    unscored = sum(one.score is None for one in core.parameters)
    if unscored:
        page.line(f"{counted} without a score: {unscored:,}")
    if core.transferred_from:
        origin = core.transferred_from
        page.line(
            f"carried over from {model_line(origin.model)}, carry {origin.carry}, rules {', '.join(origin.rules)}"
        )
    page.line()
    _draw_grid(core, page)
    page.line()
    if any(one.score is not None for one in core.parameters):
        draw_importance(core, page)
        page.line()
    best = [one for one in core.parameters if one.score is not None][:NUM_SCORES]
    page.line(f"The {len(best)} best of {len(core.parameters) - unscored:,} scores")
    page.table(
        [("", "right"), ("score", "right"), ("", "left"), ("tensor", "left")],
        ((str(i), f"{one.score:.4g}", "core" if one.core else "", label(one)) for i, one in enumerate(best, 1)),
    )


def _kind(name: str) -> tuple[str, int | None]:
    """A tensor's name below its layer, and the layer; the whole name and None outside the layers."""
    folded = folded_name(name)
    head, hole, kind = folded.partition("{layer}.")
    if not hole:
        return folded, None
    return kind, int(name.split(".")[head.count(".")])


def _draw_grid(core: CoreFile, page: Page) -> None:
    """Kinds of tensors down, layers across; a tensor is partly core if some of it is."""
    cells: dict[str, dict[int | None, list[float]]] = {}
    for parameter in core.parameters:
        kind, layer = _kind(parameter.name)
        cells.setdefault(kind, {}).setdefault(layer, []).append(parameter.num_core / parameter.num_elements)
    num_layers = max(
        [core.model.num_layers, *(layer + 1 for row in cells.values() for layer in row if layer is not None)]
    )
    names = min(max(map(len, cells)), page.width // 2)
    available = max(page.width - names - 12, 8)
    wide = 2 if 2 * num_layers <= available else 1
    pool = -(-num_layers // available)
    num_cells = -(-num_layers // pool)
    page.row([(" " * (names + 1) + ruler(num_cells, wide, pool), "")])
    for kind, row in sorted(cells.items(), key=lambda item: (None in item[1], item[0])):
        label = kind if len(kind) <= names else f"{kind[: names - 1]}…"
        found: list[list[float]] = [[] for _ in range(num_cells)]
        for layer, values in row.items():
            found[(layer or 0) // pool] += values
        count = f"{sum(share > 0 for values in found for share in values)}/{sum(map(len, found))}"
        blocks = [_block(values, wide) for values in found]
        page.row([(f"{label:<{names}} ", ""), *blocks, (f" {count:>9}", "")])
    several = f"; a column is {pool} layers" if pool > 1 else ""
    page.line(f"columns: layers, outside of them the first{several}; █ core, ▒ partly core, · not core")


def _block(values: list[float], wide: int) -> tuple[str, str]:
    if not values:
        return " " * wide, ""
    if not any(values):
        return "·".ljust(wide), "dim"
    return ("█" if min(values) == 1 else "▒") * wide, "cyan"


# A correspondence


def _draw_correspondence(file: CorrespondenceFile, page: Page) -> None:
    page.line(f"Correspondence: {model_line(file.source)} → {model_line(file.target)}", "bold")
    told = {"parameters": "tensors", "unreached_targets": "unreached targets"}
    page.line(", ".join(f"{count:,} {told.get(name, name)}" for name, count in file.counts.items()))
    page.line()
    folded = Counter(
        (_folded(entry), tuple(dict.fromkeys(map(_folded, entry.targets))))
        for entry in file.parameters
        if entry.targets
    )
    shown = list(folded.items())[:NUM_FOLDED]
    rows = [(source, "\n".join(targets), f"{count:,}") for (source, targets), count in shown]
    page.table([("source", "left"), ("target", "left"), ("count", "right")], rows)
    if len(folded) > len(shown):
        page.line(f"… and {len(folded) - len(shown)} more kinds")
    for what, reasons in (
        ("dropped source tensors", [entry.dropped for entry in file.parameters if entry.dropped]),
        ("target tensors that nothing reaches", [entry.reason for entry in file.unreached_targets]),
    ):
        page.line()
        page.line(f"{what}: {len(reasons):,}")
        if reasons:
            common = Counter(reasons).most_common()
            page.table([("count", "right"), ("reason", "left")], ((f"{n:,}", reason) for reason, n in common))


def _folded(entry: ListedPart) -> str:
    return _kind(entry.name)[0] + (" (part)" if entry.is_part else "")


# A safetensors file


def _draw_tensors(path: Path, page: Page) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        size = path.stat().st_size
        with safe_open(path, framework="np") as tensors:
            metadata = tensors.metadata() or {}
        _, header = read_tensor_header(path, ArtefactError)
        found = {name: (str(entry["dtype"]), entry["shape"]) for name, entry in header.items()}
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ArtefactError(f"{path}: not a safetensors file, or cut short ({error})") from error
    elements = sum(int(np.prod(shape, dtype=object)) for _, shape in found.values())
    page.line(f"{path.name}: {len(found):,} tensors, {elements:,} elements, {size:,} bytes", "bold")
    for name, value in sorted(metadata.items()):
        page.line(f"{name}: {value}".replace("\n", " "))
    page.line()
    rows = [(name, dtype, " x ".join(map(str, shape)) or "scalar") for name, (dtype, shape) in found.items()]
    page.table([("tensor", "left"), ("dtype", "left"), ("shape", "right")], rows)


def draw_scores(file: ScoreMatrix, page: Page) -> None:
    """A row for each state of the stream, a column for each evaluation."""
    page.line(f"Scores along a stream: {model_line(file.model)}", "bold")
    first = {score.name: score for score in file.stages[0].scores}
    page.table(
        [("after", "left"), *((f"{name} ({score.metric})", "right") for name, score in first.items())],
        (
            (stage.label, *(_value({score.name: score.value for score in stage.scores}, name) for name in first))
            for stage in file.stages
        ),
    )
    for task, name in file.of_task.items():
        if task != name:
            page.line(f"task {task} is measured by {name}")


def _value(scores: dict[str, float], name: str) -> str:
    return f"{scores[name]:.4f}" if name in scores else "-"


def draw_step(file: StepFile, page: Page) -> None:
    """What a step was made of, what it wrote, and what it took."""
    page.line(f"Step {file.kind} {file.address[:12]}", "bold")
    page.line(
        f"{file.cost.seconds:,.1f} s, {file.cost.cpu_seconds:,.1f} s of processors, "
        f"{size(file.cost.peak_bytes)} of memory, {size(file.cost.bytes)} of files"
    )
    for what, of_it, values in (
        ("setting", "value", {name: str(value) for name, value in file.settings.items()}),
        ("input", "", {name: value[:12] for name, value in file.inputs.items()}),
        ("file", "sha256", {name: value[:12] for name, value in file.files.items()}),
    ):
        if values:
            page.line()
            page.table([(what, "left"), (of_it, "left")], values.items())


def draw_run(file: RunFile, page: Page) -> None:
    """The models that were trained, each with the directory of its training."""
    page.line(f"Run {file.name}: {file.source or '-'} → {file.target}, tasks {', '.join(file.tasks)}", "bold")
    page.table(
        [("method", "left"), ("seed", "right"), ("sweep", "left"), ("order", "left"), ("trained in", "left")],
        (
            (
                cell.method, str(cell.seed), "" if cell.axis is None else f"{cell.axis} {cell.value}",
                ", ".join(cell.order), cell.steps.get("train", "-"),
            )
            for cell in file.cells
        ),
    )  # fmt: skip


def draw_summary(file: Summary, page: Page) -> None:
    """The short tables of the report, and what they say."""
    for table in short_tables(file):
        for line in to_text(table).splitlines():
            page.line(line)
        page.line()
    for sentence in sentences(file):
        page.line(f"- {sentence}")


# What is drawn from itself alone; a layer match looks at the matrix beside it.
DRAWN: dict[type[Strict], Callable[[Any, Page], None]] = {
    CoreFile: _draw_core,
    CorrespondenceFile: _draw_correspondence,
    WarmStartFile: draw_warm_start,
    DeltaFile: draw_deltas,
    FisherFile: draw_fisher,
    StabilityFile: draw_stability,
    StreamFile: draw_stream,
    Verification: draw_verification,
    EvaluationFile: draw_evaluation,
    ScoreMatrix: draw_scores,
    RepresentationFile: draw_representation,
    StepFile: draw_step,
    RunFile: draw_run,
    Summary: draw_summary,
}
