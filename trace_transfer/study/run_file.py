"""`run.yaml` → everything that a run is made of, with every problem of the file found in one go, each with its path.

    name: study
    source: models/small                # core sets are identified here …
    target: models/large                # … and carried to here; a directory, a GGUF file or a hub name
    tasks:
      - {name: math, data: math.train.jsonl, evaluate: math}
      - {name: law, data: law.train.jsonl, evaluate: law}
    evaluations:                        # or `suite: paper`
      - {name: math, kind: exact-match, data: math.test.jsonl}
      - {name: law, kind: multiple-choice, data: law.test.jsonl}
    methods: [sequential, trace-lf, transfer-lf, random]
    seeds: [0, 1, 2]
    orders: vary                        # seed number k trains the k-th permutation of the tasks; or `file`
    identify: {ratio: 0.05, unit: elements}
    train: {epochs: 1, batch_size: 8}
    sweeps: {ratio: [0.01, 0.05, 0.2]}

Paths are relative to the file. Reads the file's text and whether the files that it names are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from trace_transfer.data.tasks_file import TaskSpec, checked_items, locate, parse_yaml, suggestion
from trace_transfer.errors import UserError, listing
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import Suite, load_suite
from trace_transfer.files import check_directory
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.settings import SettingsError
from trace_transfer.study.methods import AXES, METHODS, SECTIONS, RunMethod, axis_values, coerced, takes_part
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings

KEYS = (
    "name", "source", "target", "out", "rules", "tasks", "evaluations", "suite", "methods", "reference", "seeds",
    "orders", "identify", "map", "train", "evaluate", "represent", "sweeps", "jobs", "processes", "keep",
)  # fmt: skip
ORDERS, KEEP = ("file", "vary"), ("core", "all", "none")


class RunFileError(UserError):
    """A run file cannot be used; lists every problem, each with its path in the file."""


def load_run(path: Path | str, out: Path | None = None) -> RunFile:
    """Read a run file.

    Args:
        out: where results go, in place of what the file says.

    Raises:
        RunFileError: everything that is wrong with it, at once.
        TaskError: it cannot be read, or is not YAML.
    """
    file = Path(path)
    content = parse_yaml(file)
    if not isinstance(content, Mapping):
        raise RunFileError(
            f"{file}: expected keys such as target:, tasks: and methods:, found {type(content).__name__}"
        )
    reader = _Reader(file, content)
    run = reader.read(out)
    if run is None or reader.problems:
        count = f"{len(reader.problems)} problem" + ("" if len(reader.problems) == 1 else "s")
        raise RunFileError(f"{file}: {count}:\n" + listing(reader.problems))
    return run


class _Reader:
    """Takes a file's content apart, and notes what is wrong instead of stopping at the first."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file, self.content = file, content
        self.problems: list[str] = []

    def read(self, out: Path | None) -> RunFile | None:
        self.problems += [f"{key}: no such key; {suggestion(key, KEYS)}" for key in self.content if key not in KEYS]
        name = self._text("name") or (self.file.stem if self.file.stem != "run" else self.file.absolute().parent.name)
        target, source = self._model("target"), self._model("source", needed=False)
        before = len(self.problems)
        tasks, suite = self._tasks(), self._suite()
        methods = self._methods(source)
        whole = len(self.problems) == before and bool(tasks and methods)
        sections = {section: self._section(section) for section in SECTIONS}
        seeds = self._list("seeds", int, [0])
        self._check_evaluations(tasks, suite)
        orders, keep = self._choice("orders", ORDERS), self._choice("keep", KEEP)
        jobs, processes = self._count("jobs"), self._count("processes")
        place, rules, run = self._out(out, name), self._rules(), None
        if whole and target and suite:  # what stands on methods and tasks can be looked at
            represented = self._represented(sections["represent"], methods)
            run = RunFile(
                self.file, name, target, source, place, tasks, suite, methods, self._reference(methods), tuple(seeds),
                orders, sections, (), rules, represented, jobs, processes, keep,
            )  # fmt: skip
            sections["represent"].pop("methods", None)
            run = replace(run, sweeps=self._sweeps(run))
            if not self.problems:
                self._try_settings(run)
        return run

    def _text(self, key: str) -> str | None:
        value = self.content.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            self.problems.append(f"{key}: found {value!r}, expected a text")
            return None
        return value

    def _model(self, key: str, needed: bool = True) -> str | None:
        """A path relative to the file, if there is one, else as it stands: it may be a hub name."""
        value = self._text(key)
        if value is None:
            if needed and key not in self.content:
                self.problems.append(f"{key}: is missing; expected a directory, a GGUF file or a hub name")
            return None
        beside = locate(value, self.file.parent)
        if beside.exists():
            return str(beside)
        if value.startswith((".", "/", "~")) or value.count("/") != 1:
            self.problems.append(f"{key}: {beside}: no such file or directory, and no hub name owner/name")
        return value

    def _items(self, key: str) -> list[Any]:
        value = self.content.get(key)
        if not isinstance(value, list) or not value:
            self.problems.append(
                f"{key}: " + ("is missing" if value is None else f"found {value!r}") + "; expected a list"
            )
            return []
        return value

    def _tasks(self) -> tuple[RunTask, ...]:
        specs, problems = checked_items(self._items("tasks"), RunTask, self.file.parent)
        self.problems += [f"tasks: {problem}" for problem in problems]
        lower = [spec.name.lower() for spec in specs]
        self.problems += [
            f"tasks: '{spec.name}': on some disks its files would be those of another task: only case differs"
            for spec in specs
            if lower.count(spec.name.lower()) > 1 and [s.name for s in specs].count(spec.name) == 1
        ]
        return specs

    def _suite(self) -> Suite | None:
        if ("suite" in self.content) == ("evaluations" in self.content):
            self.problems.append("evaluations: give either evaluations: (a list) or suite: (a name or a file)")
            return None
        if "suite" in self.content:
            name = self._text("suite")
            if name is None:
                return None
            beside = locate(name, self.file.parent)
            try:
                return load_suite(beside if beside.is_file() else name)
            except UserError as error:
                self.problems.append(f"suite: {error}")
                return None
        try:
            return Suite.of(self._items("evaluations"), self.file.parent, self.file.stem, where="evaluations")
        except UserError as error:
            self.problems.append(str(error))
            return None

    def _check_evaluations(self, tasks: Sequence[RunTask], suite: Suite | None) -> None:
        if suite is None:
            return
        known = [spec.name for spec in suite.specs]
        for task in tasks:
            name = task.evaluate or task.name
            if name not in known:
                self.problems.append(
                    f"tasks: task '{task.name}': evaluate: no evaluation '{name}', {suggestion(name, known)}"
                )

    def _methods(self, source: str | None) -> tuple[RunMethod, ...]:
        found: list[RunMethod] = []
        for number, item in enumerate(self._items("methods"), start=1):
            where = f"methods: item {number}"
            if isinstance(item, str):
                if item not in METHODS:
                    self.problems.append(f"methods: no method '{item}', {suggestion(item, METHODS)}")
                else:
                    found.append(METHODS[item])
            elif isinstance(item, Mapping):
                method = self._own_method(item, where)
                found += [method] if method else []
            else:
                self.problems.append(f"{where}: found {item!r}, expected a name, or name: and like:")
        names = [method.name for method in found]
        self.problems += [
            f"methods: '{name}' stands there twice" for name in dict.fromkeys(names) if names.count(name) > 1
        ]
        if source is None and "source" not in self.content:
            need = [method.name for method in found if method.needs == "source"]
            if need:
                self.problems.append(f"source: is missing; {', '.join(need)} identify on it")
        return tuple(found)

    def _own_method(self, item: Mapping[str, Any], where: str) -> RunMethod | None:
        allowed = ("name", "like", "title", "what", "identify", "map", "train")
        wrong = [f"{where}: no such key '{key}'; {suggestion(key, allowed)}" for key in item if key not in allowed]
        name, like = item.get("name"), item.get("like")
        base = METHODS.get(like) if isinstance(like, str) else None
        if not isinstance(name, str) or base is None:
            wrong.append(f"{where}: needs name: and like:, {suggestion(str(like), METHODS, 'one of')}")
        parts = {}
        for section in ("identify", "map", "train"):
            values, problems = coerced(section, item.get(section, {}), taken=False)
            parts[section] = values
            wrong += [f"{where}: {section}.{problem}" for problem in problems]
        if wrong or base is None or not isinstance(name, str):
            self.problems += wrong
            return None
        title, what = (base.title, base.what) if name == like else (name, f"{base.what}, with other settings")
        sections: dict[str, Any] = {section: {**getattr(base, section), **values} for section, values in parts.items()}
        return replace(base, name=name, title=item.get("title", title), what=item.get("what", what), **sections)

    def _section(self, section: str) -> dict[str, Any]:
        given = self.content.get(section, {})
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.problems.append(f"{section}: found {given!r}, expected settings, name: value")
            return {}
        rest = {key: value for key, value in given.items() if (section, key) != ("represent", "methods")}
        values, problems = coerced(section, rest)
        self.problems += [f"{section}.{problem}" for problem in problems]
        if section == "map" and isinstance(values.get("probe"), str):
            beside = locate(values["probe"], self.file.parent)
            values["probe"] = str(beside) if beside.exists() else values["probe"]
        if section == "represent" and "methods" in given:
            values["methods"] = given["methods"]
        return values

    def _list(self, key: str, kind: type, default: list[Any]) -> list[Any]:
        value = self.content.get(key, default)
        if not isinstance(value, list) or not value or not all(type(one) is kind for one in value):
            self.problems.append(f"{key}: found {value!r}, expected a list of whole numbers")
            return default
        self.problems += [f"{key}: {one} stands there twice" for one in dict.fromkeys(value) if value.count(one) > 1]
        return value

    def _choice(self, key: str, allowed: Sequence[str]) -> str:
        value = self.content.get(key, allowed[0])
        if value not in allowed:
            self.problems.append(f"{key}: {value!r} is none of {', '.join(allowed)}")
        return str(value)

    def _count(self, key: str) -> int:
        value = self.content.get(key, 1)
        if type(value) is not int or value < 1:
            self.problems.append(f"{key}: found {value!r}, expected a whole number from 1 on")
            return 1
        return value

    def _out(self, given: Path | None, name: str) -> Path:
        if given is not None:
            return given
        said = self._text("out")
        place = locate(said, self.file.parent) if said else Path("runs") / name
        try:
            return check_directory(place)
        except UserError as error:
            self.problems.append(f"out: {error}")
            return place

    def _rules(self) -> tuple[str, ...]:
        value = self.content.get("rules", [])
        return tuple(str(locate(one, self.file.parent)) for one in ([value] if isinstance(value, str) else value))

    def _reference(self, methods: Sequence[RunMethod]) -> str:
        """The method that the others are compared with: the first one, if none is named."""
        names = [method.name for method in methods]
        value = self.content.get("reference", names[0])
        if value not in names:
            self.problems.append(f"reference: no method '{value}' in this run, {suggestion(str(value), names)}")
        return str(value)

    def _represented(self, section: Mapping[str, Any], methods: Sequence[RunMethod]) -> tuple[str, ...]:
        if "represent" not in self.content:
            return ()
        names = [method.name for method in methods]
        wanted = section.get("methods", names)
        if not isinstance(wanted, list) or any(name not in names for name in wanted):
            self.problems.append(f"represent.methods: found {wanted!r}, expected some of {', '.join(names)}")
            return ()
        return tuple(wanted)

    def _sweeps(self, run: RunFile) -> tuple[Sweep, ...]:
        given = self.content.get("sweeps") or {}
        if not isinstance(given, Mapping):
            self.problems.append(f"sweeps: found {given!r}, expected axis: [values]")
            return ()
        return tuple(sweep for axis, item in given.items() if (sweep := self._sweep(run, axis, item)) is not None)

    def _sweep(self, run: RunFile, axis: str, item: Any) -> Sweep | None:
        where, path = f"sweeps.{axis}", AXES.get(axis, axis)
        section, _, key = path.partition(".")
        if path not in ("seed", "order") and (
            section not in ("identify", "map", "train") or key not in SECTIONS[section].names()
        ):
            self.problems.append(f"{where}: no such axis; {suggestion(axis, AXES)}, or a setting such as train.epochs")
            return None
        details = item if isinstance(item, Mapping) else {"values": item}
        unknown = [key for key in details if key not in ("values", "methods", "seeds")]
        self.problems += [f"{where}: no such key '{key}'; allowed: values, methods, seeds" for key in unknown]
        values, problems = axis_values(path, details.get("values"), run.task_names)
        self.problems += [f"{where}: {problem}" for problem in problems]
        able = [method.name for method in run.methods if takes_part(method, path)]
        methods = details.get("methods", able)
        if not isinstance(methods, list) or any(name not in able for name in methods) or not methods:
            found = f"found {methods!r}, " if methods else ""
            self.problems.append(
                f"{where}.methods: {found}expected some that the axis changes: {', '.join(able) or 'none'}"
            )
            return None
        seeds = details.get("seeds", list(run.seeds))
        if not isinstance(seeds, list) or any(seed not in run.seeds for seed in seeds):
            self.problems.append(f"{where}.seeds: found {seeds!r}, expected some of {', '.join(map(str, run.seeds))}")
            return None
        return Sweep(axis, path, tuple(values), tuple(methods), tuple(seeds))

    def _try_settings(self, run: RunFile) -> None:
        """Settings that contradict each other are found here rather than when their step comes."""
        try:
            cells_of(run)
            EvaluateSettings.of(**run.sections["evaluate"])
            RepresentSettings(**run.sections["represent"])
        except SettingsError as error:
            self.problems += error.problems
        except UserError as error:
            self.problems.append(str(error))


class RunTask(TaskSpec):
    """One task of a run; `evaluate` names the evaluation that measures it, by default the one of its own name."""

    evaluate: str | None = None

    @property
    def spec(self) -> TaskSpec:
        """The task as training sees it."""
        spec = TaskSpec.model_validate(self.model_dump(exclude={"evaluate"}))
        return spec if self._directory is None else spec.beside(self._directory)


@dataclass(frozen=True)
class Sweep:
    """One axis: `path` is the setting that takes each of the values, in these methods and with these seeds."""

    axis: str
    path: str
    values: tuple[Any, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class RunFile:
    """A run file, checked.

    `sections` hold the settings as they were given: `identify`, `map`, `train`, `evaluate`, `represent`; None for a
    representation that is not wanted.
    """

    file: Path
    name: str
    target: str
    source: str | None
    out: Path
    tasks: tuple[RunTask, ...]
    suite: Suite
    methods: tuple[RunMethod, ...]
    reference: str
    seeds: tuple[int, ...] = (0,)
    orders: str = "file"
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    rules: tuple[str, ...] = ()
    represent: tuple[str, ...] = ()
    jobs: int = 1
    processes: int = 1
    keep: str = "core"

    @property
    def directory(self) -> Path:
        return self.file.parent

    @property
    def of_task(self) -> dict[str, str]:
        """Task → the evaluation that measures it."""
        return {task.name: task.evaluate or task.name for task in self.tasks}

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def shown(self, model: str | None) -> str | None:
        """A model or file as a reader elsewhere can name it: relative to the run file, where it lies beside that."""
        directory = self.directory.absolute()
        if model is None or not Path(model).absolute().is_relative_to(directory):
            return model
        return str(Path(model).absolute().relative_to(directory))

    def order(self, number: int) -> tuple[str, ...]:
        """The order of the tasks for the seed of that number in the list."""
        every = list(permutations(self.task_names))
        return every[number % len(every)] if self.orders == "vary" else self.task_names


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
