"""A run file → its cells: one model to be trained for each method and seed, and for each value of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.settings import SettingsError
from trace_transfer.study.methods import RunMethod
from trace_transfer.study.run_file import RunFile
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings


@dataclass(frozen=True)
class Cell:
    """One model to be trained.

    Attributes:
        axis, value: where it is of a sweep.
        given: section → the settings as they were given, for this cell: what another process makes its own from.
    """

    method: RunMethod
    seed: int
    axis: str | None
    value: Any
    order: tuple[str, ...]
    given: Mapping[str, Mapping[str, Any]]

    @property
    def identify(self) -> IdentifySettings:
        return IdentifySettings.of(**self.given["identify"])

    @property
    def map(self) -> MapSettings:
        return MapSettings.of(**self.given["map"])

    @property
    def train(self) -> StreamSettings:
        return StreamSettings.of(**self.given["train"])

    @property
    def label(self) -> str:
        """For messages."""
        value = " > ".join(self.value) if isinstance(self.value, tuple) else self.value
        return f"{self.method.name}, seed {self.seed}" + (f", {self.axis} {value}" if self.axis else "")


def cells_of(run: RunFile) -> tuple[Cell, ...]:
    """All cells: the comparison first, seed after seed, so that a run that is stopped has whole seeds; then the sweeps.

    Raises:
        SettingsError: settings of some cells cannot be used; each problem once, with its section.
    """
    main = [
        _cell(run, method, seed, run.order(number))
        for number, seed in enumerate(run.seeds)
        for method in run.methods
    ]  # fmt: skip
    by_name = {(cell.method.name, cell.seed): cell for cell in main}
    swept = [
        _changed(by_name[method, seed], sweep.axis, sweep.path, value)
        for sweep in run.sweeps
        for value in sweep.values
        for method in sweep.methods
        for seed in (sweep.seeds if sweep.path != "seed" else sweep.seeds[:1])
    ]
    cells = (*main, *swept)
    _check(cells)
    return cells


def _cell(run: RunFile, method: RunMethod, seed: int, order: tuple[str, ...]) -> Cell:
    sections = run.sections
    identify = {**sections["identify"], **method.identify, "seed": seed}
    # Which texts are read is not a matter of the seed; which layers are shuffled is.
    shuffled = method.map.get("match", sections["map"].get("match")) == "shuffled"
    mapped = {**sections["map"], **method.map, "rules": run.rules, **({"seed": seed} if shuffled else {})}
    unit = {"control_unit": "elements"} if identify.get("unit", "tensors") != "tensors" else {}
    train = {**unit, **sections["train"], **method.train, "seed": seed, "order": order}
    return Cell(method, seed, None, None, order, {"identify": identify, "map": mapped, "train": train})


def _changed(cell: Cell, axis: str, path: str, value: Any) -> Cell:
    """The same with another value of one setting."""
    section, _, key = path.partition(".")
    given = {name: dict(values) for name, values in cell.given.items()}
    if path == "seed":
        given["identify"]["seed"] = given["train"]["seed"] = value
        return replace(cell, axis=axis, value=value, seed=value, given=given)
    if path == "order":
        given["train"]["order"] = value
        return replace(cell, axis=axis, value=value, order=value, given=given)
    given[section][key] = value
    return replace(cell, axis=axis, value=value, given=given)


def _check(cells: tuple[Cell, ...]) -> None:
    problems: dict[str, None] = {}
    for cell in cells:
        for section in ("identify", "map", "train"):
            try:
                getattr(cell, section)
            except SettingsError as error:
                problems |= dict.fromkeys(f"{section}.{problem}" for problem in error.problems)
    if problems:
        raise SettingsError(problems)
