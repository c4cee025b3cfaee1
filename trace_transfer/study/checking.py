"""What can be refused before the first step is run: data, models, evaluations and settings of the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trace_transfer.data.encoding import encode_tasks
from trace_transfer.data.examples import TaskData
from trace_transfer.errors import UserError, listing
from trace_transfer.evaluation.evaluating import plan_evaluation
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.families.model_handle import OpenModel, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.identification.scoring import check_settings
from trace_transfer.launching import excess_of, num_gpus
from trace_transfer.models.running import resolve_device
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.study.graph import RunGraph, build_graph


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

    Args:
        elsewhere: the plan may be for another machine: what this one lacks is not refused.

    Returns:
        `source` or `target` → the tasks as its model reads them.

    Raises:
        UserError: everything that any step would refuse for its data or settings, at once.
    """
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
        train, start, score = cell.train, cell.identify.warm_start, cell.identify.score
        readings.setdefault(("target", train.max_length, train.too_long), train.train.seed)
        if cell.method.needs != "none":
            readings.setdefault((cell.method.needs, start.max_length, start.too_long), start.train.seed)
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
