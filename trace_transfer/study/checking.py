"""What can be refused before the first step is run: data, models, evaluations and settings of the whole run."""

from __future__ import annotations

import re
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
from trace_transfer.study.cells import Cell
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
    run, problems = graph.run, []
    if graph.waiting:  # all that comes after the tuning is looked at now
        graph = build_graph(replace(run, tuning=None))
    read: dict[str, tuple[TaskData, ...]] = {}
    registry = load_families([Path(path) for path in run.rules])
    models: dict[str, OpenModel] = {}
    for what, name in (("source", run.source), ("target", run.target)):
        try:
            if name is not None:
                models[what] = open_model(name, registry)
        except UserError as error:
            problems.append(f"{what}: {error}")
    checked = set()
    for cell, _ in graph.cells:
        for what, max_length, too_long, seed in _readings(cell):
            if what in models and (what, max_length, too_long) not in checked:
                checked.add((what, max_length, too_long))
                try:
                    specs = [task.spec for task in run.tasks]
                    data = encode_tasks(models[what], specs, run.directory, max_length, too_long, seed)
                    read.setdefault(what, data)
                except UserError as error:
                    problems.append(f"tasks, for the {what}: {error}")
        if cell.method.needs != "none":
            try:
                check_settings(cell.identify.score, run.task_names, cell.identify.warm_start.replicates)
            except UserError as error:
                problems.append(f"{cell.method.name}: {error}")
    if "target" in models:
        try:
            plan_evaluation(run.target, run.suite, EvaluateSettings.of(**run.sections["evaluate"]))
        except UserError as error:
            problems.append(str(error))
    if not elsewhere and (excess := excess_here(graph)):
        problems.append(excess)
    for section, device in () if elsewhere else _devices(graph):
        try:
            if run.jobs > 1 and re.fullmatch(r"cuda:[1-9]\d*", device):
                raise UserError(
                    f"device {device}: with jobs: {run.jobs} each step is given a GPU and sees no other: cuda"
                )
            resolve_device(device)
        except UserError as error:
            problems.append(f"{section}: {error}")
    if problems:
        raise UserError(f"{run.file}: cannot be run:\n" + listing(list(dict.fromkeys(problems))))
    return read


def _devices(graph: RunGraph) -> list[tuple[str, str]]:
    """Where the steps compute, by the sections that say so; an evaluation's device is looked at with the rest of it."""
    found = []
    for cell, steps in graph.cells:
        if "identify" in steps and (cell.identify.score.needs_fisher or cell.identify.score.at_base):
            found.append(("identify", cell.identify.compute.device))
        if "match" in steps:
            found.append(("map", cell.map.device))
    if graph.represent is not None:
        found.append(("represent", RepresentSettings(**graph.run.sections["represent"]).device))
    return list(dict.fromkeys(found))


def _readings(cell: Cell) -> list[tuple[str, int, str, int]]:
    """Which model reads the tasks in which way."""
    train = cell.train
    found: list[tuple[str, int, str, int]] = []
    found.append(("target", train.max_length, train.too_long, train.train.seed))
    if cell.method.needs != "none":
        start = cell.identify.warm_start
        found.append((cell.method.needs, start.max_length, start.too_long, start.train.seed))
    return found
