"""Running what is not up to date: in order, several at a time where that is wanted, each step in its own process. What
can be refused is refused before the first one: data, models, evaluations and settings of the whole run.

Writes below the run's directory: `run.json` and `steps/KIND-ADDRESS/`. Killed anywhere, the same call goes on: finished
steps stay, and those that were begun go on from their last checkpoint.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

from trace_transfer.data.encoding import encode_tasks
from trace_transfer.data.examples import TaskData
from trace_transfer.errors import TraceTransferError, UserError, listing
from trace_transfer.evaluation.evaluating import plan_evaluation
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.families.model_handle import OpenModel, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.files import held, prepare_directory, remove_leftovers, write_text
from trace_transfer.identification.scoring import check_settings
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.launching import excess_of, num_cores, num_gpus, place_among_ranks
from trace_transfer.models.running import resolve_device
from trace_transfer.records import library_versions, read_artefact, to_json
from trace_transfer.reporting.finished_run import read_run
from trace_transfer.reporting.numbers import several
from trace_transfer.reporting.records import CellRecord, MethodRecord, RunFile, StepFile, Summary, Tuning
from trace_transfer.reporting.report import write_pages
from trace_transfer.reporting.summarising import summarise
from trace_transfer.reporting.summary_tables import tables
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.stopping import StopRequested, StopSignal, interruption_held_back
from trace_transfer.study.graph import RunGraph, build_graph, plain
from trace_transfer.study.show import Display
from trace_transfer.study.status import LOG, RECORD, StepStatus, read_status
from trace_transfer.study.steps import Step
from trace_transfer.study.worker import ENDS, VISIBLE, Share, clear, context, work
from trace_transfer.tables import to_csv

RUN, SUMMARY, TABLES = "run.json", "summary.json", "tables"
LARGE = ("*.patch.safetensors", "*.adapter")  # what `keep:` lets go of, once it has been scored
LOOK_EVERY = 0.25  # s


def excess_here(graph: RunGraph) -> str | None:
    """What more a step wants than this machine has room for."""
    run, here = graph.run, bool(num_gpus())
    for kind in dict.fromkeys(step.kind for step in graph.steps):
        wanted = run.gpus_of(kind) if here else run.processes_of(kind, gpus=False)
        if wanted > 1 and (excess := excess_of(wanted)):
            where = "processes" if run.resources_of(kind).gpus is None else f"resources.{kind}"
            return f"{where}: {wanted}: {excess}"
    return None


def check_plan(graph: RunGraph, *, elsewhere: bool = False) -> dict[str, tuple[TaskData, ...]]:
    """Open both models, encode all tasks for each, read the evaluations' data; no weights.

    Returns `source` or `target` → the tasks as its model reads them. A UserError names everything that any step would
    refuse for its data or settings; with `elsewhere`, the plan may be for a machine that has what this one lacks."""
    run, problems, models = graph.run, dict[str, None](), dict[str, OpenModel]()
    if graph.waiting:  # all that comes after the tuning is looked at now
        graph = build_graph(replace(run, tuning=None))

    @contextmanager
    def noting(where: str = "") -> Iterator[None]:
        try:
            yield
        except UserError as error:
            problems[where + str(error)] = None

    registry = load_families([Path(path) for path in run.rules])
    for what, name in (("source", run.source), ("target", run.target)):
        with noting(f"{what}: "):
            if name is not None:
                models[what] = open_model(name, registry)
    specs, read = [task.spec for task in run.tasks], dict[str, tuple[TaskData, ...]]()
    readings: dict[tuple[str, int, str], int] = {}  # which model reads the tasks in which way: with the first seed
    devices: dict[tuple[str, str], None] = {}  # where the steps compute, by the sections that say so
    for cell, steps in graph.cells:
        train, start = cell.train, cell.identify.warm_start
        readings.setdefault(("target", train.max_length, train.too_long), train.train.seed)
        found_on = [(cell.method.needs, cell.identify.score)] if cell.method.needs != "none" else []
        found_on += [("target", IdentifySettings.of(**cell.refine).score)] if cell.method.refine else []
        for what, score in found_on:
            readings.setdefault((what, start.max_length, start.too_long), start.train.seed)
            with noting(f"{cell.method.name}: "):
                check_settings(score, run.task_names, start.replicates)
            if score.needs_fisher or score.at_base:
                devices["identify", cell.identify.compute.device] = None
        if "match" in steps:
            devices["map", cell.map.device] = None
    if graph.represent is not None:
        devices["represent", RepresentSettings(**run.sections["represent"]).device] = None
    for (what, max_length, too_long), seed in readings.items():
        with noting(f"tasks, for the {what}: "):
            if what in models:
                read.setdefault(what, encode_tasks(models[what], specs, run.directory, max_length, too_long, seed))
    with noting():  # of the evaluation's device, too
        if "target" in models:
            plan_evaluation(run.target, run.suite, EvaluateSettings.of(**run.sections["evaluate"]))
    if not elsewhere:
        problems |= dict.fromkeys(filter(None, [excess_here(graph)]))
        for section, device in devices:
            with noting(f"{section}: "):
                resolve_device(device)
    if problems:
        raise UserError(f"{run.file}: cannot be run:\n" + listing(list(problems)))
    return read


class Scheduler(ABC):
    """Follows every step to its end. Who does them is for those that are made of it: `Here`, and `cluster.Slurm`."""

    going_on = "stopped by SIGTERM with {steps} to do; the same command goes on"

    def __init__(
        self, graph: RunGraph, status: Sequence[StepStatus], out: Path, display: Display, stop: StopSignal
    ) -> None:
        self.graph, self.out, self.display, self.stop = graph, out, display, stop
        for one in status:
            if one.stale:
                clear(out / one.step.directory)
        self.waiting = [one.step for one in status if one.record is None]
        self.finished = {one.step.address for one in status if one.record is not None}
        self.running: list[Any] = []
        self.failed: list[tuple[str, str, str]] = []

    @classmethod
    def require(cls) -> None:
        """Refuse a machine from which it cannot be done."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Begin with what can be begun: from `waiting` to `running`."""

    @abstractmethod
    def listen(self) -> None:
        """Show how far the steps are, and see who is done; waits a little."""

    @abstractmethod
    def hand_on(self) -> None:
        """Tell the steps at work that they are to stop."""

    @abstractmethod
    def leave(self) -> None:
        """Whatever came: nobody looks any more at what is still at work."""

    def run(self) -> None:
        """Until nothing waits; raises as `run_graph`."""
        # So that what is finished can be reported.
        write_text(prepare_directory(self.out) / RUN, to_json(_run_record(self.graph)))
        for step in self.graph.steps:  # a run that was killed may have had no time for it
            if step.address in self.finished:
                self._let_go(step)
        with self.display.running(len(self.waiting), len(self.finished)):
            try:
                while self.waiting or self.running:
                    self.start()
                    self.listen()
                    self.display.look()
                    if self.stop.requested:
                        self.hand_on()
                    if (self.stop.requested or self.failed) and not self.running:
                        break
            finally:
                self.leave()
        if self.failed:
            text = "\n".join(f"{label}: {message}" for label, _, message in self.failed)
            raise (UserError if all(how == "user error" for _, how, _ in self.failed) else TraceTransferError)(text)
        if self.waiting:
            raise StopRequested(self.going_on.format(steps=several(len(self.waiting), "step")))

    def done(self, step: Step) -> None:
        self.finished.add(step.address)
        for one in (step, *step.needs.values()):
            self._let_go(one)

    def _let_go(self, step: Step) -> None:
        """Remove a step's large files once all that read them are finished, and say so in its record."""
        users = self.graph.dependants(step)
        if step.keeps or not users or any(user.address not in self.finished for user in users):
            return
        directory = self.out / step.directory
        record: StepFile = read_artefact(directory / RECORD, StepFile)
        places = [place for pattern in LARGE for place in directory.glob(pattern)]
        names = [name for name in record.files if any((directory / name).is_relative_to(place) for place in places)]
        removed = tuple(sorted({*record.removed, *names}))
        if removed == record.removed:
            return
        write_text(directory / RECORD, to_json(record.model_copy(update={"removed": removed})))
        for place in places:
            shutil.rmtree(place) if place.is_dir() else place.unlink()


@dataclass
class _Running:
    """A step that a process works on."""

    step: Step
    process: Any
    events: Any
    gpus: tuple[str, ...] | None
    ended: tuple[str, str] = ("", "")
    told: bool = False  # to stop: once, as a second signal may find it after it has saved, and kill it


class Here(Scheduler):
    """Steps on this machine, as many at a time as the run says, each begun once all that it needs is finished."""

    running: list[_Running]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.jobs, self.gpus = self.graph.run.jobs, visible_gpus() if self.waiting else ()
        self.shared = self.jobs > 1 or bool(self.graph.run.resources)
        self.context = context() if self.waiting else None

    def start(self) -> None:
        if self.stop.requested or self.failed:
            return
        for step in list(self.waiting):
            if len(self.running) >= self.jobs:
                return
            if all(needed.address in self.finished for needed in step.needs.values()):
                taken = [gpu for one in self.running for gpu in one.gpus or ()]
                free = [gpu for gpu in self.gpus if gpu not in taken]
                count = self.graph.run.gpus_of(step.kind) if self.gpus else 0
                if self.shared and count > len(free):
                    return  # those behind it wait, too, so that many small ones do not keep it from ever beginning
                self.waiting.remove(step)
                with interruption_held_back():
                    self.running.append(self._begin(step, tuple(free[:count]) if self.shared else None))
                self.display.begin(step.address, self.graph.label(step))

    def _begin(self, step: Step, gpus: tuple[str, ...] | None) -> _Running:
        processes = self.graph.run.processes_of(step.kind, gpus=bool(self.gpus))
        threads = max(1, num_cores() // (self.jobs * processes)) if self.jobs > 1 else None
        assert self.context is not None  # there was something to do
        receiving, sending = self.context.Pipe(duplex=False)
        share = Share(processes, threads=threads, gpus=gpus)
        process = self.context.Process(target=work, args=(step.ticket(self.out), share, sending))
        process.start()
        sending.close()
        return _Running(step, process, receiving, gpus)

    def listen(self) -> None:
        by_events = {one.events: one for one in self.running}
        for ready in connection.wait(list(by_events), LOOK_EVERY):
            one = by_events[ready]
            try:
                event = one.events.recv()
            except (EOFError, OSError):  # OSError where it was killed while it sent something
                one.process.join()
                one.events.close()
                self.running.remove(one)
                self._ended(one)
                continue
            if event[0] in ENDS:
                one.ended = event
            else:
                self.display.show(one.step.address, *event)

    def _ended(self, one: _Running) -> None:
        how, message = one.ended
        self.display.end(one.step.address, how == "done")
        if how == "done":
            self.done(one.step)
        elif how == "stopped" or (not how and self.stop.requested and one.process.exitcode == -signal.SIGTERM):
            self.waiting.append(one.step)  # perhaps before it could note the signal, or after it had saved
        elif how == "interrupted":
            raise KeyboardInterrupt
        else:
            log = self.out / one.step.directory / LOG
            killed = f"its process ended with exit code {one.process.exitcode} (out of memory, or killed)"
            self.failed.append((self.graph.label(one.step), how, message or f"{killed}; {log} says more"))

    def hand_on(self) -> None:
        untold = [one for one in self.running if one.process.is_alive() and not one.told]
        for one in untold:
            one.told = True
            with suppress(ProcessLookupError):
                os.kill(one.process.pid, signal.SIGTERM)
        if untold:
            labels = ", ".join(self.graph.label(one.step) for one in untold)
            self.display.note(f"SIGTERM: stops once these have saved or finished what they do: {labels}")
        time.sleep(LOOK_EVERY)

    def leave(self) -> None:
        for one in self.running:
            one.process.kill()
            one.process.join()


def visible_gpus() -> tuple[str, ...]:
    """The names by which a process may ask for each GPU that this one sees."""
    count, named = num_gpus(), os.environ.get(VISIBLE)
    if named is None:
        return tuple(map(str, range(count)))
    return tuple(name.strip() for name in named.split(","))[:count]  # CUDA stops at the first that is none


class Finished(NamedTuple):
    """A run that is done: `run.json`, its numbers, and the files for people."""

    record: RunFile
    summary: Summary
    files: tuple[Path, ...]


def run_to_the_end(
    graph: RunGraph, status: Sequence[StepStatus], display: Display, stop: StopSignal,
    scheduler: type[Scheduler] = Here,
) -> Finished:  # fmt: skip
    """Check everything if anything is to be run, run it, and write what it says; raises as `run_graph`."""
    if (place := place_among_ranks()).size > 1:
        raise UserError(
            f"a launcher started {place.size} processes of this run, and a run starts its own; start one without it, "
            f"and say processes: {place.size} in {graph.run.file}"
        )
    scheduler.require()
    out = graph.run.out
    if any(one.record is None for one in status):
        check_plan(graph, elsewhere=scheduler is not Here)
    with held(out):
        record = run_graph(graph, status, out, display, stop, scheduler)
        run = read_run(out)
        summary = summarise(run)
        directory = prepare_directory(out / TABLES)
        for number, table in enumerate(tables(summary), start=1):
            name = "".join(c if c.isalnum() else "-" for c in table.title.lower()).strip("-")
            write_text(directory / f"{number:02d}-{name}.csv", to_csv(table))
        write_text(out / SUMMARY, to_json(summary))
        return Finished(record, summary, (*write_pages(run, summary, out), out / SUMMARY))


def run_graph(
    graph: RunGraph, status: Sequence[StepStatus], out: Path, display: Display, stop: StopSignal,
    scheduler: type[Scheduler] = Here,
) -> RunFile:  # fmt: skip
    """Run what is to be run, and write `run.json`, in a directory that is held.

    Raises:
        StopRequested: SIGTERM came, and all steps at work have saved what they had.
        UserError, TraceTransferError: the directory holds another run's results; a step failed, told with its cells,
            and those beside it were finished first.
    """
    if (out / RUN).is_file() and (before := read_artefact(out / RUN, RunFile).name) != graph.run.name:
        raise UserError(
            f"{out}: holds the results of another run, '{before}', and this one is '{graph.run.name}': two outputs in "
            "one place; name another --out, or give this run that name if it is the same"
        )
    remove_leftovers(out)
    scheduler(graph, status, out, display, stop).run()
    while graph.waiting:  # for learning rates, which what was just finished decides
        graph = build_graph(graph.run)
        scheduler(graph, read_status(graph, out), out, display, stop).run()
    record = _run_record(graph).model_copy(update={"machine": machine()})  # which asks for GPUs, that steps may need
    write_text(out / RUN, to_json(record))
    return record


def _run_record(graph: RunGraph) -> RunFile:
    run = graph.run
    cells = [
        CellRecord(
            method=cell.method.name, seed=cell.seed, axis=cell.axis, value=cell.value, draw=cell.draw, order=cell.order,
            steps={name: step.directory for name, step in steps.items()},
        )
        for cell, steps in graph.cells
    ]  # fmt: skip
    methods = [MethodRecord(name=m.name, title=m.title, what=m.what, needs=m.needs) for m in run.methods]
    settings: dict[str, Any] = {section: dict(values) for section, values in run.sections.items() if values}
    if settings.get("map", {}).get("probe"):
        settings["map"]["probe"] = run.shown(settings["map"]["probe"])
    settings |= {"seeds": list(run.seeds), "orders": run.orders, "file": run.file.name}
    # From the run's directory, so that both may be moved together; the report makes commands of it.
    settings["run_file"] = os.path.relpath(run.directory.resolve() / run.file.name, run.out.resolve())
    if graph.represent is not None:
        settings["represent_step"] = graph.represent.directory
    tuning = run.tuning and Tuning(seeds=run.tuning.seeds, rates=dict(run.tuning.of), chosen=dict(graph.chosen))
    return RunFile(
        name=run.name, settings=plain(settings), source=run.shown(run.source), target=run.shown(run.target),
        tasks=run.task_names, of_task=run.of_task, methods=tuple(methods), reference=run.reference, cells=tuple(cells),
        tuning=tuning, comparisons=run.comparisons, libraries=library_versions(),
    )  # fmt: skip


def machine() -> dict[str, str]:
    """What a reader of times needs to know."""
    found = {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()}
    found["cores"] = str(os.cpu_count())
    with suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        found["processor"] = names[0].partition(":")[2].strip() if names else platform.processor()
    import torch

    if torch.cuda.is_available():
        found["gpu"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return found
