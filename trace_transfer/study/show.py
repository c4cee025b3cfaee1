"""What a run will do, and why; how far it is; what its jobs do; what it found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trace_transfer.data.examples import TaskData
from trace_transfer.data.rendering import example_lines
from trace_transfer.progress import EVERY, Counted, bars, passed, shows_bars
from trace_transfer.reporting.numbers import several
from trace_transfer.reporting.records import TUNING, Summary
from trace_transfer.reporting.summary_tables import short_tables
from trace_transfer.reporting.verdicts import sentences
from trace_transfer.study.graph import RunGraph
from trace_transfer.study.status import StepStatus
from trace_transfer.study.steps import LAUNCHED, Step
from trace_transfer.tables import Table, to_text


def render_run_plan(
    graph: RunGraph, status: Sequence[StepStatus], read: Mapping[str, Sequence[TaskData]] | None = None, *,
    jobs: bool = False,
) -> str:  # fmt: skip
    """For `--dry-run`, with the tasks as `source` and `target` read them; `jobs`: each step will be a cluster's job."""
    run = graph.run
    counts = Counter("tuning" if cell.axis == TUNING else "sweep" if cell.axis else "main" for cell, _ in graph.cells)
    lines = [
        f"{run.name}: {several(len(run.methods), 'method')} x {several(len(run.seeds), 'seed')} on "
        + ", ".join(run.task_names),
        f"source {run.source or '-'}, target {run.target}",
        f"{several(counts['main'], 'model')} in the comparison, {counts['sweep']} in sweeps"
        + (f", {counts['tuning']} for tuning" if run.tuning else "")
        + f"; {several(len(status), 'step')}",
        *([f"then, at the learning rates that these choose: {', '.join(graph.waiting)}"] if graph.waiting else []),
        "",
    ]
    todo = [one for one in status if one.record is None]
    for one in todo:
        lines += [f"run   {graph.label(one.step)}: {one.reason}", f"      {one.step.directory}"]
    done = Counter(one.step.kind for one in status if one.record is not None)
    if done:
        lines += ["", "up to date: " + ", ".join(f"{number} {kind}" for kind, number in done.items())]
    lines += ["", f"{several(len(todo), 'step')} to run, {len(status) - len(todo)} up to date"]
    if jobs:
        lines += _job_lines(graph, [one.step for one in todo])
    for what, tasks in (read or {}).items():
        if shown := example_lines(tasks):
            lines += ["", f"read by the {what}:", *shown[1:]]
    return "\n".join(lines)


def _job_lines(graph: RunGraph, todo: Sequence[Step]) -> list[str]:
    """What the jobs of the steps to run ask for, kind by kind, and what they would without sharing."""
    alone = Counter(step.kind for _, steps in graph.cells for step in steps.values())
    rows, total = [], 0.0
    for kind, count in Counter(step.kind for step in todo).items():
        asked, launched = graph.run.resources_of(kind), kind in LAUNCHED
        num_gpus = (asked.gpus or 0) * (asked.nodes if launched else 1)
        hours = count * num_gpus * asked.hours
        total += hours
        where = ", ".join(filter(None, (asked.partition, asked.account, asked.constraint)))
        rows.append([kind, count, alone[kind] or count, num_gpus, f"{asked.hours:g}", f"{hours:,.0f}", where])
    head = ("kind", "jobs", "without sharing", "GPUs each", "hours at most", "GPU hours at most", "where")
    table = to_text(Table("jobs", "Jobs", tuple(head), tuple(tuple(map(str, row)) for row in rows)))
    return ["", table, f"{several(len(todo), 'job')}, {total:,.0f} GPU hours at most"]


def render_run(summary: Summary, files: Sequence[Path]) -> str:
    lines = [to_text(table) for table in short_tables(summary)]
    lines += [*(f"- {sentence}" for sentence in sentences(summary)), "", *map(str, files)]
    return "\n".join(lines)


@dataclass
class _AtWork:
    """A step that runs: its bar, and the task that it reports, or what it said of itself."""

    label: str
    bar: Any = None
    at: Counted | str | None = None
    begun: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        now = self.at.text if isinstance(self.at, Counted) else self.at or f"at work, {passed(self.begun)}"
        return f"{self.label}: {now}"


class Display:
    """On a terminal bars: one for the run, one below it for each step at work. Elsewhere lines: one when a step begins
    and ends, and one for each at work every few seconds."""

    def __init__(self, every: float = EVERY) -> None:
        from trace_transfer.terminal import console

        self.console, self.every = console(stderr=True), every
        self.progress: Any = None
        self.run: Any = None
        self.at_work: dict[str, _AtWork] = {}
        self.num_done = self.num_steps = 0
        self.told = time.monotonic()

    @contextmanager
    def running(self, num_steps: int, num_before: int) -> Iterator[None]:
        """While steps are run; `num_before` were up to date."""
        self.num_done, self.num_steps = 0, num_steps
        said = f"{num_before} were up to date" if num_before else ""
        if not num_steps or not shows_bars(self.console):
            if num_steps:
                self.note(f"{several(num_steps, 'step')} to run" + (f", {said}" if said else ""))
            yield
            return
        with bars(self.console) as self.progress:
            self.run = self.progress.add_task("steps", total=num_steps, status=said)
            yield

    def begin(self, address: str, label: str) -> None:
        self.at_work[address] = step = _AtWork(label)
        if self.progress is not None:
            step.bar = self.progress.add_task(f"  {label}", total=None, status="")
        else:
            self.note(f"{label}: begins")

    def show(self, address: str, what: str, told: Any) -> None:
        """What a step reports: a "note", or where it is "at": a task, a line of other processes, or None."""
        step = self.at_work[address]
        if what == "note":
            self.note(f"{step.label}: {told}")
            return
        step.at = told
        if self.progress is not None and isinstance(told, Counted):
            status = ", ".join(filter(None, (told.description, told.status)))
            self.progress.update(step.bar, total=told.total, completed=told.done, status=status)
        elif self.progress is not None:
            self.progress.update(step.bar, status=told or "")

    def look(self) -> None:
        """Say what goes on, if that was not said for a while; called again and again."""
        if self.progress is None and time.monotonic() - self.told >= self.every:
            self.told = time.monotonic()
            for step in self.at_work.values():
                self.note(step.text)

    def end(self, address: str, well: bool) -> None:
        step = self.at_work.pop(address)
        self.num_done += well
        if self.progress is not None:
            self.progress.remove_task(step.bar)
            self.progress.update(self.run, completed=self.num_done)
        if well:
            self.note(f"{step.label}: done, {passed(step.begun)} ({self.num_done} of {self.num_steps} steps)")

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
