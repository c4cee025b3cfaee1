"""Removing what no cell of a run needs any more."""

from __future__ import annotations

import shutil
from pathlib import Path

from trace_transfer.locking import held
from trace_transfer.study.graph import RunGraph


def prune_steps(graph: RunGraph, out: Path) -> tuple[str, ...]:
    """Remove the directories of steps that are not of the run as it is now; returns their names."""
    if not (out / "steps").is_dir():
        return ()
    needed = {step.directory for step in graph.steps}
    with held(out):
        unneeded = [
            place
            for place in sorted((out / "steps").iterdir())
            if place.is_dir() and f"steps/{place.name}" not in needed
        ]
        for place in unneeded:
            shutil.rmtree(place)
    return tuple(place.name for place in unneeded)
