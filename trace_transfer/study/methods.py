"""The methods that a run compares: on which model core sets are found, how they get to the target, what trains.

Another comparison is another entry here, or an item with `like:` in a run file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Needs = Literal["none", "source", "target"]


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


def _trace(score: str) -> RunMethod:
    return RunMethod(
        f"trace-{score}", f"TRACE-{score.upper()}", f"core sets identified on the target itself, by {score.upper()}",
        "target", {"method": score}, {}, {"method": "trace"},
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
        _transfer("lf", "scores"),
        _transfer("cs", "scores"),
        _transfer("lf", "core"),
        _transfer("cs", "core"),
        _control("random", "Random set", "a random set of the size of Transfer-LF's", train="random"),
        _control("shuffled-map", "Shuffled layer map", "Transfer-LF with the layers of the target shuffled",
                 match="shuffled"),
        _control("depth-map", "Proportional layer map", "Transfer-LF with layers matched by relative depth alone",
                 match="depth"),
        _control("first", "First layers", "the first layers whole, as many as Transfer-LF's size", train="first"),
        _control("last", "Last layers", "the last layers whole, as many as Transfer-LF's size", train="last"),
    )
}  # fmt: skip
