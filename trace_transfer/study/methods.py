"""The methods that a run compares: on which model core sets are found, how they get to the target, what trains.

Another comparison is another entry here, or an item with `like:` in a run file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Literal

from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.settings import Settings, SettingsError, Single, choice, singles, unknown_problems
from trace_transfer.training.settings import StreamSettings
from trace_transfer.transfer.settings import MapSettings

Needs = Literal["none", "source", "target"]
DRAWN = ("random", "random-within", "norms-random", "head-norms-random", "shuffled")  # methods of `train`


@dataclass(frozen=True)
class RunMethod:
    """One row of the tables.

    Attributes:
        title, what: for tables and for the legend.
        needs: the model on which core sets are identified; those of the source are carried over.
        identify, map, train: settings that make the method; they stand over those of the run.
    """

    name: str
    title: str
    what: str
    needs: Needs
    identify: Mapping[str, Any] = field(default_factory=dict)
    map: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)

    @property
    def drawn(self) -> bool:
        """Whether chance decides what it trains, so that `draws:` takes several for each seed."""
        return self.train.get("method") in DRAWN or self.map.get("match") == "shuffled"


def _trace(score: str, unit: str | None = None) -> RunMethod:
    """Of the run's own unit if none is given."""
    by, of = score.upper(), f" of {unit}" if unit else ""
    return RunMethod(
        "-".join(filter(None, ("trace", score, unit))), f"TRACE-{by}" + (f", {unit}" if unit else ""),
        f"core sets{of} identified on the target itself, by {by}" + (", no warm start" if score == "snr" else ""),
        "target", {"method": score, **({"unit": unit} if unit else {})}, {}, {"method": "trace"},
    )  # fmt: skip


def _transfer(score: str, carry: str) -> RunMethod:
    by_core = carry == "core"
    return RunMethod(
        f"transfer-{score}" + ("-core" if by_core else ""),
        f"Transfer-{score.upper()}" + (" by core" if by_core else ""),
        f"core sets identified on the source by {score.upper()}, carried to the target "
        + ("as sets (the paper's way)" if by_core else "by their scores and selected anew there"),
        "source", {"method": score}, {"carry": carry}, {"method": "trace"},
    )  # fmt: skip


def _control(name: str, title: str, what: str, *, match: str | None = None, train: str = "trace") -> RunMethod:
    chosen = {"carry": "scores", **({"match": match} if match else {})}
    return RunMethod(name, title, f"{what} (control)", "source", {"method": "lf"}, chosen, {"method": train})


def _own_control(name: str, title: str, what: str, like: RunMethod, train: str) -> RunMethod:
    """Of the size, or the shares of tensors, of a core set that the target's own scores choose."""
    return RunMethod(name, title, f"{what} {like.title}'s (control)", "target", like.identify, {}, {"method": train})


METHODS: dict[str, RunMethod] = {
    method.name: method
    for method in (
        RunMethod("sequential", "Sequential", "everything, task after task", "none", train={"method": "full"}),
        RunMethod("joint", "Joint", "everything, all tasks mixed: no order, nothing to forget", "none",
                  train={"method": "joint"}),
        RunMethod("lora", "Sequential LoRA", "adapters on all layers, task after task", "none",
                  train={"method": "lora"}),
        RunMethod("dmt", "DMT", "everything: all tasks but the last mixed, then that one with a few examples of the "
                  "others", "none", train={"method": "dmt"}),
        _trace("lf"),
        _trace("cs"),
        _trace("lf", "rows"),
        _trace("snr"),
        _trace("snr", "rows"),
        _trace("snr", "parameters"),
        _transfer("lf", "scores"),
        _transfer("cs", "scores"),
        _transfer("lf", "core"),
        _transfer("cs", "core"),
        _control("random", "Random set", "a random set of the size of Transfer-LF's", train="random"),
        _control("shuffled-map", "Shuffled layer map", "Transfer-LF with the layers of the target shuffled",
                 match="shuffled"),
        _control("depth-map", "Proportional layer map", "Transfer-LF with layers matched by relative depth alone",
                 match="depth"),
        _own_control("random-tensors", "Random tensors", "random tensors, as many as", _trace("lf"), "random"),
        _own_control("random-rows", "Random rows", "random rows, as many as", _trace("snr", "rows"), "random"),
        _own_control("random-parameters", "Random parameters", "random parameters, as many as",
                     _trace("snr", "parameters"), "random"),
        _own_control("random-within-rows", "Random rows inside", "of each tensor as many random rows as",
                     _trace("snr", "rows"), "random-within"),
        _own_control("random-within-parameters", "Random parameters inside", "of each tensor as many parameters as",
                     _trace("snr", "parameters"), "random-within"),
        _own_control("norms-random", "Norms and random", "all norms and random tensors, together of the size of",
                     _trace("lf"), "norms-random"),
        _own_control("head-norms-random", "Head, norms and random",
                     "head, all norms and random tensors, together of the size of", _trace("lf"), "head-norms-random"),
        _control("first", "First layers", "the first layers whole, as many as Transfer-LF's size", train="first"),
        _control("last", "Last layers", "the last layers whole, as many as Transfer-LF's size", train="last"),
    )
}  # fmt: skip

CHANGEABLE = ("identify", "map", "train")  # sections that methods and sweeps change
# Short names of axes that the paper sweeps → the setting that they stand for.
AXES = {
    "ratio": "identify.ratio",
    "alpha": "identify.alpha",
    "warm_start_epochs": "identify.epochs",
    "match": "map.match",
    "seed": "seed",
    "order": "order",
}
_BY_METHOD = "is set by the methods; leave it out"
_PER_CELL = "is set for each cell (`seeds:`, `orders:`); leave it out"
_TAKEN = {
    "identify": {"method": _BY_METHOD, "seed": _PER_CELL},
    "map": {"carry": _BY_METHOD, "cache": "is in the run's own directory; leave it out", "rules": "stands at the top"},
    "train": {"method": _BY_METHOD, "seed": _PER_CELL, "order": _PER_CELL},
    "evaluate": {},
    "represent": {},
}
SECTIONS: dict[str, type[Settings]] = {
    "identify": IdentifySettings,
    "map": MapSettings,
    "train": StreamSettings,
    "evaluate": EvaluateSettings,
    "represent": RepresentSettings,
}


def section_values(section: str, given: Mapping[str, Any], taken: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Settings in the types that they have, and what is wrong with the others.

    Args:
        taken: whether settings that the methods and cells decide are refused.
    """
    kind = SECTIONS[section]
    known, profiles = {one.name: one for one in singles(kind)}, kind.PROFILES if len(kind.PROFILES) > 1 else {}
    problems = unknown_problems(map(str, given), [*known, *(["profile"] if profiles else [])])
    values: dict[str, Any] = {}
    for name, value in given.items():
        if taken and name in _TAKEN[section]:
            problems.append(f"{name}: {_TAKEN[section][name]}")
        elif name == "profile" and profiles:
            values[name] = value
            problems += choice("profile", value, profiles)
        elif name in known:
            values[name] = _value(known[name], value, problems)
    return values, problems


def _value(setting: Single, value: Any, problems: list[str]) -> Any:
    """A value as its setting takes it; a line for one that is wrong whatever the other settings are."""
    try:
        return getattr(setting.owner(**{setting.name: value}), setting.name)
    except SettingsError as error:
        problems += error.alone
        return value


def axis_values(path: str, given: Any, tasks: tuple[str, ...]) -> tuple[list[Any], list[str]]:
    """The values of an axis, in the type of its setting."""
    if path == "order":
        every = [list(order) for order in permutations(tasks)]
        given = every if given == "all" else given
        wrong = [f"{one!r} is not an order of {', '.join(tasks)}" for one in given or [] if one not in every]
        return [tuple(one) for one in given or []], wrong or ([] if given else ["expected `all`, or a list of orders"])
    if not isinstance(given, list) or not given:
        return [], [f"found {given!r}, expected a list of values"]
    if path == "seed":
        return given, [f"{one!r} is not a whole number from 0 on" for one in given if type(one) is not int or one < 0]
    section, _, key = path.partition(".")
    values: list[Any] = []
    problems: list[str] = []
    for one in given:
        found, wrong = section_values(section, {key: one}, taken=False)
        values += found.values()
        problems += wrong
    return values, problems


def takes_part(method: RunMethod, path: str) -> bool:
    """Whether an axis changes a method at all."""
    section, _, key = path.partition(".")
    if section == "identify":
        return method.needs != "none" and not (key == "alpha" and method.identify.get("method") != "lf")
    if section == "map":
        return method.needs == "source" and key not in method.map
    return not (section == "train" and key in method.train)
