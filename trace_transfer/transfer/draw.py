"""A layer match as people see it: the heatmap as a page, as a picture and in a report; what `map` prints.

Reads: `layer_match.json`, and `similarity.safetensors` beside it. Writes `heatmap.html`, `heatmap.png`. Layer 0 is at
the lower left: depth grows up and to the right. The page holds every representation that was compared, the picture the
one that the match was made with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trace_transfer import figures
from trace_transfer.errors import ArtefactError, few
from trace_transfer.families.anatomy import folded_name, layer_ranges
from trace_transfer.figures import Axis, Cells, Figure, Marks, Pair, Panel, Row, colour_range, shortened
from trace_transfer.files import size
from trace_transfer.pages import escaped
from trace_transfer.records import read_artefact
from trace_transfer.terminal import Page, Shown, as_text
from trace_transfer.transfer.policies import POLICIES, Matrix
from trace_transfer.transfer.records import LayerMatch, LayerPair, rated

if TYPE_CHECKING:
    from trace_transfer.transfer.mapping import MapEstimate, MapPlan, MapResult
    from trace_transfer.transfer.translation import Carried

MATCH, SIMILARITY, HEATMAPS = "layer_match.json", "similarity.safetensors", ("heatmap.html", "heatmap.png")
WIDTH, HEIGHT, SMALLEST_WIDTH, SMALLEST_HEIGHT, LARGEST_CELL = 1010, 490, 400, 190, 80  # px of all cells, of a cell
DESCRIPTIONS = {"stream": "stream: the state after each layer", "update": "update: what each layer adds"}
CAPTION = (
    "Each cell compares one layer of {source} (row) with one layer of {target} (column) on the same texts. CKA is 1 "
    "where both hold the same information up to rotation and scale, and about 0 where they have nothing in common. "
    "Dots are the matched pairs; a hollow dot is ambiguous, because other texts often choose another layer. Diamonds "
    "are runners-up. On the dashed line both layers are equally deep in their models. Grey cells have no value: "
    "the layer gives the same row for every text, or depth alone decided. Point at a cell to read its values; drag to "
    "zoom in, double-click to zoom out."
)


def read_similarities(file: Path, match: LayerMatch) -> dict[str, Matrix]:
    """Representation → matrix [source layers, target layers], from the file beside a match; NaN for a degenerate layer.
    An ArtefactError if it lacks the one that the match was made with, or has one of other models."""
    from safetensors import SafetensorError, safe_open

    expected = [match.source.num_layers, match.target.num_layers]
    try:
        with safe_open(file, framework="np") as tensors:
            keys = {key.removeprefix("similarity."): key for key in tensors.keys() if "." in key}  # noqa: SIM118
            keys[match.representation] = "similarity"
            found = {name: tensors.get_tensor(key).astype(np.float64) for name, key in sorted(keys.items())}
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{file}: holds no readable tensor 'similarity' ({error}); run the match again") from error
    for matrix in found.values():
        if list(matrix.shape) != expected:
            raise ArtefactError(
                f"{file}: 'similarity' is {list(matrix.shape)}, but the layer match is of {expected} layers; "
                "the two files are not of one run"
            )
    return found


def write_heatmap(directory: Path) -> list[Path]:
    """Draw the layer match that lies in a directory, beside it."""
    match: LayerMatch = read_artefact(directory / MATCH, LayerMatch)
    figure = figure_of(match, read_similarities(directory / SIMILARITY, match))
    return figures.write_figure(directory / "heatmap", figure)


def figure_of(match: LayerMatch, similarities: Mapping[str, Matrix]) -> Figure:
    """All representations on the page, the match's first, and that one as a picture; the verdict is on top. The others'
    pairs are what the same policy chooses there."""
    names = [Path(one.id).name.removesuffix(".gguf") or one.id for one in (match.source, match.target)]
    used, rows = match.representation, []
    for name in sorted(similarities, key=lambda name: name != used):
        similarity, pairs = similarities[name], match.pairs
        if name != used:
            chosen = POLICIES[match.policy](similarity, match.probe.seed) if match.policy in POLICIES else ()
            pairs = rated(chosen, similarity, match.chosen_by == "target")
        title = DESCRIPTIONS.get(name, name)
        title += " (used for the match)" if name == used and len(similarities) > 1 else ""
        rows.append(row(similarity, pairs, match, names, title))
    probe = match.probe
    subtitle = f"{match.similarity}, {probe.rows} rows, {match.policy} match, {probe.num_texts} texts, {used}"
    subtitle = subtitle if probe.num_texts else f"{match.policy} match, no texts"
    caption = CAPTION.format(source=escaped(names[0]), target=escaped(names[1]))
    title = f"Layer match: {names[0]} → {names[1]}"
    return Figure(title, match.verdict, rows, subtitle, "no value", caption, alone=True)


def row(similarity: Matrix, pairs: Sequence[LayerPair], match: LayerMatch, names: Sequence[str], title: str) -> Row:
    """One similarity as a panel: cells, runners-up below the pairs chosen in it, the line of equal depth."""
    num_source, num_target = similarity.shape
    cell = min(WIDTH / num_target, HEIGHT / num_source, LARGEST_CELL)
    width, height = max(num_target * cell, SMALLEST_WIDTH), max(num_source * cell, SMALLEST_HEIGHT)
    dot = min(max(min(width / num_target, height / num_source) * 0.5, 5), 12)
    ends = (-0.5, num_target - 0.5), (-0.5, num_source - 0.5)
    seconds = runners_up(pairs, match)
    cells = Cells(similarity, _texts(similarity, pairs, seconds), np.ones(similarity.shape, bool), *ends)
    sure, unsure = ([(p.source, p.target) for p in pairs if p.is_ambiguous is side] for side in (False, True))
    marks = [
        Marks("equal depth", np.array([[0, 0], [num_target - 1, num_source - 1]], float), dash="5px,5px"),
        Marks("runner-up", _places([one for one in seconds if one not in (*sure, *unsure)]), sizes=0.9 * dot,
              symbol="diamond", opacity=0.6),
        Marks("matched pair", _places(sure), sizes=dot),
        Marks("ambiguous pair", _places(sorted(unsure)), sizes=dot, hollow=True),
    ]  # fmt: skip
    panel = Panel(
        Axis(*ends[0], _axis_title("target", names[1], int(width / figures.CHARACTER))),
        Axis(*ends[1], _axis_title("source", names[0], int(height / figures.CHARACTER))),
        width, height, [cells], [one for one in marks if len(one.places)],
    )  # fmt: skip
    return Row(title, [panel], colour_range(similarity), "CKA")


def runners_up(pairs: Sequence[LayerPair], match: LayerMatch) -> list[Pair]:
    """The second choices of a match's choosing layers, each once."""
    by_target = match.chosen_by == "target"
    found = [(one.source, one.target, one.runner_up) for one in pairs if one.runner_up is not None]
    return list(dict.fromkeys((other, t) if by_target else (s, other) for s, t, other in found))


def _places(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    return np.array([(target, source) for source, target in pairs], float).reshape(-1, 2)


def _texts(similarity: Matrix, pairs: Sequence[LayerPair], seconds: Sequence[Pair]) -> list[list[str]]:
    texts = [
        [f"source layer {source} → target layer {target}\n"
         + (f"CKA {value:.3f}" if np.isfinite(value) else "no CKA")
         for target, value in enumerate(values)]
        for source, values in enumerate(similarity.tolist())
    ]  # fmt: skip
    for pair in pairs:
        told = ", matched" + ("" if pair.margin is None else f", margin {pair.margin:.3f}")
        texts[pair.source][pair.target] += told + (", ambiguous" if pair.is_ambiguous else "")
    for source, target in seconds:
        texts[source][target] += ", runner-up"
    return texts


def _axis_title(side: str, name: str, room: int) -> str:
    """`target layer of NAME →` within that many characters."""
    return f"{side} layer of {shortened(name, room - len(f'{side} layer of  →'))} →"


# ---- in the terminal


@as_text
def render_summary(page: Page, result: MapResult) -> None:
    match = result.match
    layers = [one.num_layers for one in (match.source, match.target)]
    title = f"{result.source.name} ({layers[0]} layers) → {result.target.name} ({layers[1]} layers)"
    draw_match(page, match, title)
    if result.carried:
        page.line()
        _draw_cores(page, result.carried)
        for carried in result.carried:
            _draw_dropped(page, carried)
    page.lines(f"! {warning}" for warning in match.warnings)
    page.written(result.files)
    page.line()
    page.line(match.verdict, "bold")


def draw_match(page: Page, match: LayerMatch, title: str) -> None:
    layers = match.source.num_layers, match.target.num_layers
    known = [(pair.similarity, pair) for pair in match.pairs if pair.similarity is not None]
    margins = sorted(pair.margin for pair in match.pairs if pair.margin is not None)
    used = layers[0] - len(match.unmatched_sources), layers[1] - len(match.unmatched_targets)
    rows = [("pairs", f"{len(match.pairs)}, of {used[0]} source and {used[1]} target layers")]
    if known:
        ends = ("strongest", max(known, key=itemgetter(0))), ("weakest", min(known, key=itemgetter(0)))
        rows += [(name, f"{pair.source} → {pair.target}  CKA {cka:.3f}") for name, (cka, pair) in ends]
    if margins:
        middle = margins[len(margins) // 2]
        rows.append(("margin to the runner-up", f"median {middle:+.4f}, least {margins[0]:+.4f}"))
    for name, unused in (
        ("unused target layers", match.unmatched_targets), ("unused source layers", match.unmatched_sources),
        ("target layers without a value", match.degenerate_targets),
        ("source layers without a value", match.degenerate_sources),
    ):  # fmt: skip
        if unused or name == "unused target layers":
            rows.append((name, f"{len(unused)}: {layer_ranges(unused)}" if unused else "none"))
    if match.stability:
        share = f"{match.stability.same:.0%} of the layers, {match.stability.within_one:.0%} to within one"
        rows.append(("same choice on other texts", share))
    if match.policy_agreement:
        agreement = ", ".join(f"{name} {share:.0%}" for name, share in match.policy_agreement.items())
        rows.append(("pairs in common with", agreement))
    if match.depth:
        depth = f"{match.depth.agreement:.0%}, {match.depth.within_one:.0%} to within one layer"
        rows.append(("same as relative depth", depth))
    how = f"{match.policy}, {match.similarity}, {match.representation}" if match.probe.num_texts else match.policy
    page.table(("layer match", how), rows, title)


def _draw_cores(page: Page, carried: tuple[Carried, ...]) -> None:
    rows = []
    for one in carried:
        assert one.core.transferred_from is not None  # it was carried
        sides = []
        for core in (one.source, one.core):
            sides.append(f"{len(core.core)} of {len(core.parameters)} = {core.ratio_of_tensors:.2%}")
            sides.append(f"{core.ratio_of_elements:.2%}")
        rows.append((one.core.task, one.core.transferred_from.carry, *sides))
    page.table(("task", "carried", "source: tensors", "parameters", "target: tensors", "parameters"), rows, "core sets")


def _draw_dropped(page: Page, carried: Carried) -> None:
    if not carried.dropped:
        return
    page.line(f"{carried.core.task}: {len(carried.dropped)} core tensors have no counterpart:")
    for reason, _ in Counter(carried.dropped.values()).most_common():
        names = _over_layers([name for name, why in carried.dropped.items() if why == reason])
        page.line(f"  {few(names)}: {reason}")


def _over_layers(names: Sequence[str]) -> list[str]:
    """Names that differ in the number of their layer as one: `model.layers.{0-3, 7}.mlp.up_proj.weight`."""
    layers: dict[str, list[int]] = {}
    for name in names:
        layers.setdefault(folded_name(name), []).extend([int(one) for one in name.split(".") if one.isdecimal()][:1])
    told = {name: layer_ranges(of) for name, of in layers.items()}
    return [name.replace("{layer}", text if text.isdecimal() else f"{{{text}}}") for name, text in told.items()]


@as_text
def render_estimate(page: Page, plan: MapPlan, estimate: MapEstimate) -> None:
    models, readings = (plan.source, plan.target), (plan.rows.source, plan.rows.target)
    rows: list[tuple[Shown, ...]] = [
        ("family", *(model.anatomy.family for model in models)),
        ("layers", *(model.anatomy.num_layers for model in models)),
        ("tensors", *(len(model.anatomy.inventory.shapes) for model in models)),
        ("parameters", *(model.anatomy.inventory.num_elements for model in models)),
        ("probe tokens", *(sum(map(len, reading.ids)) for reading in readings)),
        ("memory: largest layer", *(size(one.layer_bytes) for one in estimate.models)),
        ("memory: hidden states", *(size(one.hidden_bytes) for one in estimate.models)),
        ("memory: Gram matrices", *(size(one.gram_bytes) for one in estimate.models)),
        ("time of arithmetic", *(str(timedelta(seconds=round(one.seconds))) for one in estimate.models)),
    ]
    page.table(("", *(model.name for model in models)), rows, "nothing is read or written (--dry-run)")
    page.line(
        f"{sum(plan.rows.sizes):,} rows in {len(plan.rows.sizes)} minibatches from {len(plan.probe.texts)} texts; peak "
        f"about {size(estimate.peak_bytes)} beside the libraries; on {', '.join(dict.fromkeys(plan.devices))} in "
        f"{str(plan.dtype).removeprefix('torch.')} at {estimate.flops_per_second / 1e9:,.0f} GFLOP/s."
        if plan.rows.sizes else "Layers are paired by relative depth alone: neither model is read."
    )  # fmt: skip
    for model in models:
        anatomy = model.anatomy
        kinds = Counter(
            (folded_name(name), " × ".join(map(str, shape)), ", ".join(anatomy.describe(name)[1]) or "excluded")
            for name, shape in anatomy.inventory.shapes.items()
        )
        page.line()
        folded = [(name, shape, count, component) for (name, shape, component), count in kinds.items()]
        page.table(("name", "shape", "count", "component"), folded, f"tensors of {model.name}")
