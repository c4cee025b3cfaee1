"""The models that a run trains: each method, seed and draw, each value of a sweep, and each rate of the tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
    """One model to be trained.

    Attributes:
        axis, value: where it is of a sweep, or of the tuning.
        draw: of a random control, which of the draws of its seed.
        given: section → the settings as they were given, for this cell: what another process makes its own from.
    """

    method: RunMethod
    seed: int
    axis: str | None
    value: Any
    order: tuple[str, ...]
    given: Mapping[str, Mapping[str, Any]]
    draw: int = 0

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
        told = f"{self.method.name}, seed {self.seed}" + (f", draw {self.draw}" if self.draw else "")
        return told + (f", {self.axis} {value}" if self.axis else "")


def cells_of(run: Study, chosen: Mapping[str, float] | None = None) -> tuple[Cell, ...]:
    """All cells: the comparison first, seed after seed, so that a run that is stopped has whole seeds; then the sweeps,
    and those of which the learning rates are chosen.

    Args:
        chosen: method → its learning rate, of those that are known; with a tuning the others are not compared yet.

    Raises:
        SettingsError: settings of some cells cannot be used; each problem once, with its section.
    """
    known = chosen or {}
    main = [
        cell
        for number, seed in enumerate(run.seeds)
        for method in run.methods
        if run.tuning is None or method.name in known
        for cell in _cells(run, method, seed, run.order(number), known.get(method.name))
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
    cells = (*main, *swept, *_tuning_cells(run))
    _check(cells)
    return cells


def _tuning_cells(run: Study) -> list[Cell]:
    if run.tuning is None:
        return []
    seeds = [*enumerate(run.tuning.seeds), *(enumerate(run.seeds) if run.tuning.everywhere else ())]
    return [
        replace(cell, axis=TUNING, value=rate)
        for number, seed in seeds
        for method in run.methods
        for rate in run.tuning.of[method.name]
        for cell in _cells(run, method, seed, run.order(number), rate)
    ]


def _cells(run: Study, method: RunMethod, seed: int, order: tuple[str, ...], rate: float | None) -> Iterator[Cell]:
    """One cell, or one for each draw."""
    for draw in range(run.draws if method.drawn else 1):
        yield _cell(run, method, seed, order, rate, draw)


def _cell(
    run: Study, method: RunMethod, seed: int, order: tuple[str, ...], rate: float | None = None, draw: int = 0
) -> Cell:
    sections = run.sections
    identify = {**sections["identify"], **method.identify, "seed": seed}
    # Which texts are read is not a matter of the seed; which layers are shuffled is.
    shuffled = method.map.get("match", sections["map"].get("match")) == "shuffled"
    drawn = {"seed": seed_of_draw(seed, draw)} if shuffled else {}
    mapped = {**sections["map"], **method.map, "rules": run.rules, **drawn}
    unit = {"control_unit": "elements"} if identify.get("unit", "tensors") != "tensors" else {}
    train = {**unit, **sections["train"], **method.train, "seed": seed, "order": order}
    train |= {} if rate is None else {"learning_rate": rate}
    train |= {"draw": draw} if draw and not shuffled else {}
    return Cell(method, seed, None, None, order, {"identify": identify, "map": mapped, "train": train}, draw)


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
        for section in CHANGEABLE:
            try:
                getattr(cell, section)
            except SettingsError as error:
                problems |= dict.fromkeys(f"{section}.{problem}" for problem in error.problems)
    if problems:
        raise SettingsError(problems)
