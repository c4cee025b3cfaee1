"""SLURM for the tests of a module, which says `ACCOUNTING`, and studies that are run on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.one_node import OneNode, missing, one_node
from tests.study.run_directories import write_run
from trace_transfer.study.cluster import Jobs

COMMAND = [sys.executable, "-m", "trace_transfer", "run"]
SLURM = ("--executor", "slurm")
RESOURCES = {"default": {"hours": 0.5, "cpus": 1, "memory_gb": 2}}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slurm" in Path(item.path).parts:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[OneNode]:
    """A SLURM of two nodes."""
    accounting = getattr(request.module, "ACCOUNTING", False)
    if why := missing(accounting):
        pytest.skip(why)
    with one_node(accounting=accounting, min_job_age=getattr(request.module, "MIN_JOB_AGE", 300)) as started:
        yield started


@dataclass
class OnCluster:
    """A run file, where its results go, and commands on it."""

    cluster: OneNode
    file: Path
    out: Path

    @property
    def log(self) -> Path:
        return self.out.with_name(f"{self.out.name}.txt")

    @property
    def said(self) -> str:
        return self.log.read_text()

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        environment = {**self.cluster.environment, "OMP_NUM_THREADS": "1"}
        command = [*COMMAND, str(self.file), "--out", str(self.out), *options]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def run(self, *options: str, code: int = 0) -> str:
        """What a command says; it ends with that code."""
        before = len(self.said) if self.log.is_file() else 0
        assert self.start(*options).wait(3600) == code, self.said[-3000:]
        return self.said[before:]

    def jobs(self) -> dict[str, str]:
        """Step → its job, as the command noted."""
        file = self.out / "jobs" / "jobs.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def job(self, kind: str) -> str:
        """The one job of a kind."""
        (found,) = [job for step, job in self.jobs().items() if step.startswith(f"steps/{kind}-")]
        return found

    def names(self) -> list[str]:
        """Of all jobs that this run has ever had, but for those that SLURM has forgotten."""
        mark = Jobs(self.out).mark
        found = self.cluster.ask("squeue", "-h", "--states=all", "-o", "%j").split()
        return [name for name in found if name.endswith(f".{mark}")]

    def state(self, job: str) -> str:
        return self.cluster.ask("squeue", "-h", "--states=all", "-j", job, "-o", "%T").strip()

    def log_of(self, kind: str) -> str:
        return "".join(file.read_text() for file in self.out.glob(f"steps/{kind}-*/log.txt"))


def wait_for(condition: Any, what: str, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.2)


@pytest.fixture
def study(cluster: OneNode, tiny: Any, tmp_path: Path) -> Any:
    """`study(name, **changes)`: a small study in a directory of its own."""

    def make(name: str = "one", **changes: Any) -> OnCluster:
        changes = {"resources": RESOURCES, **changes}
        return OnCluster(cluster, write_run(tmp_path / name, tiny, **changes), tmp_path / name / "out")

    yield make
    cluster.ask("scancel", "--user", os.environ.get("USER", "root"))
