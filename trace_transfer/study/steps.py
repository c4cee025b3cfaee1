"""The step of a study: its kind, what decides its files, the address that follows, and the ticket with which any
process can do it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trace_transfer.files import prepare_directory, sha256_text, write_text
from trace_transfer.records import read_fields

SHORT = 12
TICKET, CACHE = "ticket.json", "cache"
# To be counted up where a change of this program makes a step's files differ: what was made before is made again.
VERSIONS = {
    "warm-start": 1,
    "evidence": 1,
    "identify": 2,
    "match": 1,
    "map": 2,
    "train": 1,
    "baseline": 1,
    "evaluate": 1,
    "represent": 1,
}
LAUNCHED = ("warm-start", "train")  # several processes may share the work


@dataclass(frozen=True, eq=False)
class Step:
    """One unit of work.

    Attributes:
        kind: a key of `VERSIONS`, and of `kinds.KINDS`, which says how it is done.
        settings: that decide its files; plain JSON.
        inputs: what for → hash of a file or of a model.
        needs: what for → the step whose files it reads.
        arguments: where things are, and settings as they were given; they do not take part in the address.
        keeps: whether its large files outlive the steps that need them.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, Step] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    keeps: bool = True

    @cached_property
    def address(self) -> str:
        """SHA-256 of kind, version, settings and inputs, those of the steps that it needs among them."""
        content = {
            "kind": self.kind,
            "version": VERSIONS[self.kind],
            "settings": self.settings,
            "inputs": self.all_inputs,
        }
        return sha256_text(json.dumps(content, sort_keys=True, separators=(",", ":")))

    @property
    def all_inputs(self) -> dict[str, str]:
        """Hashes of files and models, and the addresses of other steps."""
        return {**self.inputs, **{name: step.address for name, step in self.needs.items()}}

    @property
    def directory(self) -> str:
        """Relative to the run's."""
        return f"steps/{self.kind}-{self.address[:SHORT]}"


@dataclass(frozen=True)
class Ticket:
    """All that a process needs to do a step; `needs` are the directories of the steps before it. Plain JSON, so that
    other processes, a launcher's ranks among them, can do the same step."""

    kind: str
    out: str
    cache: str
    settings: Mapping[str, Any]
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
    def given(self) -> Mapping[str, Any]:
        """Settings as they were given."""
        found: Mapping[str, Any] = self.arguments["given"]
        return found

    def before(self, name: str) -> Path:
        """The directory of a step that it needs."""
        return Path(self.needs[name])


def order_of(step: Step, out: Path) -> tuple[Ticket, dict[str, Any]]:
    """What whoever does a step is told: its ticket, and what will stand in its record."""
    directory = prepare_directory((out / step.directory).absolute())
    needs = {name: str((out / needed.directory).absolute()) for name, needed in step.needs.items()}
    ticket = Ticket(
        step.kind, str(directory), str((out / CACHE).absolute()), step.settings, needs, step.arguments
    )  # fmt: skip
    return ticket, {"kind": step.kind, "address": step.address, "settings": step.settings, "inputs": step.all_inputs}
