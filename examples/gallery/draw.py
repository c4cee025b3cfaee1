"""Draws the layer match of two models for a white and for a dark page, from the directory that `map` wrote.

python -m examples.gallery.draw runs/first runs/picture
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import matplotlib
from safetensors.numpy import load_file

import trace_transfer as tt
from trace_transfer import figures
from trace_transfer.transfer.draw import Heatmap, figure_of, view_of
from trace_transfer.transfer.records import LayerMatch

DARK = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "#e8e8e8")  # of matplotlib


def heatmap_of(directory: Path) -> Heatmap:
    match = tt.read(directory / "layer_match.json")
    assert isinstance(match, LayerMatch)
    similarity = load_file(directory / "similarity.safetensors")["similarity"]
    view = view_of(match.representation, similarity, match.pairs, by_target=match.chosen_by == "target")
    names = [Path(model.id).name for model in (match.source, match.target)]
    how = f"{match.similarity}, {match.probe.rows} rows, {match.policy} match, {match.probe.num_texts} texts"
    return Heatmap(names[0], names[1], (view,), how, match.verdict)


def number(drawing: Any, heatmap: Heatmap) -> None:
    """Put numbers beside the parts that the page on heatmaps explains."""
    view, axes, bar = heatmap.used, drawing.axes[0], drawing.axes[1]
    matched = [pair for pair in view.pairs if pair not in view.ambiguous]
    across, up = view.similarity.shape[1] - 1, view.similarity.shape[0] - 1
    places = [
        (drawing.transFigure, (0.1, 1.06)),
        (axes.transData, (across * 0.9, 0)),
        *((axes.transData, (pair[0][1], pair[0][0])) for pair in (matched[5:], sorted(view.ambiguous)) if pair),
        (axes.transData, view.other_runner_ups[3][::-1]),
        (axes.transData, (across * 0.58, up * 0.58)),
        (bar.transAxes, (0.5, 0.5)),
    ]
    look = {"fontsize": 9, "fontweight": "bold", "color": "white", "ha": "center", "va": "center", "zorder": 9}
    box = {"boxstyle": "circle,pad=0.25", "facecolor": "#cf4520", "edgecolor": "white"}
    for count, (transform, at) in enumerate(places, 1):
        owner = bar if count == len(places) else axes
        owner.annotate(str(count), at, xycoords=transform, xytext=(0, 14), textcoords="offset points", bbox=box,
                      annotation_clip=False, **look)  # fmt: skip


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option("--numbered", is_flag=True, help="Number the parts that the documentation explains.")
def draw(directory: Path, picture: Path, numbered: bool) -> None:
    """Write PICTURE.png and PICTURE.dark.png of the match in DIRECTORY."""
    heatmap = heatmap_of(directory)
    picture.parent.mkdir(parents=True, exist_ok=True)
    for ending, dark in ((".png", False), (".dark.png", True)):
        with matplotlib.rc_context(DARK if dark else {}):
            drawing = figures.picture(figure_of(heatmap), "none" if dark else "white")
            if numbered:
                number(drawing, heatmap)
            drawing.savefig(picture.with_suffix(ending), dpi=100, **figures.SAVED)


if __name__ == "__main__":
    draw()
