"""`summary.json`: the numbers of a run's report, each with what it was computed from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trace_transfer.artefacts.base import Strict


class Interval(Strict):
    """A mean over cells (seeds) and its 95 % interval; None where a single cell gives none."""

    mean: float
    low: float | None = None
    high: float | None = None
    num: int = Field(ge=1)


class Measure(Strict):
    """A measure in words: `formula` in plain text, `source` the paper it is from; more is better, or less."""

    name: str
    title: str
    formula: str
    source: str
    higher_is_better: bool


class MethodSummary(Strict):
    """One method at one setting.

    Attributes:
        measures: measure → its mean and interval; `average`, `backward_transfer`, `forgetting`, `forward_transfer`, and
            those that this method does not have are absent (joint training forgets nothing that it could tell).
        final: evaluation → score of the last state, in the evaluation's own metric.
        differences: measure → this method minus the reference, paired by seed; absent for the reference itself.
        costs: `identify_seconds`, `map_seconds`, `train_seconds`, `evaluate_seconds`, `seconds` (all but
            the evaluation), `peak_bytes` (of training), `bytes` (patches), `trained` (elements).
        single: measure → its value in each cell, in the order of `seeds`.
    """

    method: str
    seeds: tuple[int, ...]
    measures: dict[str, Interval]
    final: dict[str, Interval]
    differences: dict[str, Interval] = Field(default_factory=dict)
    costs: dict[str, Interval] = Field(default_factory=dict)
    single: dict[str, tuple[float, ...]] = Field(default_factory=dict)


class Curve(Strict):
    """Forgetting: the score of what a task measures, 0, 1, 2, … stages after the task was learned, over all cells."""

    method: str
    task: str
    points: tuple[Interval, ...]


class MatrixSummary(Strict):
    """Mean scores of all cells of a method with the same order: a row per stage (the first is the base)."""

    method: str
    stages: tuple[str, ...]
    evaluations: tuple[str, ...]
    means: tuple[tuple[float, ...], ...]
    num: int


class SweepPoint(Strict):
    """All methods of a sweep at one value of its axis."""

    value: Any
    label: str
    methods: tuple[MethodSummary, ...]


class SweepSummary(Strict):
    """One axis; `paper` names the table or figure of the paper that has its form."""

    axis: str
    paper: str
    points: tuple[SweepPoint, ...]


class EvaluationRecord(Strict):
    """What a column of the tables is."""

    name: str
    metric: str
    higher_is_better: bool
    num_examples: int
    task: str | None = None


class Summary(Strict):
    """`summary.json`, in the order in which a reader wants it."""

    format: Literal["trace-transfer/summary"] = "trace-transfer/summary"
    version: Literal[1] = 1
    name: str
    reference: str
    evaluations: tuple[EvaluationRecord, ...]
    base: dict[str, float]
    measures: tuple[Measure, ...]
    methods: tuple[MethodSummary, ...]
    curves: tuple[Curve, ...]
    matrices: tuple[MatrixSummary, ...]
    sweeps: tuple[SweepSummary, ...]
    notes: tuple[str, ...] = ()
    libraries: dict[str, str] = Field(default_factory=dict)
