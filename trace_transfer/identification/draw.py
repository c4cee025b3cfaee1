"""Importance heatmaps (the paper's figures 6, A.1 and A.2): as an interactive page and as a picture.

Reads: core files of one model, of one or more tasks and warm-start lengths. Writes: a self-contained HTML file
(plotly.js is inside, nothing is fetched) that shows one task at a time, and a PNG with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.families.registry import FamilyRegistry
from trace_transfer.files import replacing, write_text
from trace_transfer.identification.importance_grids import importance_of
from trace_transfer.identification.importance_view import Importance

__all__ = ["Importance", "importance_of", "write_importance_html", "write_importance_png"]


def write_importance_html(
    path: Path, cores: Sequence[CoreFile] | Importance, registry: FamilyRegistry | None = None
) -> None:
    """Write the interactive page.

    Raises:
        UserError: the core files cannot stand in one figure, see `importance_of`.
    """
    from trace_transfer.identification.importance_page import page

    write_text(path, page(_arranged(cores, registry)))


def write_importance_png(
    path: Path, cores: Sequence[CoreFile] | Importance, registry: FamilyRegistry | None = None
) -> None:
    """Draw all tasks and warm-start lengths as one PNG.

    Raises:
        UserError: the core files cannot stand in one figure, see `importance_of`.
    """
    from trace_transfer.identification.importance_png import picture

    figure = picture(_arranged(cores, registry))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


def _arranged(cores: Sequence[CoreFile] | Importance, registry: FamilyRegistry | None) -> Importance:
    return cores if isinstance(cores, Importance) else importance_of(cores, registry=registry)
