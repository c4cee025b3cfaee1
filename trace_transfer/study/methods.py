"""The methods that a run compares: on which model core sets are found, how they get to the target, what trains.

Another comparison is another entry here, or an item with `like:` in a run file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any, Literal

from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.settings import Settings, SettingsError, choice, singles, unknown_problems
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings

Needs = Literal["none", "source", "target"]
# Methods of `train`.
DRAWN = ("random", "random-within", "role-profile", "norms-random", "head-norms-random", "shuffled")


@dataclass(frozen=True)
class RunMethod:
    """One row of the tables."""

    name: str
    title: str  # title, what: for tables and for the legend
    what: str
    needs: Needs  # the model on which core sets are identified; those of the source are carried over
    # identify, map, train: settings that make the method; they stand over those of the run
    identify: Mapping[str, Any] = field(default_factory=dict)
    map: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    # if any, those of a second identification, on the target, and what it makes of what was carried there
    refine: Mapping[str, Any] = field(default_factory=dict)
    refine_by: Literal["within", "prior"] = "within"

    @property
    def drawn(self) -> bool:
        """Whether chance decides what it trains, so that `draws:` takes several for each seed."""
        return self.train.get("method") in DRAWN or self.map.get("match") == "shuffled"

    def changes_with(self, path: str) -> bool:
        """Whether an axis changes it at all."""
        section, _, key = path.partition(".")
        if section == "identify":
            return self.needs != "none" and not (key == "alpha" and self.identify.get("method") != "lf")
        if section == "map":
            return self.needs == "source" and key not in self.map
        return not (section == "train" and key in self.train)


def _methods() -> Iterator[RunMethod]:
    for name, title, what in (
        ("sequential", "Sequential", "everything, task after task"),
        ("joint", "Joint", "everything, all tasks mixed: no order, nothing to forget"),
        ("lora", "Sequential LoRA", "adapters on all layers, task after task"),
        ("dmt", "DMT", "everything: all tasks but the last mixed, then that one with a few examples of the others"),
    ):
        yield RunMethod(name, title, what, "none", train={"method": "full" if name == "sequential" else name})

    own: dict[tuple[str, str], RunMethod] = {}  # score, unit (the run's own if none is given) → method
    for score, unit in (("lf", ""), ("cs", ""), ("lf", "rows"), ("snr", ""), ("snr", "rows"), ("snr", "parameters")):
        by, start = score.upper(), ", no warm start" if score == "snr" else ""
        method = own[score, unit] = RunMethod(
            f"trace-{score}" + (f"-{unit}" if unit else ""), f"TRACE-{by}" + (f", {unit}" if unit else ""),
            "core sets" + (f" of {unit}" if unit else "") + f" identified on the target itself, by {by}{start}",
            "target", {"method": score, **({"unit": unit} if unit else {})}, {}, {"method": "trace"},
        )  # fmt: skip
        yield method

    def carried(name: str, title: str, what: str, score: str, train: str = "trace", **how: Any) -> RunMethod:
        return RunMethod(name, title, what, "source", {"method": score}, {"carry": "scores"} | how, {"method": train})

    found = "core sets identified on the source by"
    for score, by in (("lf", "LF"), ("cs", "CS")):
        told = f"{found} {by}, carried to the target by their scores and selected anew there"
        yield carried(f"transfer-{score}", f"Transfer-{by}", told, score)
    for score, by in (("lf", "LF"), ("cs", "CS")):
        told = f"{found} {by}, carried to the target as sets (the paper's way)"
        yield carried(f"transfer-{score}-core", f"Transfer-{by} by core", told, score, carry="core")

    told = "of the 20 % of the target that Transfer-LF carries over, the rows with the highest SNR on the target"
    yield replace(carried("transfer-snr-rows", "Transfer-LF, then SNR rows", told, "lf", ratio=0.2),
                  refine=own["snr", "rows"].identify)  # fmt: skip
    told = "rows with the highest SNR on the target times the scores that Transfer-LF carries over"
    yield replace(carried("prior-snr-rows", "Transfer-LF as a prior of SNR rows", told, "lf"),
                  refine=own["snr", "rows"].identify, refine_by="prior")  # fmt: skip
    yield carried("random", "Random set", "a random set of the size of Transfer-LF's (control)", "lf", "random")
    yield carried("shuffled-map", "Shuffled layer map",
                  "Transfer-LF with the layers of the target shuffled (control)", "lf", match="shuffled")  # fmt: skip
    yield carried("depth-map", "Proportional layer map",
                  "Transfer-LF with layers matched by relative depth alone (control)", "lf", match="depth")  # fmt: skip
    lf, rows, parameters = own["lf", ""], own["snr", "rows"], own["snr", "parameters"]
    for name, title, what, like, train in (
        ("random-tensors", "Random tensors", "random tensors, as many as", lf, "random"),
        ("random-rows", "Random rows", "random rows, as many as", rows, "random"),
        ("random-parameters", "Random parameters", "random parameters, as many as", parameters, "random"),
        ("random-within-rows", "Random rows inside", "of each tensor as many random rows as", rows, "random-within"),
        ("random-within-parameters", "Random parameters inside", "of each tensor as many parameters as", parameters,
         "random-within"),
        ("role-profile", "Role profile", "of each component as many random tensors as", lf, "role-profile"),
        ("one-set", "One set for all tasks", "one set for all tasks, by their mean scores, as large as", lf, "one-set"),
        ("norms-random", "Norms and random", "all norms and random tensors, together of the size of", lf,
         "norms-random"),
        ("head-norms-random", "Head, norms and random", "head, all norms and random tensors, together of the size of",
         lf, "head-norms-random"),
    ):  # fmt: skip
        yield RunMethod(name, title, f"{what} {like.title}'s (control)", "target", like.identify, {}, {"method": train})
    for name in ("first", "last"):
        what = f"the {name} layers whole, as many as Transfer-LF's size (control)"
        yield carried(name, f"{name.capitalize()} layers", what, "lf", name)


METHODS: dict[str, RunMethod] = {method.name: method for method in _methods()}
CHANGEABLE = ("identify", "map", "train")  # sections that methods and sweeps change
# Short names of axes that the paper sweeps → the setting that they stand for.
AXES = {
    "ratio": "identify.ratio", "alpha": "identify.alpha", "warm_start_epochs": "identify.epochs", "match": "map.match",
    "seed": "seed", "order": "order",
}  # fmt: skip
_TAKEN = {"identify": ("method", "seed"), "map": ("carry", "cache", "rules"), "train": ("method", "seed", "order")}
SECTIONS: dict[str, type[Settings]] = {
    "identify": IdentifySettings,
    "map": MapSettings,
    "train": StreamSettings,
    "evaluate": EvaluateSettings,
    "represent": RepresentSettings,
}


def section_values(section: str, given: Mapping[str, Any], taken: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Settings in the types that they have, and what is wrong with them whatever the other settings are.
    With `taken`, settings that the methods and cells decide are refused."""
    kind = SECTIONS[section]
    known, profiles = {one.name: one for one in singles(kind)}, kind.PROFILES if len(kind.PROFILES) > 1 else {}
    problems = unknown_problems(map(str, given), [*known, *(["profile"] if profiles else [])])
    values: dict[str, Any] = {}
    for name, value in given.items():
        if taken and name in _TAKEN.get(section, ()):
            problems.append(f"{name}: is set by the run: methods, seeds, orders, rules; leave it out")
        elif name == "profile" and profiles:
            values[name] = value
            problems += choice("profile", value, profiles)
        elif name in known:
            try:
                values[name] = getattr(known[name].owner(**{name: value}), name)
            except SettingsError as error:
                problems += error.alone
                values[name] = value
    return values, problems


def axis_values(path: str, given: Any, tasks: tuple[str, ...]) -> tuple[list[Any], list[str]]:
    """The values of an axis, in the type of its setting."""
    every = list(permutations(tasks))
    if path == "order" and given == "all":
        return list(every), []
    if not isinstance(given, list) or not given:
        return [], [f"found {given!r}, expected a list of values" + (", or `all`" if path == "order" else "")]
    if path == "order":
        wrong = [f"{one!r} is not an order of {', '.join(tasks)}" for one in given if one not in map(list, every)]
        return [tuple(one) for one in given if isinstance(one, list)], wrong
    if path == "seed":
        return given, [f"{one!r} is not a whole number from 0 on" for one in given if type(one) is not int or one < 0]
    section, _, key = path.partition(".")
    found = [section_values(section, {key: one}, taken=False) for one in given]
    return [one for values, _ in found for one in values.values()], [one for _, wrong in found for one in wrong]
