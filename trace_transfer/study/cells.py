"""The models that a run trains: each method, seed and draw, each value of a sweep, and each rate of the tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.reporting.records import TUNING
from trace_transfer.settings import SettingsError
from trace_transfer.study.methods import CHANGEABLE, RunMethod
from trace_transfer.training.settings import StreamSettings, seed_of_draw
from trace_transfer.transfer.settings import MapSettings

if TYPE_CHECKING:
    from trace_transfer.study.run_file import Study


@dataclass(frozen=True)
class Cell:
    """One model to be trained."""

    method: RunMethod
    seed: int
    axis: str | None  # axis, value: where it is of a sweep, or of the tuning
    value: Any
    order: tuple[str, ...]
    # section → the settings as they were given, for this cell: what another process makes its own from
    given: Mapping[str, Mapping[str, Any]]
    draw: int = 0  # of a random control, which of the draws of its seed

    @cached_property
    def identify(self) -> IdentifySettings:
        return IdentifySettings.of(**self.given["identify"])

    @property
    def refine(self) -> dict[str, Any]:
        """Of a method that refines, the settings of its second identification, as given."""
        return {**self.given["identify"], **self.method.refine}

    @cached_property
    def map(self) -> MapSettings:
        return MapSettings.of(**self.given["map"])

    @cached_property
    def train(self) -> StreamSettings:
        return StreamSettings.of(**self.given["train"])

    @property
    def label(self) -> str:
        value = " > ".join(self.value) if isinstance(self.value, tuple) else self.value
        told = f"{self.method.name}, seed {self.seed}" + (f", draw {self.draw}" if self.draw else "")
        return told + (f", {self.axis} {value}" if self.axis else "")


def cells_of(run: Study, chosen: Mapping[str, float] | None = None) -> tuple[Cell, ...]:
    """All cells: the comparison first, seed after seed, so that a run that is stopped has whole seeds; then the sweeps,
    and those of the tuning. `chosen`: method → its learning rate, where it is known; with a tuning the others are not
    compared yet. A SettingsError for settings of cells that cannot be used; each problem once, with its section."""
    known, tuning = chosen or {}, run.tuning
    main = [
        _cell(run, method, seed, number, draw, known.get(method.name))
        for number, seed in enumerate(run.seeds)
        for method in run.methods
        if tuning is None or method.name in known
        for draw in range(run.draws if method.drawn else 1)
    ]
    swept = [
        _changed(cell, sweep.axis, sweep.path, value)
        for sweep in run.sweeps
        for value in sweep.values
        for method in sweep.methods
        for seed in (sweep.seeds if sweep.path != "seed" else sweep.seeds[:1])
        for cell in main
        if (cell.method.name, cell.seed) == (method, seed)
    ]
    tuned = [] if tuning is None else [
        replace(_cell(run, method, seed, number, draw, rate), axis=TUNING, value=rate)
        for seeds in (tuning.seeds, run.seeds if tuning.everywhere else ())
        for number, seed in enumerate(seeds)
        for method in run.methods
        for rate in tuning.of[method.name]
        for draw in range(run.draws if method.drawn else 1)
    ]  # fmt: skip
    cells, problems = (*main, *swept, *tuned), dict[str, None]()
    for cell in cells:
        for section in CHANGEABLE:
            try:
                getattr(cell, section)
            except SettingsError as error:
                problems |= dict.fromkeys(f"{section}.{problem}" for problem in error.problems)
    if problems:
        raise SettingsError(problems)
    return cells


def _cell(run: Study, method: RunMethod, seed: int, number: int, draw: int, rate: float | None) -> Cell:
    sections, order = run.sections, run.order(number)
    identify = {**sections["identify"], **method.identify, "seed": seed}
    # Which texts are read is not a matter of the seed; which layers are shuffled is.
    shuffled = method.map.get("match", sections["map"].get("match")) == "shuffled"
    drawn = {"seed": seed_of_draw(seed, draw)} if shuffled else {}
    mapped = {**sections["map"], **method.map, "rules": run.rules, **drawn}
    train = {**sections["train"], **method.train, "seed": seed, "order": order}
    train |= {} if rate is None else {"learning_rate": rate}
    train |= {"draw": draw} if draw and not shuffled else {}
    return Cell(method, seed, None, None, order, {"identify": identify, "map": mapped, "train": train}, draw)


def _changed(cell: Cell, axis: str, path: str, value: Any) -> Cell:
    changes: dict[str, Any] = {path: value} if path in ("seed", "order") else {}
    places = {"seed": ("identify.seed", "train.seed"), "order": ("train.order",)}.get(path, (path,))
    given = {name: dict(values) for name, values in cell.given.items()}
    for place in places:
        section, _, key = place.partition(".")
        given[section][key] = value
    return replace(cell, axis=axis, value=value, given=given, **changes)
