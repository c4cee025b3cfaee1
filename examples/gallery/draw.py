"""Draws the layer match of two models for a white and for a dark page, from the directory that `map` wrote.

python -m examples.gallery.draw runs/first runs/picture
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import matplotlib

import trace_transfer as tt
from trace_transfer import figures
from trace_transfer.transfer.draw import figure_of, read_similarities, runners_up
from trace_transfer.transfer.records import LayerMatch

DARK = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "#e8e8e8")  # of matplotlib


def number(drawing: Any, match: LayerMatch) -> None:
    """Put numbers beside the parts that the page on heatmaps explains."""
    axes, bar = drawing.axes[0], drawing.axes[1]
    matched, ambiguous = ([p for p in match.pairs if p.is_ambiguous is side] for side in (False, True))
    pairs = [(p.source, p.target) for p in match.pairs]
    seconds = [pair for pair in runners_up(match.pairs, match) if pair not in pairs]
    across, up = match.target.num_layers - 1, match.source.num_layers - 1
    places = [
        (drawing.transFigure, (0.1, 1.06)),
        (axes.transData, (across * 0.9, 0)),
        *((axes.transData, (some[0].target, some[0].source)) for some in (matched[5:], ambiguous) if some),
        (axes.transData, seconds[3][::-1]),
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
    match = tt.read(directory / "layer_match.json", LayerMatch)
    figure = figure_of(match, read_similarities(directory / "similarity.safetensors", match))
    picture.parent.mkdir(parents=True, exist_ok=True)
    for ending, dark in ((".png", False), (".dark.png", True)):
        with matplotlib.rc_context(DARK if dark else {}):
            drawing = figures.picture(figure, "none" if dark else "white")
            if numbered:
                number(drawing, match)
            drawing.savefig(picture.with_suffix(ending), dpi=100, **figures.SAVED)


if __name__ == "__main__":
    draw()
