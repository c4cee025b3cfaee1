"""The similarity of all layers of two models and the pairs chosen among them: as a page, as a picture, in a report.

Layer 0 is at the lower left: depth grows up and to the right. The page holds every representation that was compared,
the picture the one that the match was made with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trace_transfer import figures
from trace_transfer.errors import ArtefactError
from trace_transfer.figures import Axis, Cells, Figure, Marks, Pair, Panel, Row, colour_range, shortened
from trace_transfer.pages import escaped
from trace_transfer.transfer.records import LayerMatch, LayerPair

WIDTH, HEIGHT, SMALLEST_WIDTH, SMALLEST_HEIGHT, LARGEST_CELL = 1010, 490, 400, 190, 80  # px of all cells, of a cell
DESCRIPTIONS = {"stream": "stream: the state after each layer", "update": "update: what each layer adds"}
CAPTION = (
    "Each cell compares one layer of {source} (row) with one layer of {target} (column) on the same texts. CKA is 1 "
    "where both hold the same information up to rotation and scale, and about 0 where they have nothing in common. "
    "Dots are the matched pairs; a hollow dot is ambiguous, because other texts often choose another layer. Diamonds "
    "are runners-up. On the dashed line both layers are equally deep in their models. Grey cells have no value: "
    "the layer gives the same row for every text. Point at a cell to read its values; drag to zoom in, double-click to "
    "zoom out."
)


@dataclass(frozen=True)
class View:
    """One similarity matrix [source layers, target layers] and the pairs chosen in it.

    `similarity` is NaN for a degenerate layer; `pairs` are the chosen (source, target), possibly many-to-many; the
    match was made with the `used` view; `ambiguous` are the chosen pairs that other texts often choose otherwise.
    """

    name: str
    similarity: NDArray[np.float64]
    pairs: tuple[Pair, ...]
    runner_ups: tuple[Pair, ...]
    margins: Mapping[Pair, float]
    used: bool
    ambiguous: frozenset[Pair] = frozenset()

    @property
    def other_runner_ups(self) -> tuple[Pair, ...]:
        """Runner-ups that are not themselves chosen, each once."""
        return tuple(dict.fromkeys(pair for pair in self.runner_ups if pair not in self.pairs))


@dataclass(frozen=True)
class Heatmap:
    """One or more views of the same two models; exactly one of them was used. `verdict` stands below the title."""

    source_name: str
    target_name: str
    views: tuple[View, ...]
    subtitle: str
    verdict: str = ""

    @property
    def used(self) -> View:
        return next(view for view in self.views if view.used)


def view_of(
    name: str, similarity: NDArray[np.float64], pairs: Sequence[LayerPair], *, by_target: bool, used: bool = True
) -> View:
    """What is shown of a layer match; `by_target` says that target layers chose their source layers."""
    runner_ups = [(pair, pair.runner_up) for pair in pairs if pair.runner_up is not None]
    return View(
        name=name, similarity=similarity, pairs=tuple((pair.source, pair.target) for pair in pairs),
        runner_ups=tuple((other, p.target) if by_target else (p.source, other) for p, other in runner_ups),
        margins={(p.source, p.target): p.margin for p in pairs if p.margin is not None}, used=used,
        ambiguous=frozenset((pair.source, pair.target) for pair in pairs if pair.is_ambiguous),
    )  # fmt: skip


def read_similarity(file: Path, match: LayerMatch) -> NDArray[np.float64]:
    """The matrix of a match, from the file beside it.

    Raises:
        ArtefactError: the file has none, or one of other models.
    """
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


def figure_of(heatmap: Heatmap) -> Figure:
    """All views on the page, of which the used one is shown first, and that one as a picture; the verdict is on top."""
    views = sorted(heatmap.views, key=lambda view: not view.used)
    above, *below = filter(None, (heatmap.verdict, ", ".join(filter(None, (heatmap.subtitle, views[0].name)))))
    caption = CAPTION.format(source=escaped(heatmap.source_name), target=escaped(heatmap.target_name))
    return Figure(
        f"Layer match: {heatmap.source_name} → {heatmap.target_name}", above, [row(heatmap, view) for view in views],
        "".join(below), "no value", caption, alone=True,
    )  # fmt: skip


def row(heatmap: Heatmap, view: View) -> Row:
    """One view as a panel: cells, runner-ups below the chosen pairs, the line of equal depth."""
    num_source, num_target = view.similarity.shape
    cell = min(WIDTH / num_target, HEIGHT / num_source, LARGEST_CELL)
    width, height = max(num_target * cell, SMALLEST_WIDTH), max(num_source * cell, SMALLEST_HEIGHT)
    size = min(max(min(width / num_target, height / num_source) * 0.5, 5), 12)
    ends = (-0.5, num_target - 0.5), (-0.5, num_source - 0.5)
    cells = Cells(view.similarity, _texts(view), np.ones(view.similarity.shape, bool), *ends)
    sure = [pair for pair in view.pairs if pair not in view.ambiguous]
    marks = [
        Marks("equal depth", np.array([[0, 0], [num_target - 1, num_source - 1]], float), dash="5px,5px"),
        Marks("runner-up", _places(view.other_runner_ups), sizes=0.9 * size, symbol="diamond", opacity=0.6),
        Marks("matched pair", _places(sure), sizes=size),
        Marks("ambiguous pair", _places(sorted(view.ambiguous)), sizes=size, hollow=True),
    ]
    panel = Panel(
        Axis(*ends[0], _axis_title("target", heatmap.target_name, int(width / figures.CHARACTER))),
        Axis(*ends[1], _axis_title("source", heatmap.source_name, int(height / figures.CHARACTER))),
        width, height, [cells], [one for one in marks if len(one.places)],
    )  # fmt: skip
    name = DESCRIPTIONS.get(view.name, view.name)
    if len(heatmap.views) > 1 and view.used:
        name += " (used for the match)"
    return Row(name, [panel], colour_range(view.similarity), "CKA")


def _places(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    return np.array([(target, source) for source, target in pairs], float).reshape(-1, 2)


def _texts(view: View) -> list[list[str]]:
    texts = [
        [f"source layer {source} → target layer {target}\n"
         + (f"CKA {value:.3f}" if np.isfinite(value) else "no CKA: a degenerate layer")
         for target, value in enumerate(values)]
        for source, values in enumerate(view.similarity.tolist())
    ]  # fmt: skip
    for source, target in dict.fromkeys(view.pairs):
        margin = view.margins.get((source, target))
        texts[source][target] += ", matched" + ("" if margin is None else f", margin {margin:.3f}")
        texts[source][target] += ", ambiguous" if (source, target) in view.ambiguous else ""
    for source, target in dict.fromkeys(view.runner_ups):
        texts[source][target] += ", runner-up"
    return texts


def _axis_title(side: str, name: str, room: int) -> str:
    """`target layer of NAME →` within that many characters, without a name of which too little would be left."""
    left = room - len(f"{side} layer of  →")
    return f"{side} layer of {shortened(name, left)} →" if left >= min(len(name), 14) else f"{side} layer →"
