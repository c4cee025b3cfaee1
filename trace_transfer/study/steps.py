"""The step of a study: its kind, what decides its files, and the address that follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from trace_transfer.files import sha256_text

SHORT = 12
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
