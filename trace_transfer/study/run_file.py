"""`run.yaml` → everything that a run is made of, with every problem of the file found in one go, each with its path.

Paths are relative to the file. Reads the file's text and whether the files that it names are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Gt, MinLen
from pydantic import Field

from trace_transfer.data.tasks_file import TaskSpec, checked_items, locate
from trace_transfer.errors import UserError, listing
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import Suite, load_suite
from trace_transfer.printable import is_name
from trace_transfer.records import TASK, Name
from trace_transfer.reporting.numbers import several
from trace_transfer.reporting.records import MeasureName, Stated
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.settings import Count, Seed, Settings, SettingsError, Texts, choice, setting, texts, validated
from trace_transfer.study.cells import cells_of
from trace_transfer.study.methods import AXES, CHANGEABLE, METHODS, SECTIONS, RunMethod, axis_values, section_values
from trace_transfer.study.steps import LAUNCHED, VERSIONS, Resources
from trace_transfer.text_formats import read_yaml
from trace_transfer.training.settings import paper_training

DEFAULT = "default"  # resources of all kinds of steps
DEFAULT_RATE = paper_training().learning_rate
Rate = Annotated[float, Gt(0)]
Seeds = tuple[Seed, ...]
MEASURED: dict[MeasureName, str] = {
    "average": "Does it end higher",
    "backward_transfer": "Does it lose less",
    "forgetting": "Does it forget less",
    "forward_transfer": "Does it gain more before a task's turn",
    "learning": "Does it learn more",
    "matched_forgetting": "Does it lose less, learning as much,",
}


# ---- the keys of the file


class RunKeys(Settings):
    """The keys of a run file. What stands in lists and sections is checked by those who read it."""

    name: Name | None = setting(None, "Of the study; the file's or its directory's if not given.")
    source: Name | None = setting(None, "The model on which transfer methods identify core sets.")
    target: Name | None = setting(None, "The model that all methods train.")
    out: Name | None = setting(None, "Directory for the results; runs/NAME if not given.")
    rules: Texts = setting((), "Your own rules, files or directories, beside or over the shipped.")
    tasks: list[Any] = setting(list, "The tasks in the order of the stream.", min_length=1)
    evaluations: list[Any] = setting(list, "What is measured after each task.", min_length=1)
    suite: str | None = setting(None, "In place of `evaluations`: the name of a shipped suite, or a file.")
    methods: list[Any] = setting(list, "What is compared.", min_length=1)
    reference: str | None = setting(None, "The method with which the others are compared; the first if not given.")
    seeds: Seeds = setting((0,), "One run of each.", min_length=1)
    orders: Literal["file", "vary"] = setting("file", "vary: seed number k trains the k-th permutation of the tasks.")
    draws: Count = setting(1, "Random sets and shuffled layers of each seed; their mean is compared.")
    tuning: Mapping[str, Any] = setting(
        dict, "Learning rates of which each method gets its best, chosen on seeds of their own."
    )
    comparisons: list[Any] = setting(
        list, "What is asked, stated beforehand; a fixed list of questions if not given.", min_length=1
    )
    identify: Mapping[str, Any] = setting(dict, "Settings of `identify`.")
    map: Mapping[str, Any] = setting(dict, "Settings of `map`.")
    train: Mapping[str, Any] = setting(dict, "Settings of `train`.")
    evaluate: Mapping[str, Any] = setting(dict, "Settings of `evaluate`.")
    represent: Mapping[str, Any] = setting(
        dict, "Settings of `represent`, which is left out without them; `methods` chooses some."
    )
    sweeps: Mapping[str, Any] = setting(dict, "Axis → the values that it takes.")
    jobs: Count = setting(1, "Steps at a time.")
    processes: Count = setting(1, "Processes that share each training.")
    resources: Mapping[str, Mapping[str, Any]] = setting(
        dict, "Kind of step, or `default` → the GPUs, hours, partition … that it has."
    )
    keep: Literal["core", "all", "none"] = setting(
        "core", "Patches that outlive their scoring: those of core sets, all (and the models), or none."
    )


class MethodKeys(Settings):
    """A method of one's own: another one with other settings."""

    name: Annotated[str, Field(pattern=TASK)] | None = setting(None, "Of the method.")
    like: str | None = setting(None, "The method that it is made from.")
    title: Name | None = setting(None, "In tables; the name if not given.")
    what: Name | None = setting(None, "In the legend.")
    identify: Mapping[str, Any] = setting(dict, "Settings of `identify`.")
    map: Mapping[str, Any] = setting(dict, "Settings of `map`.")
    train: Mapping[str, Any] = setting(dict, "Settings of `train`.")


class SweepKeys(Settings):
    """An axis with more than its values."""

    values: Any = setting(None, "Values that the setting takes.")
    methods: Texts | None = setting(None, "Only these methods; all that the axis changes if not given.")
    seeds: Seeds | None = setting(None, "Only these seeds.")


class TuningKeys(Settings):
    """Each method gets the learning rate whose models end best on average, on seeds that are not reported."""

    factors: tuple[Rate, ...] = setting((0.25, 0.5, 1.0, 2.0), "Of each method's own learning rate.", min_length=2)
    rates: Mapping[str, Any] = setting(dict, "Method → its learning rates (one, if it is known), not the factors.")
    seeds: Seeds = setting((), "On which rates are chosen; none of the reported ones.", min_length=1)
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
        return TaskSpec.model_validate(self.model_dump(exclude={"evaluate"}))


class Sweep(NamedTuple):
    """One axis: `path` is the setting that takes each of the values, in these methods and with these seeds."""

    axis: str
    path: str
    values: tuple[Any, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


class Rates(NamedTuple):
    """Learning rates of each method, in order, and who trains them; `everywhere`: the reported seeds, too."""

    of: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    everywhere: bool = False


@dataclass(frozen=True)
class Study:
    """A run file, checked, with places as they are found from here."""

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
    # settings of `identify`, `map`, `train`, `evaluate` and `represent`, as they were given
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()
    draws: int = 1
    tuning: Rates | None = None
    comparisons: tuple[Stated, ...] = ()
    rules: tuple[str, ...] = ()
    represent: tuple[str, ...] = ()  # the methods whose embeddings are drawn
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
        return self.resources.get(kind, self.resources.get(DEFAULT, Resources()))

    def processes_of(self, kind: str, *, gpus: bool) -> int:
        """Processes that share a step of a kind: one a GPU, where there are `gpus` and it says how many it has."""
        wanted = self.resources_of(kind).num_gpus if gpus else None
        return (wanted or self.processes) if kind in LAUNCHED else 1

    def gpus_of(self, kind: str) -> int:
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
    """Read a run file; `out` is where results go, in place of what the file says. A UserError names all that is
    wrong with it."""
    file = Path(path)
    content = read_yaml(file)
    if not isinstance(content, dict):
        found = type(content).__name__
        raise UserError(f"{file}: expected keys such as target:, tasks: and methods:, found {found}")
    reader = _Reader(file, content)
    run = reader.read(out)
    if run is None or reader.problems:
        raise UserError(f"{file}: {several(len(reader.problems), 'problem')}:\n" + listing(reader.problems))
    return run


class _Reader:
    """Notes what is wrong with a file instead of stopping at the first problem; `keys` has what can be used."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file, self.content, self.problems = file, content, list[str]()
        said = {key: value for key, value in content.items() if value is not None or key not in RunKeys.model_fields}
        self.keys = self._keys(RunKeys, said)
        expected = {"target": "a directory, a GGUF file or a hub name", "tasks": "a list", "methods": "a list"}
        self.problems += [f"{key}: is missing; expected {one}" for key, one in expected.items() if key not in said]

    def _keys(self, kind: type[Any], given: Mapping[str, Any], where: str = "") -> Any:
        try:
            return kind(**{str(key): value for key, value in given.items()})
        except SettingsError as error:
            self.problems += [where + problem for problem in error.problems]
            return error.usable or kind()

    def read(self, out: Path | None) -> Study | None:
        keys = self.keys
        name = keys.name or (self.file.stem if self.file.stem != "run" else self.file.absolute().parent.name)
        if not is_name(name):
            self.problems.append(f"name: {name!r}, of the file or its directory, is not one line; give a name:")
        target, source = self._model("target"), self._model("source")
        before = len(self.problems)
        tasks, problems = checked_items(keys.tasks, RunTask, self.file.parent)
        self.problems += [f"tasks: {problem}" for problem in problems]
        suite, methods = self._suite(), self._methods()
        whole = len(self.problems) == before and tasks and methods and suite and target
        sections = {section: self._section(section) for section in SECTIONS}
        names = [method.name for method in methods]
        for key, values in (("seeds", keys.seeds), ("methods", names)):
            self.problems += [f"{key}: {one!r} stands there twice" for one, n in Counter(values).items() if n > 1]
        if suite is not None:
            for task in tasks:
                self._among(suite.names, task.evaluate or task.name, f"tasks: task '{task.name}': evaluate")
        place = out or (locate(keys.out, self.file.parent) if keys.out else Path("runs") / name)
        if not whole or target is None or suite is None:  # what stands on methods and tasks cannot be looked at
            return None
        reference = self._among(names, keys.reference or names[0], "reference")
        represented = self._among(names, texts(keys.represent.get("methods", names)), "represent.methods")
        run = Study(
            self.file, name, target, source, place, tasks, suite, methods, reference, keys.seeds, keys.orders, sections,
            rules=tuple(str(locate(one, self.file.parent)) for one in keys.rules),
            represent=tuple(represented) if "represent" in self.content else (), jobs=keys.jobs,
            processes=keys.processes, keep=keys.keep, draws=keys.draws, resources=self._resources(),
        )  # fmt: skip
        sweeps = [self._sweep(run, axis, item) for axis, item in keys.sweeps.items()]
        run = replace(run, sweeps=tuple(filter(None, sweeps)), tuning=self._tuning(run))
        run = replace(run, comparisons=self._comparisons(run))
        if not self.problems:  # settings that contradict each other are found here rather than when their step comes
            try:
                cells_of(replace(run, tuning=None))
                EvaluateSettings.of(**run.sections["evaluate"])
                RepresentSettings(**run.sections["represent"])
            except SettingsError as error:
                self.problems += error.problems
            except UserError as error:
                self.problems.append(str(error))
        return run

    def _among(self, known: Collection[Any], found: Any, where: str) -> Any:
        """What was found, or a problem for each (of a list) that is not known."""
        for one in found if isinstance(found, (list, tuple)) else [found]:
            self.problems += choice(where, one, known)
        return found

    def _model(self, key: str) -> str | None:
        """A path relative to the file, if there is one, else as it stands: it may be a hub name."""
        value: str | None = getattr(self.keys, key)
        if value is None:
            return None
        beside = locate(value, self.file.parent)
        if beside.exists():
            return str(beside)
        if value.startswith((".", "/", "~")) or value.count("/") != 1:
            self.problems.append(f"{key}: {beside}: no such file or directory, and no hub name owner/name")
        return value

    def _suite(self) -> Suite | None:
        named = self.keys.suite
        if (named is None) == ("evaluations" not in self.content):
            self.problems.append("evaluations: give either evaluations: (a list) or suite: (a name or a file)")
            return None
        try:
            if named is None:
                return Suite.of(self.keys.evaluations, self.file.parent, self.file.stem, where="evaluations")
            beside = locate(named, self.file.parent)
            return load_suite(beside if beside.is_file() else named)
        except UserError as error:
            self.problems.append(str(error) if named is None else f"suite: {error}")
            return None

    def _methods(self) -> tuple[RunMethod, ...]:
        found: list[RunMethod] = []
        for number, item in enumerate(self.keys.methods, start=1):
            if isinstance(item, Mapping):
                found += self._own_method(item, f"methods: item {number}: ")
            elif self._among(METHODS, item, "methods") in list(METHODS):
                found.append(METHODS[item])
        need = [method.name for method in found if method.needs == "source"]
        if need and self.content.get("source") is None:
            self.problems.append(f"source: is missing; {', '.join(need)} identify on it")
        return tuple(found)

    def _own_method(self, item: Mapping[str, Any], where: str) -> list[RunMethod]:
        before = len(self.problems)
        keys = self._keys(MethodKeys, item, where)
        if keys.name is None:
            self.problems.append(f"{where}name: is missing")
        self._among(METHODS, keys.like, f"{where}like")
        parts = {part: self._values(part, getattr(keys, part), where, taken=False) for part in CHANGEABLE}
        if len(self.problems) > before:
            return []
        base = METHODS[keys.like]
        sections: dict[str, Any] = {part: {**getattr(base, part), **values} for part, values in parts.items()}
        title = keys.title or (base.title if keys.name == base.name else keys.name)
        what = keys.what or f"{base.what}, with other settings"
        return [replace(base, name=keys.name, title=title, what=what, **sections)]

    def _values(self, section: str, given: Any, where: str = "", taken: bool = True) -> dict[str, Any]:
        values, problems = section_values(section, given, taken)
        self.problems += [f"{where}{section}.{problem}" for problem in problems]
        return values

    def _section(self, section: str) -> dict[str, Any]:
        given = getattr(self.keys, section)
        if section == "represent":
            given = {key: value for key, value in given.items() if key != "methods"}
        values = self._values(section, given)
        if section == "map" and isinstance(values.get("probe"), str):
            beside = locate(values["probe"], self.file.parent)
            values["probe"] = str(beside) if beside.exists() else values["probe"]
        return values

    def _resources(self) -> dict[str, Resources]:
        given: Mapping[str, Mapping[str, Any]] = self.keys.resources
        if not given:
            return {}
        self._among((DEFAULT, *VERSIONS), list(given), "resources")
        default = self._keys(Resources, given.get(DEFAULT, {}), f"resources.{DEFAULT}.")
        found = {DEFAULT: default}
        for kind in [one for one in given if one != DEFAULT]:
            keys = self._keys(Resources, given[kind], f"resources.{kind}.")
            own = {name: getattr(keys, name) for name in keys.model_fields_set}
            found[kind] = default.model_copy(update={**own, "sbatch": {**default.sbatch, **keys.sbatch}})
        return found

    def _sweep(self, run: Study, axis: str, item: Any) -> Sweep | None:
        where, path = f"sweeps.{axis}", AXES.get(axis, axis)
        section, _, key = path.partition(".")
        if path not in ("seed", "order") and (section not in CHANGEABLE or key not in SECTIONS[section].names()):
            self.problems += choice("sweeps", axis, (*AXES, "or a setting such as train.epochs"))
            return None
        keys = self._keys(SweepKeys, item if isinstance(item, Mapping) else {"values": item}, f"{where}.")
        values, problems = axis_values(path, keys.values, run.task_names)
        self.problems += [f"{where}: {problem}" for problem in problems]
        able = [method.name for method in run.methods if method.changes_with(path)]
        if not able:
            self.problems.append(f"{where}: changes nothing: it is a setting of none of the methods")
        methods = self._among(able, able if keys.methods is None else keys.methods, f"{where}.methods")
        seeds = self._among(run.seeds, run.seeds if keys.seeds is None else keys.seeds, f"{where}.seeds")
        return Sweep(axis, path, tuple(values), tuple(methods), tuple(seeds))

    def _tuning(self, run: Study) -> Rates | None:
        if self.content.get("tuning") is None:
            return None
        keys = self._keys(TuningKeys, {"seeds": (), **self.keys.tuning}, "tuning.")
        self._among([method.name for method in run.methods], list(keys.rates), "tuning.rates")
        if {*keys.seeds} & {*run.seeds} or len(set(keys.seeds)) < len(keys.seeds):
            self.problems.append(
                f"tuning.seeds: found {list(keys.seeds)}, expected each once and none of seeds: {list(run.seeds)}: a "
                "rate that was chosen on a reported seed would look better than it is"
            )
        found: dict[str, tuple[float, ...]] = {}
        for method in run.methods:
            where = f"tuning.rates.{method.name}"
            own = {**run.sections["train"], **method.train}.get("learning_rate", DEFAULT_RATE)
            rates = keys.rates.get(method.name, [float(f"{own * factor:.12g}") for factor in keys.factors])
            rates = validated(where, rates, Annotated[tuple[Rate, ...], MinLen(1)], self.problems) or ()
            found[method.name] = tuple(sorted(set(rates)))
        return Rates(found, keys.seeds, keys.front == "all")

    def _comparisons(self, run: Study) -> tuple[Stated, ...]:
        found, titles = [], {method.name: method.title for method in run.methods}
        for number, item in enumerate(self.keys.comparisons, start=1):
            where = f"comparisons: item {number}: "
            keys = self._keys(ComparisonKeys, {"methods": (), **item} if isinstance(item, Mapping) else {}, where)
            self._among(titles, keys.methods, f"{where}methods")
            self._among(titles, keys.against, f"{where}against")
            if keys.measure == "matched_forgetting" and run.tuning is None:
                self.problems.append(f"{where}measure: {keys.measure} is told from several rates; give tuning:")
            if keys.against in titles:
                words = keys.question or f"{MEASURED[keys.measure]} than {titles[keys.against]}?"
                found.append(Stated(question=words, methods=keys.methods, against=keys.against, measure=keys.measure))
        return tuple(found)
