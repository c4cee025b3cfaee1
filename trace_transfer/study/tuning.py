"""The learning rate of each method: the one whose models end best, on average over the seeds of the tuning.

Reads: the scores of finished steps of models that were trained at several rates. The choice is part of no step: models
at the chosen rate are steps like any others, so that a rate that is added makes only what it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trace_transfer.evaluation.records import ScoreMatrix
from trace_transfer.files import sha256_file
from trace_transfer.records import read_artefact
from trace_transfer.reporting.front import best_rate
from trace_transfer.reporting.records import StepFile
from trace_transfer.reporting.summarising import final_average

if TYPE_CHECKING:
    from trace_transfer.study.cells import Cell
    from trace_transfer.study.run_file import Study
    from trace_transfer.study.steps import Step


def chosen_rates(run: Study, cells: Iterable[tuple[Cell, Mapping[str, Step]]]) -> dict[str, float]:
    """Method → its rate, of the methods whose models for the tuning are all trained and scored."""
    assert run.tuning is not None  # or there were none to choose from
    found: dict[str, dict[float, list[float | None]]] = {}
    for cell, steps in cells:
        if cell.seed in run.tuning.seeds:
            rates = found.setdefault(cell.method.name, {})
            rates.setdefault(cell.value, []).append(_scored(run, run.out / steps["evaluate"].directory))
    known = {
        method: {rate: [value for value in values if value is not None] for rate, values in rates.items()}
        for method, rates in found.items()
        if all(value is not None for values in rates.values() for value in values)
    }
    return {method: best_rate(rates) for method, rates in known.items()}


def _scored(run: Study, directory: Path) -> float | None:
    """How a model ends; None where that is not finished, or is to be made again."""
    record, scores = directory / "step.json", directory / "scores.json"
    if not record.is_file() or not scores.is_file():
        return None
    step: StepFile = read_artefact(record, StepFile)
    if step.files.get(scores.name) != sha256_file(scores):
        return None
    return final_average(read_artefact(scores, ScoreMatrix), run.of_task)
