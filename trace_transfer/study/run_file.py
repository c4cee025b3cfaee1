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
    draws: 2                            # of each random control for each seed, whose mean is compared
    tuning: {factors: [0.25, 0.5, 1, 2], seeds: [100, 101, 102]}  # each method's learning rate, chosen on other seeds
    comparisons:                        # stated beforehand: p is adjusted over these
      - {methods: [trace-lf, transfer-lf], against: random}
    identify: {ratio: 0.05, unit: elements}
    train: {epochs: 1, batch_size: 8}
    sweeps: {ratio: [0.01, 0.05, 0.2]}

Paths are relative to the file. Reads the file's text and whether the files that it names are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt
from pydantic import Field

from trace_transfer.data.tasks_file import TaskSpec, checked_items, locate, parse_yaml, suggestion
from trace_transfer.errors import UserError, listing
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import Suite, load_suite
from trace_transfer.files import check_directory
from trace_transfer.printable import is_name
from trace_transfer.records import TASK, Name
from trace_transfer.reporting.records import MeasureName, Stated
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.settings import Count, Seed, Settings, SettingsError, Texts, choice, setting, validated
from trace_transfer.study.cells import cells_of
from trace_transfer.study.methods import (
    AXES,
    CHANGEABLE,
    METHODS,
    SECTIONS,
    RunMethod,
    axis_values,
    section_values,
    takes_part,
)
from trace_transfer.study.resources import DEFAULT, Resources, merged
from trace_transfer.study.steps import LAUNCHED, VERSIONS
from trace_transfer.training.settings import paper_training

DEFAULT_RATE = paper_training().learning_rate
Rate = Annotated[float, Gt(0)]
MEASURED: dict[MeasureName, str] = {
    "average": "Does it end higher",
    "backward_transfer": "Does it lose less",
    "forgetting": "Does it forget less",
    "forward_transfer": "Does it gain more before a task's turn",
    "learning": "Does it learn more",
    "matched_forgetting": "Does it lose less, learning as much,",
}


class RunFileError(UserError):
    """A run file cannot be used; lists every problem, each with its path in the file."""


# ---- the keys of the file


class RunKeys(Settings):
    """The keys of a run file. What stands in lists and sections is checked by those who read it."""

    name: Name | None = setting(None, "Of the study; the file's or its directory's if not given.")
    source: Name | None = setting(None, "The model on which transfer methods identify core sets.")
    target: Name | None = setting(None, "The model that all methods train.")
    out: Name | None = setting(None, "Directory for the results; runs/NAME if not given.")
    rules: Texts = setting((), "Your own rules, files or directories, beside or over the shipped.")
    tasks: Any = setting(None, "The tasks in the order of the stream.")
    evaluations: Any = setting(None, "What is measured after each task.")
    suite: str | None = setting(None, "In place of `evaluations`: the name of a shipped suite, or a file.")
    methods: Any = setting(None, "What is compared.")
    reference: str | None = setting(None, "The method with which the others are compared; the first if not given.")
    seeds: Annotated[tuple[Seed, ...], "a list of whole numbers"] = setting((0,), "One run of each.", min_length=1)
    orders: Literal["file", "vary"] = setting("file", "vary: seed number k trains the k-th permutation of the tasks.")
    draws: Count = setting(1, "Random sets and shuffled layers of each seed; their mean is compared.")
    tuning: Any = setting(None, "Learning rates of which each method gets its best, chosen on seeds of their own.")
    comparisons: Any = setting(None, "What is asked, stated beforehand; a fixed list of questions if not given.")
    identify: Any = setting(None, "Settings of `identify`.")
    map: Any = setting(None, "Settings of `map`.")
    train: Any = setting(None, "Settings of `train`.")
    evaluate: Any = setting(None, "Settings of `evaluate`.")
    represent: Any = setting(None, "Settings of `represent`, which is left out without them; `methods` chooses some.")
    sweeps: Any = setting(None, "Axis → the values that it takes.")
    jobs: Count = setting(1, "Steps at a time.")
    processes: Count = setting(1, "Processes that share each training.")
    resources: Any = setting(dict, "Kind of step, or `default` → the GPUs, hours, partition … that it has.")
    keep: Literal["core", "all", "none"] = setting(
        "core", "Patches that outlive their scoring: those of core sets, all (and the models), or none."
    )


class MethodKeys(Settings):
    """A method of one's own: another one with other settings."""

    name: Annotated[str, Field(pattern=TASK), "letters, digits and . _ -"] | None = setting(None, "Of the method.")
    like: str | None = setting(None, "The method that it is made from.")
    title: Name | None = setting(None, "In tables; the name if not given.")
    what: Name | None = setting(None, "In the legend.")
    identify: Any = setting(dict, "Settings of `identify`.")
    map: Any = setting(dict, "Settings of `map`.")
    train: Any = setting(dict, "Settings of `train`.")


class SweepKeys(Settings):
    """An axis with more than its values."""

    values: Any = setting(None, "Values that the setting takes.")
    methods: Texts | None = setting(None, "Only these methods; all that the axis changes if not given.")
    seeds: Annotated[tuple[Seed, ...], "a list of whole numbers"] | None = setting(None, "Only these seeds.")


class TuningKeys(Settings):
    """Each method gets the learning rate whose models end best on average, on seeds that are not reported."""

    factors: Annotated[tuple[Rate, ...], "a list of numbers"] = setting(
        (0.25, 0.5, 1.0, 2.0), "Of each method's own learning rate.", min_length=2
    )
    rates: Mapping[str, Any] = setting(dict, "Method → its learning rates, in place of the factors.")
    seeds: Annotated[tuple[Seed, ...], "a list of whole numbers"] = setting(
        (), "On which rates are chosen; none of the reported ones.", min_length=1
    )
    front: Literal["tuning", "all"] = setting(
        "tuning", "Seeds that train every rate: those of the tuning, or the reported ones, too."
    )


class ComparisonKeys(Settings):
    """Methods against another one."""

    methods: Texts = setting((), "Each of them is a comparison.", min_length=1)
    against: str | None = setting(None, "The method that they are compared with.")
    measure: MeasureName = setting(
        "average", "In which they are compared; matched_forgetting: what is lost at the same learning, by the rates."
    )
    question: Name | None = setting(None, "In words, for the report.")


# ---- the run


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
class Rates:
    """Learning rates of each method, in order, and who trains them.

    Attributes:
        everywhere: whether the reported seeds train all of them, too.
    """

    of: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    everywhere: bool = False


@dataclass(frozen=True)
class Study:
    """A run file, checked, with places as they are found from here.

    Attributes:
        sections: settings of `identify`, `map`, `train`, `evaluate` and `represent`, as they were given.
        represent: the methods whose embeddings are drawn.
    """

    file: Path
    name: str
    target: str
    source: Name | None
    out: Path
    tasks: tuple[RunTask, ...]
    suite: Suite
    methods: tuple[RunMethod, ...]
    reference: str
    seeds: tuple[int, ...] = (0,)
    orders: str = "file"
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    draws: int = 1
    tuning: Rates | None = None
    comparisons: tuple[Stated, ...] = ()
    rules: tuple[str, ...] = ()
    represent: tuple[str, ...] = ()
    jobs: int = 1
    processes: int = 1
    keep: str = "core"
    resources: Mapping[str, Resources] = field(default_factory=dict)

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

    def resources_of(self, kind: str) -> Resources:
        """What steps of a kind have."""
        return self.resources.get(kind, self.resources.get(DEFAULT, Resources()))

    def processes_of(self, kind: str, *, gpus: bool) -> int:
        """Processes that share a step of a kind: one a GPU, where there are `gpus` and it says how many it has."""
        wanted = self.resources_of(kind).num_gpus if gpus else None
        return (wanted or self.processes) if kind in LAUNCHED else 1

    def gpus_of(self, kind: str) -> int:
        """GPUs that a step of a kind has, where there are any."""
        wanted = self.resources_of(kind).num_gpus
        return self.processes_of(kind, gpus=True) if wanted is None else wanted

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


# ---- reading


def load_run(path: Path | str, out: Path | None = None) -> Study:
    """Read a run file.

    Args:
        out: where results go, in place of what the file says.

    Raises:
        RunFileError: everything that is wrong with it, at once.
        TaskError: it cannot be read, or is not YAML.
    """
    file = Path(path)
    content = parse_yaml(file)
    if not isinstance(content, dict):
        found = type(content).__name__
        raise RunFileError(f"{file}: expected keys such as target:, tasks: and methods:, found {found}")
    reader = _Reader(file, content)
    run = reader.read(out)
    if run is None or reader.problems:
        count = f"{len(reader.problems)} problem" + ("" if len(reader.problems) == 1 else "s")
        raise RunFileError(f"{file}: {count}:\n" + listing(reader.problems))
    return run


class _Reader:
    """Notes what is wrong with a file instead of stopping at the first problem; `keys` has what can be used."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file, self.content = file, content
        self.problems: list[str] = []
        self.keys = self._keys(RunKeys, content)

    def _keys(self, kind: type[Any], given: Mapping[str, Any], where: str = "") -> Any:
        try:
            return kind(**{str(key): value for key, value in given.items()})
        except SettingsError as error:
            self.problems += [where + problem for problem in error.problems]
            return error.usable

    def read(self, out: Path | None) -> Study | None:
        keys = self.keys
        name = keys.name or (self.file.stem if self.file.stem != "run" else self.file.absolute().parent.name)
        if not is_name(name):
            self.problems.append(f"name: {name!r}, of the file or its directory, is not one line; give a name:")
        target, source = self._model("target"), self._model("source")
        before = len(self.problems)
        tasks, suite, methods = self._tasks(), self._suite(), self._methods()
        whole = len(self.problems) == before and bool(tasks and methods)
        sections = {section: self._section(section) for section in SECTIONS}
        for key, values in (("seeds", keys.seeds), ("methods", [method.name for method in methods])):
            twice = [one for one in dict.fromkeys(values) if values.count(one) > 1]
            self.problems += [f"{key}: {one!r} stands there twice" for one in twice]
        self._check_evaluations(tasks, suite)
        place, rules = self._out(out, name), tuple(str(locate(one, self.file.parent)) for one in keys.rules)
        if not (whole and target and suite):  # what stands on methods and tasks cannot be looked at
            return None
        represented = self._represented(methods)
        run = Study(
            self.file, name, target, source, place, tasks, suite, methods, self._reference(methods), keys.seeds,
            keys.orders, sections, rules=rules, represent=represented, jobs=keys.jobs, processes=keys.processes,
            keep=keys.keep, draws=keys.draws, resources=self._resources(),
        )  # fmt: skip
        run = replace(run, sweeps=self._sweeps(run), tuning=self._tuning(run))
        run = replace(run, comparisons=self._comparisons(run))
        if not self.problems:
            self._try_settings(run)
        return run

    def _model(self, key: str) -> str | None:
        """A path relative to the file, if there is one, else as it stands: it may be a hub name."""
        value: str | None = getattr(self.keys, key)
        if value is None:
            if key == "target" and self.content.get(key) is None:
                self.problems.append(f"{key}: is missing; expected a directory, a GGUF file or a hub name")
            return None
        beside = locate(value, self.file.parent)
        if beside.exists():
            return str(beside)
        if value.startswith((".", "/", "~")) or value.count("/") != 1:
            self.problems.append(f"{key}: {beside}: no such file or directory, and no hub name owner/name")
        return value

    def _items(self, key: str) -> list[Any]:
        value = getattr(self.keys, key)
        if isinstance(value, list) and value:
            return value
        self.problems.append(f"{key}: " + ("is missing" if value is None else f"found {value!r}") + "; expected a list")
        return []

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
        if (self.keys.suite is None) == (self.keys.evaluations is None):
            self.problems.append("evaluations: give either evaluations: (a list) or suite: (a name or a file)")
            return None
        try:
            if self.keys.suite is None:
                return Suite.of(self._items("evaluations"), self.file.parent, self.file.stem, where="evaluations")
            beside = locate(self.keys.suite, self.file.parent)
            return load_suite(beside if beside.is_file() else self.keys.suite)
        except UserError as error:
            self.problems.append(str(error) if self.keys.suite is None else f"suite: {error}")
            return None

    def _check_evaluations(self, tasks: Sequence[RunTask], suite: Suite | None) -> None:
        known = [spec.name for spec in suite.specs] if suite else []
        named = [(task.name, task.evaluate or task.name) for task in tasks if suite]
        self.problems += [
            f"tasks: task '{task}': evaluate: no evaluation '{name}', {suggestion(name, known)}"
            for task, name in named
            if name not in known
        ]

    def _methods(self) -> tuple[RunMethod, ...]:
        found: list[RunMethod] = []
        for number, item in enumerate(self._items("methods"), start=1):
            where = f"methods: item {number}"
            if isinstance(item, str) and item in METHODS:
                found.append(METHODS[item])
            elif isinstance(item, Mapping):
                method = self._own_method(item, f"{where}: ")
                found += [method] if method else []
            elif isinstance(item, str):
                self.problems.append(f"methods: no method '{item}', {suggestion(item, METHODS)}")
            else:
                self.problems.append(f"{where}: found {item!r}, expected a name, or name: and like:")
        need = [method.name for method in found if method.needs == "source"]
        if need and self.content.get("source") is None:
            self.problems.append(f"source: is missing; {', '.join(need)} identify on it")
        return tuple(found)

    def _own_method(self, item: Mapping[str, Any], where: str) -> RunMethod | None:
        before = len(self.problems)
        keys = self._keys(MethodKeys, item, where)
        if keys.name is None or keys.like is None:
            self.problems.append(f"{where}needs name: and like:, {suggestion(str(keys.like), METHODS, 'one of')}")
        else:
            self.problems += [where + problem for problem in choice("like", keys.like, METHODS)]
        parts = {part: self._values(part, getattr(keys, part), where, taken=False) for part in CHANGEABLE}
        if len(self.problems) > before:
            return None
        base = METHODS[keys.like]
        same = keys.name == base.name
        title = keys.title or (base.title if same else keys.name)
        what = keys.what or (base.what if same else f"{base.what}, with other settings")
        sections: dict[str, Any] = {part: {**getattr(base, part), **values} for part, values in parts.items()}
        return replace(base, name=keys.name, title=title, what=what, **sections)

    def _values(self, section: str, given: Any, where: str = "", taken: bool = True) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            self.problems.append(f"{where}{section}: found {given!r}, expected settings, name: value")
            return {}
        values, problems = section_values(section, given, taken)
        self.problems += [f"{where}{section}.{problem}" for problem in problems]
        return values

    def _section(self, section: str) -> dict[str, Any]:
        given = getattr(self.keys, section) or {}
        if section == "represent" and isinstance(given, Mapping):
            given = {key: value for key, value in given.items() if key != "methods"}
        values = self._values(section, given)
        if section == "map" and isinstance(values.get("probe"), str):
            beside = locate(values["probe"], self.file.parent)
            values["probe"] = str(beside) if beside.exists() else values["probe"]
        return values

    def _out(self, given: Path | None, name: str) -> Path:
        if given is not None:
            return given
        place = locate(self.keys.out, self.file.parent) if self.keys.out else Path("runs") / name
        try:
            return check_directory(place)
        except UserError as error:
            self.problems.append(f"out: {error}")
            return place

    def _reference(self, methods: Sequence[RunMethod]) -> str:
        names = [method.name for method in methods]
        found: str = self.keys.reference or names[0]
        if found not in names:
            self.problems.append(f"reference: no method '{found}' in this run, {suggestion(found, names)}")
        return found

    def _resources(self) -> dict[str, Resources]:
        """Of each kind that has its own, and the default; none where the file says nothing."""
        given = self.keys.resources
        if given == {}:
            return {}
        if not isinstance(given, Mapping) or not all(isinstance(one, Mapping) for one in given.values()):
            self.problems.append(f"resources: found {given!r}, expected kind: {{gpus: …, hours: …}}")
            return {}
        known = (DEFAULT, *VERSIONS)
        unknown = [str(kind) for kind in given if kind not in known]
        self.problems += [f"resources: no kind of step '{kind}', {suggestion(kind, known)}" for kind in unknown]
        default = given.get(DEFAULT, {})
        found = {DEFAULT: self._keys(Resources, default, f"resources.{DEFAULT}.")}
        for kind, own in given.items():
            if kind in VERSIONS:
                self._keys(Resources, own, f"resources.{kind}.")
                with suppress(SettingsError):  # told above
                    found[kind] = Resources(**merged(default, own))
        return found

    def _represented(self, methods: Sequence[RunMethod]) -> tuple[str, ...]:
        given = self.keys.represent or {}
        if "represent" not in self.content or not isinstance(given, Mapping):  # which `_section` tells
            return ()
        names = [method.name for method in methods]
        wanted = given.get("methods", names)
        if not isinstance(wanted, list) or any(name not in names for name in wanted):
            self.problems.append(f"represent.methods: found {wanted!r}, expected some of {', '.join(names)}")
            return ()
        return tuple(wanted)

    def _sweeps(self, run: Study) -> tuple[Sweep, ...]:
        given = self.keys.sweeps or {}
        if not isinstance(given, Mapping):
            self.problems.append(f"sweeps: found {given!r}, expected axis: [values]")
            return ()
        return tuple(sweep for axis, item in given.items() if (sweep := self._sweep(run, axis, item)) is not None)

    def _sweep(self, run: Study, axis: str, item: Any) -> Sweep | None:
        where, path = f"sweeps.{axis}", AXES.get(axis, axis)
        section, _, key = path.partition(".")
        if path not in ("seed", "order") and (section not in CHANGEABLE or key not in SECTIONS[section].names()):
            self.problems.append(f"{where}: no such axis; {suggestion(axis, AXES)}, or a setting such as train.epochs")
            return None
        keys = self._keys(SweepKeys, item if isinstance(item, Mapping) else {"values": item}, f"{where}.")
        values, problems = axis_values(path, keys.values, run.task_names)
        self.problems += [f"{where}: {problem}" for problem in problems]
        chosen = []
        for what, wanted, able in (
            ("methods", keys.methods, [method.name for method in run.methods if takes_part(method, path)]),
            ("seeds", keys.seeds, list(run.seeds)),
        ):
            wanted = able if wanted is None else wanted
            if not wanted or any(one not in able for one in wanted):
                some = ", ".join(map(str, able)) or "none: the axis changes nothing here"
                self.problems.append(f"{where}.{what}: found {list(wanted)!r}, expected some of {some}")
            chosen.append(tuple(wanted))
        return Sweep(axis, path, tuple(values), *chosen)

    def _tuning(self, run: Study) -> Rates | None:
        given = self.keys.tuning
        if given is None:
            return None
        if not isinstance(given, Mapping):
            self.problems.append(f"tuning: found {given!r}, expected seeds: and factors: or rates:")
            return None
        keys = self._keys(TuningKeys, {"seeds": (), **given}, "tuning.")
        names = [method.name for method in run.methods]
        self.problems += [problem for name in keys.rates for problem in choice("tuning.rates", name, names)]
        both = [seed for seed in keys.seeds if seed in run.seeds]
        if both or len(set(keys.seeds)) < len(keys.seeds):
            self.problems.append(
                f"tuning.seeds: found {list(keys.seeds)}, expected each once and none of seeds: {list(run.seeds)}: a "
                "rate that was chosen on a reported seed would look better than it is"
            )
        found: dict[str, tuple[float, ...]] = {}
        for method in run.methods:
            own = {**run.sections["train"], **method.train}.get("learning_rate", DEFAULT_RATE)
            rates = keys.rates.get(method.name, [float(f"{own * factor:.12g}") for factor in keys.factors])
            wrong: list[str] = []
            rates = validated(f"tuning.rates.{method.name}", rates, tuple[Rate, ...], wrong) or ()
            self.problems += wrong or ([] if len(set(rates)) > 1 else [f"tuning.rates.{method.name}: give two or more"])
            found[method.name] = tuple(sorted(set(rates)))
        return Rates(found, keys.seeds, keys.front == "all")

    def _comparisons(self, run: Study) -> tuple[Stated, ...]:
        found, names = [], [method.name for method in run.methods]
        for number, item in enumerate(self._items("comparisons") if "comparisons" in self.content else (), start=1):
            where = f"comparisons: item {number}: "
            keys = self._keys(ComparisonKeys, {"methods": (), **item} if isinstance(item, Mapping) else {}, where)
            for key, named in (*(("methods", name) for name in keys.methods), ("against", keys.against)):
                self.problems += [where + problem for problem in choice(key, named, names)]
            if keys.measure == "matched_forgetting" and run.tuning is None:
                self.problems.append(f"{where}measure: {keys.measure} is told from several rates; give tuning:")
            if keys.against in names:
                title = next(method.title for method in run.methods if method.name == keys.against)
                words = keys.question or f"{MEASURED[keys.measure]} than {title}?"
                found.append(Stated(question=words, methods=keys.methods, against=keys.against, measure=keys.measure))
        return tuple(found)

    def _try_settings(self, run: Study) -> None:
        """Settings that contradict each other are found here rather than when their step comes."""
        try:
            cells_of(replace(run, tuning=None))
            EvaluateSettings.of(**run.sections["evaluate"])
            RepresentSettings(**run.sections["represent"])
        except SettingsError as error:
            self.problems += error.problems
        except UserError as error:
            self.problems.append(str(error))
