"""What a run leaves: `run.json` and `step.json` of its steps, and `summary.json`, the numbers of its report.

Steps say which files they made of which inputs, cells which steps made them; the summary says what the scores come to.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from trace_transfer.errors import MAX_LISTED
from trace_transfer.records import TASK, Name, Strict

SHA256 = r"^[0-9a-f]{64}$"


class Cost(Strict):
    """What a step took, over all the times that it ran until it was finished."""

    seconds: float = Field(ge=0)
    cpu_seconds: float = Field(default=0.0, ge=0)  # processor time of its processes
    peak_bytes: int = Field(ge=0)  # the largest resident memory of its process
    bytes: int = Field(ge=0)  # the size of its files
    trained: int | None = None  # elements of the target (the most of any stage), where it trained any


class StepFile(Strict):
    """`step.json`, written when a step is finished: what it is of, and the hash of everything that it wrote."""

    format: Literal["trace-transfer/step"] = "trace-transfer/step"
    version: Literal[1] = 1
    kind: str
    address: str = Field(pattern=SHA256)  # of kind, settings and inputs: another setting is another step and directory
    settings: dict[str, Any]
    inputs: dict[str, str]  # what it is for → address of another step, or hash of a file
    files: dict[str, str]
    removed: tuple[str, ...] = ()  # files that were needed no longer
    cost: Cost
    libraries: dict[str, str] = Field(default_factory=dict)


TUNING = "tuning"  # the axis of models of which learning rates are chosen


class CellRecord(Strict):
    """One model that was trained: a method, a seed, and what differs from the run's settings if it is of a sweep.

    Attributes:
        axis, value: of the sweep (`ratio`, 0.05); None for the main comparison; `tuning` and the learning rate for the
            models of which rates are chosen.
        draw: of a random control, which of the draws of the seed.
        order: the tasks as they were trained.
        steps: kind of step → its directory, relative to the run's (`identify` twice if source and target were).
    """

    method: str
    seed: int
    axis: str | None = None
    value: Any = None
    draw: int = 0
    order: tuple[str, ...]
    steps: dict[str, str]


class MethodRecord(Strict):
    """A method in words: `title` for tables, `what` in a sentence; `needs` says on which model it identified."""

    name: str = Field(pattern=TASK)
    title: Name
    what: Name
    needs: Literal["none", "source", "target"]


MATCHED = "matched_forgetting"
MeasureName = Literal[
    "average", "backward_transfer", "forgetting", "forward_transfer", "learning", "matched_forgetting"
]


class Stated(Strict):
    """Comparisons that the run file states beforehand: each of the methods minus another, in one measure."""

    question: Name
    methods: tuple[str, ...]
    against: str
    measure: MeasureName = "average"


class Tuning(Strict):
    """Which learning rates of each method were tried on which seeds, and which one was best there on average."""

    seeds: tuple[int, ...]
    rates: dict[str, tuple[float, ...]]
    chosen: dict[str, float]


class RunFile(Strict):
    """`run.json`: everything that a report needs to find; written before the steps, and again when all are finished."""

    format: Literal["trace-transfer/run"] = "trace-transfer/run"
    version: Literal[1] = 1
    name: Name
    settings: dict[str, Any]
    source: str | None = None
    target: str
    tasks: tuple[str, ...]
    of_task: dict[str, str]
    methods: tuple[MethodRecord, ...]
    reference: str
    cells: tuple[CellRecord, ...]
    tuning: Tuning | None = None
    comparisons: tuple[Stated, ...] = ()
    machine: dict[str, str] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        methods = {one.name for one in self.methods}
        for one in self.cells:
            fits = one.method in methods and {*one.order} == {*self.tasks} and {"train", "evaluate"} <= {*one.steps}
            if not fits:
                raise ValueError(f"{one.method}, seed {one.seed}: its method, tasks or steps are not those of the run")
        if lacking := [task for task in self.tasks if task not in self.of_task]:
            raise ValueError(f"of_task does not say which evaluation measures {', '.join(lacking)}")
        return self


# Metrics whose values are shares in [0, 1], by the beginnings of their names; tables show them in percent.
SHARES = ("acc", "exact_match", "pass@", "f1", "balanced_acc")

# What a difference says; `verdicts.verdict` decides.
Verdict = Literal["better", "worse", "chance", "undecided", "equal", "unknown"]


class Interval(Strict):
    """A mean over cells (seeds) and its 95 % interval (Student's t); None where fewer than three cells give none.

    `p` is of differences, two-sided, by the paired t test; `p_adjusted` (Holm) for all differences of the same measure
    in the same table, and where one answers a question for all questions, too: the larger of both."""

    mean: float
    low: float | None = None
    high: float | None = None
    num: int = Field(ge=1)
    p: float | None = None
    p_adjusted: float | None = None
    verdict: Verdict | None = None


class Measure(Strict):
    """A measure in words: `formula` in plain text, `source` the paper it is from; more is better, or less."""

    name: Name
    title: Name
    formula: str
    source: str
    higher_is_better: bool


class MethodSummary(Strict):
    """One method at one setting."""

    method: str
    title: Name = ""
    what: Name = ""
    needs: Literal["none", "source", "target"] = "none"
    seeds: tuple[int, ...]
    # Measure → its mean and interval, absent where the method has none (joint training forgets nothing that it could
    # tell). More is better but for forgetting: of a loss the sign is flipped.
    measures: dict[str, Interval]
    final: dict[str, Interval]  # evaluation → score of the last state, in the evaluation's own metric
    # This method minus the reference, paired by seed; absent for the reference itself.
    differences: dict[str, Interval] = Field(default_factory=dict)
    final_differences: dict[str, Interval] = Field(default_factory=dict)
    # Seconds of each part and of all but the evaluation, bytes, elements. A step that several cells share is counted in
    # full for each: what the method would cost alone.
    costs: dict[str, Interval] = Field(default_factory=dict)
    # Measure or evaluation → its value in each cell, in the order of `seeds`.
    single: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    single_final: dict[str, tuple[float, ...]] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.title or self.method


class Curve(Strict):
    """Forgetting: the score of what measures a task, 0, 1, 2, … stages after the task was learned, over all cells."""

    method: str
    task: str
    evaluation: str = ""
    # In the evaluation's own metric. Where cells train different orders, a later point is of fewer of them (`num`):
    # those in which the task came early enough.
    points: tuple[Interval, ...]


class MatrixSummary(Strict):
    """Mean scores of all cells of a method with the same order: a row per stage (the first is the base)."""

    method: str
    order: tuple[str, ...] = ()  # the one that most cells have, the first of those
    stages: tuple[str, ...]
    evaluations: tuple[str, ...]
    means: tuple[tuple[float, ...], ...]
    num: int  # cells that have this order


class SweepPoint(Strict):
    """All methods of a sweep at one value of its axis."""

    value: Any
    label: Name
    methods: tuple[MethodSummary, ...]


class SweepSummary(Strict):
    """One axis; `paper` names the table or figure of the paper that has its form."""

    axis: str
    paper: str
    points: tuple[SweepPoint, ...]


class Comparison(Strict):
    """A question to the run, asked of two of its methods: `method` minus `other`, paired by seed."""

    question: str
    method: str
    other: str
    measure: str
    difference: Interval
    answer: str = ""  # by earlier versions
    # The difference that so many seeds find with a probability of 80 %, by how much their pairs deviate, at 0.05
    # divided by the number of comparisons.
    smallest_found: float | None = None
    level: float | None = None  # the learning at which `matched_forgetting` is told


class RatePoint(Strict):
    """Models of a method at one learning rate: `average` over the seeds of the tuning (the highest is chosen), learning
    and −backward transfer over the seeds that trained every rate."""

    rate: float
    average: Interval
    learned: Interval
    lost: Interval | None = None


class TunedMethod(Strict):
    """A method's rates, lowest first; `edge` where the chosen one is the lowest or the highest of them."""

    method: str
    chosen: float
    edge: Literal["lowest", "highest"] | None = None
    points: tuple[RatePoint, ...]


class TuningSummary(Strict):
    """How learning rates were chosen; `front_seeds` trained every rate."""

    seeds: tuple[int, ...]
    front_seeds: tuple[int, ...]
    methods: tuple[TunedMethod, ...]


class Answer(Strict):
    """A question that a run was made for, and its answer in a sentence; one about times `varies` from run to run."""

    question: str
    text: str
    varies: bool = False


class EvaluationRecord(Strict):
    """What a column of the tables is; `task` is what it measures (several joined by commas), None if nothing taught."""

    name: Name
    metric: str
    higher_is_better: bool
    num_examples: int
    task: str | None = None

    @property
    def share(self) -> bool:
        """Whether its values are shares in [0, 1]."""
        return self.metric.startswith(SHARES)


class Summary(Strict):
    """`summary.json`, in the order in which a reader wants it; `stated`: the run file stated the comparisons."""

    format: Literal["trace-transfer/summary"] = "trace-transfer/summary"
    version: Literal[1] = 1
    name: Name
    reference: str
    evaluations: tuple[EvaluationRecord, ...]
    base: dict[str, float]
    measures: tuple[Measure, ...]
    methods: tuple[MethodSummary, ...]
    curves: tuple[Curve, ...]
    matrices: tuple[MatrixSummary, ...]
    sweeps: tuple[SweepSummary, ...]
    tuning: TuningSummary | None = None
    stated: bool = False
    comparisons: tuple[Comparison, ...] = ()
    headline: str = ""
    cost: str = ""
    caveat: str = ""
    answers: tuple[Answer, ...] = ()
    notes: tuple[str, ...] = ()
    libraries: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _scores_of_every_evaluation(self) -> Self:
        swept = [method for sweep in self.sweeps for point in sweep.points for method in point.methods]
        of: dict[str, Collection[str]] = {
            "base": self.base,
            **{f"final of {one.method}": one.final for one in (*self.methods, *swept)},
        }
        if lacking := [f"{where}: no {one.name}" for where, scores in of.items() for one in self.evaluations
                       if one.name not in scores]:  # fmt: skip
            raise ValueError("; ".join(lacking[:MAX_LISTED]))
        return self

    @property
    def measures_are_shares(self) -> bool:
        """Whether all that the measures are made of are shares, so that they can be told in percent."""
        return all(record.share for record in self.taught)

    @property
    def columns(self) -> dict[str, EvaluationRecord]:
        return {record.name: record for record in self.evaluations}

    @property
    def taught(self) -> list[EvaluationRecord]:
        return [record for record in self.evaluations if record.task is not None]

    def title(self, method: str) -> str:
        return next((one.name for one in self.methods if one.method == method), method)
