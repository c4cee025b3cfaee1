"""The step of a study: its kind, what decides its files, the address that follows, the ticket with which any process
can do it, and what it has of a machine or asks a cluster's scheduler for.

    resources:
      default: {hours: 2, cpus: 8, memory_gb: 64, partition: gpu, account: lab}
      train: {gpus: 8, hours: 12, constraint: h100, sbatch: {qos: long}}

A kind has what `default` says wherever it says nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from trace_transfer.files import prepare_directory, sha256_text, write_text
from trace_transfer.records import Name, read_fields
from trace_transfer.settings import Count, Settings, setting

SHORT = 12
TICKET, CACHE = "ticket.json", "cache"
# To be counted up where a change of this program makes a step's files differ: what was made before is made again.
VERSIONS = {
    "warm-start": 1, "evidence": 1, "identify": 2, "match": 1, "map": 2, "train": 1, "baseline": 1, "evaluate": 1,
    "represent": 1,
}  # fmt: skip
LAUNCHED = ("warm-start", "train")  # several processes may share the work
LATEST_SIGNAL = 300  # s before the end of its time at which a job is told to save …
SHARE = 0.25  # … or a share of its time, where that is less


@dataclass(frozen=True, eq=False)
class Step:
    """One unit of work."""

    kind: str  # a key of `VERSIONS`, and of `kinds.KINDS`, which says how it is done
    settings: Mapping[str, Any]  # that decide its files; plain JSON
    inputs: Mapping[str, str] = field(default_factory=dict)  # what for → hash of a file or of a model
    needs: Mapping[str, Step] = field(default_factory=dict)  # what for → the step whose files it reads
    # where things are, and settings as they were given; they do not take part in the address
    arguments: Mapping[str, Any] = field(default_factory=dict)
    keeps: bool = True  # whether its large files outlive the steps that need them

    @cached_property
    def address(self) -> str:
        """SHA-256 of kind, version, settings and inputs, those of the steps that it needs among them."""
        content = {"kind": self.kind, "version": VERSIONS[self.kind], "settings": self.settings,
                   "inputs": self.all_inputs}  # fmt: skip
        return sha256_text(json.dumps(content, sort_keys=True, separators=(",", ":")))

    @property
    def all_inputs(self) -> dict[str, str]:
        return {**self.inputs, **{name: step.address for name, step in self.needs.items()}}

    @property
    def directory(self) -> str:
        return f"steps/{self.kind}-{self.address[:SHORT]}"

    def ticket(self, out: Path) -> Ticket:
        """What whoever does it is told, for a run in that directory; makes its own."""
        out = out.absolute()
        directory = prepare_directory(out / self.directory)
        needs = {name: str(out / needed.directory) for name, needed in self.needs.items()}
        return Ticket(
            self.kind, self.address, str(directory), str(out / CACHE), self.settings, self.all_inputs, needs,
            self.arguments,
        )  # fmt: skip


@dataclass(frozen=True)
class Ticket:
    """All that a process needs to do a step and to record it; `needs` are the directories of the steps before it. Plain
    JSON, so that other processes, a launcher's ranks among them, can do the same step."""

    kind: str
    address: str
    out: str
    cache: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    needs: Mapping[str, str]
    arguments: Mapping[str, Any]

    @classmethod
    def read(cls, file: Path) -> Ticket:
        return read_fields(file, cls)

    def write(self) -> Path:
        file = self.directory / TICKET
        write_text(file, json.dumps(asdict(self), indent=1))
        return file

    @property
    def directory(self) -> Path:
        return Path(self.out)

    @property
    def rules(self) -> tuple[str, ...]:
        return tuple(self.arguments["rules"])

    @property
    def given(self) -> dict[str, Any]:
        return dict(self.arguments["given"])

    def before(self, name: str) -> Path:
        return Path(self.needs[name])


_OWN = {"gpus-per-node": "gpus", "nodes": "nodes", "cpus-per-task": "cpus", "mem": "memory_gb", "time": "hours",
        "partition": "partition", "account": "account", "constraint": "constraint"}  # fmt: skip
_OURS = ("job-name", "dependency", "kill-on-invalid-dep", "array", "output", "error", "ntasks", "ntasks-per-node")


class Resources(Settings):
    """What a step of one kind has."""

    gpus: Annotated[int, Ge(0)] | None = setting(None, "Of each node; a training has a process on each.")
    nodes: Count = setting(1, "More than one for trainings only.")
    cpus: Count | None = setting(None, "Cores of each node.")
    memory_gb: Annotated[float, Gt(0)] | None = setting(None, "Main memory of each node, GB.")
    hours: Annotated[float, Gt(0)] = setting(
        12.0, "Time limit of a job; before it is up, a training saves and is requeued."
    )
    partition: Name | None = setting(None, "Of the cluster.")
    account: Name | None = setting(None, "Whom the cluster charges.")
    constraint: Name | None = setting(None, "Features that a node must have.")
    sbatch: Mapping[str, str | int | float | bool] = setting(dict, "Further options of sbatch, without their dashes.")

    def contradictions(self) -> list[str]:
        found = []
        for key, value in self.sbatch.items():
            name = key.replace("_", "-").lstrip("-")
            if name in _OWN:
                found.append(f"sbatch: {key}: is `{_OWN[name]}` here")
            elif name in _OURS:
                found.append(f"sbatch: {key}: is set by the run")
            elif value is False:
                found.append(f"sbatch: {key}: leave it out")
        return found

    @property
    def num_gpus(self) -> int | None:
        return None if self.gpus is None else self.gpus * self.nodes

    @property
    def signal_s(self) -> int:
        """Seconds before the end of its time at which a job is told."""
        return int(min(LATEST_SIGNAL, SHARE * 3600 * self.hours))

    def submitted(self, launched: bool) -> dict[str, Any]:
        """As submitit takes them; options that it does not know are in `additional_parameters`. `launched`: several
        processes may share the step, and with them several nodes."""
        found = {
            "nodes": self.nodes if launched else 1, "ntasks_per_node": 1, "gpus_per_node": self.gpus or None,
            "cpus_per_task": self.cpus,
            "mem": f"{round(self.memory_gb * 1024)}M" if self.memory_gb else None,
            "time": max(1, round(60 * self.hours)), "partition": self.partition, "account": self.account,
            "constraint": self.constraint,
        }  # fmt: skip
        # B: the batch script is told, which is the program itself. As a job of any kind may be requeued, so may this.
        more = {"signal": f"B:USR2@{self.signal_s}", "requeue": True, **self.sbatch}
        return {**{name: value for name, value in found.items() if value is not None}, "additional_parameters": more}
