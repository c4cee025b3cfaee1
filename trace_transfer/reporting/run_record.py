"""What `run` leaves: which step made which files of which inputs, and which steps make up each cell of the tables."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trace_transfer.records import TASK, Strict

SHA256 = r"^[0-9a-f]{64}$"


class Cost(Strict):
    """What a step took; `cpu_seconds` is the processor time of its processes, which other work does not change much.

    `seconds` of wall clock over all the times that it ran until it was finished; `peak_bytes` the largest resident
    memory of its process; `bytes` of the files that it left; `trained` elements of the target
    (the most of any stage), where it trained any.
    """

    seconds: float = Field(ge=0)
    cpu_seconds: float = Field(default=0.0, ge=0)
    peak_bytes: int = Field(ge=0)
    bytes: int = Field(ge=0)
    trained: int | None = None


class StepFile(Strict):
    """`step.json`, written when a step is finished: what it is of, and the hash of everything that it wrote.

    `address` is the hash of kind, settings and inputs: another setting is another step in another directory. `inputs`
    are addresses of other steps and hashes of files, by what they are for. `removed` files were needed no longer.
    """

    format: Literal["trace-transfer/step"] = "trace-transfer/step"
    version: Literal[1] = 1
    kind: str
    address: str = Field(pattern=SHA256)
    settings: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    removed: tuple[str, ...] = ()
    cost: Cost
    libraries: dict[str, str] = Field(default_factory=dict)


class CellRecord(Strict):
    """One model that was trained: a method, a seed, and what differs from the run's settings if it is of a sweep.

    Attributes:
        axis, value: of the sweep (`ratio`, 0.05); None for the main comparison.
        order: the tasks as they were trained.
        steps: kind of step → its directory, relative to the run's (`identify` twice if source and target were).
    """

    method: str
    seed: int
    axis: str | None = None
    value: Any = None
    order: tuple[str, ...]
    steps: dict[str, str]


class MethodRecord(Strict):
    """A method in words: `title` for tables, `what` in a sentence; `needs` says on which model it identified."""

    name: str = Field(pattern=TASK)
    title: str
    what: str
    needs: Literal["none", "source", "target"]


class RunFile(Strict):
    """`run.json`: everything that a report needs to find; written when all steps are finished."""

    format: Literal["trace-transfer/run"] = "trace-transfer/run"
    version: Literal[1] = 1
    name: str
    settings: dict[str, Any]
    source: str | None
    target: str
    tasks: tuple[str, ...]
    of_task: dict[str, str]
    methods: tuple[MethodRecord, ...]
    reference: str
    cells: tuple[CellRecord, ...]
    machine: dict[str, str] = Field(default_factory=dict)
    libraries: dict[str, str] = Field(default_factory=dict)
