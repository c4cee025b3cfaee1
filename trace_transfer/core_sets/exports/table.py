"""Every parameter of core files with score and ranges, as CSV for spreadsheets and pandas."""

from __future__ import annotations

import csv
import io

from trace_transfer.core_sets.exports.core_set import CoreSet
from trace_transfer.models.sources import AXES, Ranges

COLUMNS = ("task", "rank", "name", *AXES, "shape", "elements", "component", "layer", "score", "core")


def write_csv(core: CoreSet) -> str:
    """One row per entry, in the order of the files: best score first. Ranges are `0:576 1152:1728`, none is all."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for file in core.cores:
        for rank, entry in enumerate(file.parameters, 1):
            table.writerow([
                file.task, rank if entry.score is not None else None, entry.name, *map(_ranges, entry.place[1:]),
                "x".join(map(str, entry.shape)), entry.num_elements, entry.component, entry.layer, entry.score,
                int(entry.core),
            ])  # fmt: skip
    return text.getvalue()


def _ranges(ranges: Ranges | None) -> str:
    return " ".join(f"{start}:{stop}" for start, stop in ranges or ())
