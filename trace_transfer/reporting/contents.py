"""What a report is about: a run's record, its summary, and what its steps found, already read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.patch.records import Count
from trace_transfer.records import ModelIdentity
from trace_transfer.reporting.records import CellRecord, EvaluationRecord, RunFile, StepFile, Summary
from trace_transfer.represent.records import RepresentationFile
from trace_transfer.transfer.records import LayerMatch

Role = Literal["source", "target", "carried"]
ROLES: dict[Role, str] = {
    "source": "identified on the source",
    "target": "identified on the target",
    "carried": "carried to the target",
}


# Methods that take a carried core set for its size, and train others.
SIZE_ONLY = ("random", "first", "last")


@dataclass(frozen=True)
class Use:
    """A cell in which something was used: `axis` and `value` (as JSON) of its sweep, None in the main comparison."""

    method: str
    seed: int
    axis: str | None
    value: str | None

    @classmethod
    def of(cls, cell: CellRecord) -> Use:
        return cls(cell.method, cell.seed, cell.axis, None if cell.axis is None else json.dumps(cell.value))


@dataclass(frozen=True)
class MatchFound:
    """A layer match; `similarity` is float64 [source layers, target layers], NaN for a degenerate layer."""

    directory: str
    uses: tuple[Use, ...]
    match: LayerMatch
    similarity: NDArray[np.float64]
    picture: str | None = None  # path of its PNG, relative to the run's directory


@dataclass(frozen=True)
class CoreFound:
    """A core file, and where it comes from."""

    directory: str
    role: Role
    uses: tuple[Use, ...]
    core: CoreFile

    @property
    def trained_by(self) -> tuple[Use, ...]:
        """Cells of the main comparison that train this set; those that only take its size if there are no others."""
        main = tuple(use for use in self.uses if use.axis is None)
        return tuple(use for use in main if use.method not in SIZE_ONLY) or main

    @property
    def score(self) -> str:
        """The method that scored it: lf, cs."""
        return self.core.method.name


@dataclass(frozen=True)
class VerifiedFound:
    """What moved in one training, by kind; `ok` if nothing moved that was frozen."""

    directory: str
    uses: tuple[Use, ...]
    counts: Mapping[str, Count]
    ok: bool


@dataclass(frozen=True)
class RepresentationFound:
    directory: str
    file: RepresentationFile
    png: bytes | None


@dataclass(frozen=True)
class ReportContents:
    """All that the report is written from.

    Attributes:
        directory: of the run, as an absolute path.
        run: with the cells that are finished; `num_left_out` are not.
        models: `target` and, if the run has one, `source`, as the files name them.
        steps: directory → step, of all finished steps that the run's cells are made of, in the order of the cells.
        unfinished: directories of steps that are named by cells and not finished.
        importance: directory → path of its picture, relative to the run's directory.
    """

    directory: Path
    run: RunFile
    summary: Summary
    models: Mapping[str, ModelIdentity]
    steps: Mapping[str, StepFile]
    unfinished: tuple[str, ...]
    matches: tuple[MatchFound, ...]
    cores: tuple[CoreFound, ...]
    verified: tuple[VerifiedFound, ...]
    representations: tuple[RepresentationFound, ...]
    importance: Mapping[str, str]
    num_left_out: int = 0

    @cached_property
    def titles(self) -> dict[str, str]:
        """Method → its title."""
        return {method.name: method.title for method in self.run.methods}

    def title(self, method: str) -> str:
        return self.titles.get(method, method)

    @cached_property
    def evaluation_of(self) -> dict[str, EvaluationRecord]:
        return {evaluation.name: evaluation for evaluation in self.summary.evaluations}

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Of the main comparison."""
        return tuple(dict.fromkeys(cell.seed for cell in self.run.cells if cell.axis is None))

    @cached_property
    def orders(self) -> tuple[tuple[str, ...], ...]:
        """Orders of the tasks in the main comparison."""
        return tuple(dict.fromkeys(cell.order for cell in self.run.cells if cell.axis is None))

    def name_of(self, role: str) -> str:
        """A model's name without the directories that it lies in."""
        found = self.models.get(role)
        name = found.id if found else (self.run.source or "no source") if role == "source" else self.run.target
        return name.rstrip("/").rpartition("/")[2] or name
