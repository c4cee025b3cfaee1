"""What each kind of step does: from its ticket and the directories of the steps before it to the files in its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from trace_transfer.evaluation.evaluating import evaluate as evaluate_model
from trace_transfer.evaluation.evaluating import plan_evaluation
from trace_transfer.evaluation.records import EvaluationFile, ScoredStage, ScoreMatrix
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import Suite
from trace_transfer.families.model_handle import open_model
from trace_transfer.families.registry import load_families
from trace_transfer.files import write_text
from trace_transfer.identification import identifying
from trace_transfer.identification.deltas import plan_deltas
from trace_transfer.identification.scoring import ScoreInputs
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.identification.warm_starting import data_of_stores, finished_stores
from trace_transfer.models.sources import ModelSource
from trace_transfer.patch.model_state import ModelState
from trace_transfer.patch.patches import Patch
from trace_transfer.progress import Reporter, Silent
from trace_transfer.records import library_versions, read_artefact, to_json
from trace_transfer.represent.representing import plan_representation, run_representation
from trace_transfer.represent.settings import RepresentSettings
from trace_transfer.stopping import StopSignal
from trace_transfer.study.steps import Ticket
from trace_transfer.training.settings import StreamFile, StreamSettings
from trace_transfer.training.streaming import MODEL, RECORD, plan_stream, run_stream
from trace_transfer.transfer.mapping import carry_along, plan_map, run_map
from trace_transfer.transfer.settings import MapSettings

TASKS, SCORES, BASELINE = "tasks.yaml", "scores.json", "evaluation.json"
Kind = Callable[[Ticket, Reporter, StopSignal], None]


def prepare(ticket: Ticket) -> None:
    """Write the files that a step's stages read, before any process begins with it."""
    if ticket.kind not in ("warm-start", "evidence", "identify", "represent", "train"):
        return
    cores, items = ticket.before("cores") if ticket.kind == "train" and "cores" in ticket.needs else None, []
    for spec in ticket.arguments["tasks"]:
        item = {**spec, **({"core": str(cores / f"{spec['name']}.core.json")} if cores else {})}
        for key in ("data", "core"):  # relative to the file, so that the run's directory can be moved with its data
            if Path(str(item.get(key, ""))).is_absolute():
                item[key] = os.path.relpath(item[key], ticket.directory.resolve())
        items.append(item)
    write_text(ticket.directory / TASKS, yaml.safe_dump({"tasks": items}, sort_keys=False, allow_unicode=True))


def warm_start(ticket: Ticket, reporter: Reporter, stop: StopSignal) -> None:
    """Fine-tune a model for an epoch on one task, and keep what changed."""
    identifying.run_warm_starts_of(_identify_plan(ticket, with_scores=False), reporter)


def evidence(ticket: Ticket, reporter: Reporter, stop: StopSignal) -> None:
    """Score inputs: norms, cosines and Fisher information of all tasks' warm starts."""
    _score_inputs(ticket, ticket.directory, reporter)


def identify(ticket: Ticket, reporter: Reporter, stop: StopSignal) -> None:
    """Core sets of the score inputs, or of scores at the base."""
    if "evidence" not in ticket.needs:
        found = identifying.run_identify(_identify_plan(ticket), reporter)
        assert found is not None  # one process does it
    else:
        settings, inputs = _score_inputs(ticket, ticket.before("evidence"), Silent())  # all is there: reads it
        found = identifying.write_core_sets(inputs, settings.score, ticket.directory)
    for warning in found.warnings:
        reporter.note(warning)


def match(ticket: Ticket, reporter: Reporter, stop: StopSignal) -> None:
    """The layer match of source and target."""
    settings = MapSettings.of(**{**ticket.given, "rules": ticket.rules, "cache": Path(ticket.cache)})
    plan = plan_map(ticket.arguments["source"], ticket.arguments["target"], (), settings)
    for warning in run_map(plan, ticket.directory, settings, reporter).match.warnings:
        reporter.note(warning)


def carry(ticket: Ticket, reporter: Reporter, stop: StopSignal) -> None:
    """Core sets of the source, carried along the layer match."""
    carry_along(
        ticket.arguments["source"], ticket.arguments["target"], ticket.before("match"),
        [ticket.before("identify") / f"{name}.core.json" for name in ticket.arguments["tasks"]],
        how=ticket.settings["carry"], ratio=ticket.settings["ratio"], rules=ticket.rules, out=ticket.directory,
    )  # fmt: skip


def train(ticket: Ticket, reporter: Reporter, stop: StopSignal) -> None:
    """The stream; its tuned model is made again of base and patches, and is kept only where that is wanted."""
    plan = plan_stream(
        ticket.arguments["model"], ticket.directory / TASKS, settings=StreamSettings.of(**ticket.given),
        rules=ticket.rules, out=ticket.directory,
    )  # fmt: skip
    done = run_stream(plan, reporter, stop)
    if done is not None and not ticket.arguments["keep_model"]:
        shutil.rmtree(ticket.directory / MODEL, ignore_errors=True)


def baseline(ticket: Ticket, reporter: Reporter, stop: StopSignal) -> None:
    """Scores of the base."""
    _score(ticket, ModelState(ModelSource.parse(ticket.arguments["model"])), ticket.directory, reporter)


def evaluate(ticket: Ticket, reporter: Reporter, stop: StopSignal) -> None:
    """Scores after each stage of a stream, beside those of the base."""
    before = ticket.before("train")
    stream: StreamFile = read_artefact(before / RECORD, StreamFile)
    base: EvaluationFile = read_artefact(ticket.before("baseline") / BASELINE, EvaluationFile)
    state = ModelState(ModelSource.parse(ticket.arguments["model"]))
    rows = [ScoredStage(label="base", learned=(), scores=base.scores)]
    for number, stage in enumerate(stream.stages, start=1):
        state = state.apply(Patch.open(before / stage.patch))
        found = _score(ticket, state, ticket.directory / f"{number}-{stage.label}", reporter)
        rows.append(ScoredStage(label=stage.label, learned=stage.tasks, scores=found.scores))
        stop.check(f"after scoring stage {number} of {len(stream.stages)}")
    matrix = ScoreMatrix(
        model=stream.model, base_fingerprint=stream.base_fingerprint, of_task=ticket.settings["of_task"],
        stages=tuple(rows), settings=base.settings, libraries=library_versions(),
    )  # fmt: skip
    write_text(ticket.directory / SCORES, to_json(matrix))


def represent(ticket: Ticket, reporter: Reporter, stop: StopSignal) -> None:
    """Embeddings of the base and of what methods made of it, side by side."""
    source = ModelSource.parse(ticket.arguments["model"])
    models = {"base": ModelState(source)}
    for name in ticket.needs:
        before = ticket.before(name)
        stages = read_artefact(before / RECORD, StreamFile).stages
        models[name] = ModelState(source, tuple(Patch.open(before / stage.patch) for stage in stages))
    settings = RepresentSettings(**{**ticket.given, "rules": ticket.rules})
    plan = plan_representation(models, ticket.directory / TASKS, settings)
    run_representation(plan, ticket.directory, reporter)


KINDS: Mapping[str, Kind] = {
    "warm-start": warm_start, "evidence": evidence, "identify": identify, "match": match, "map": carry, "train": train,
    "baseline": baseline, "evaluate": evaluate, "represent": represent,
}  # fmt: skip


def _identify_plan(ticket: Ticket, *, with_scores: bool = True) -> identifying.IdentifyPlan:
    carried = {name: ticket.before(name) for name in ("within", "prior") if name in ticket.needs}
    settings = IdentifySettings.of(**ticket.given | carried)
    return identifying.plan_identify(
        ticket.arguments["model"], ticket.directory / TASKS, tuned={}, settings=settings,
        rules=ticket.rules, out=ticket.directory, with_scores=with_scores,
    )  # fmt: skip


def _score_inputs(ticket: Ticket, place: Path, reporter: Reporter) -> tuple[IdentifySettings, ScoreInputs]:
    settings = IdentifySettings.of(**ticket.given)
    starts = [ticket.before(name) for name in ticket.needs if name.startswith("warm-start:")]
    stores = tuple(store for start in starts for store in finished_stores(start))
    opened = open_model(ticket.arguments["model"], load_families([Path(path) for path in ticket.rules]))
    plan = plan_deltas(opened, {}, stores)
    data = data_of_stores(plan.base, stores, ticket.directory / TASKS) if settings.score.needs_fisher else {}
    return settings, identifying.score_inputs(plan, data, settings, settings.warm_start.train.seed, place, reporter)


def _score(ticket: Ticket, state: ModelState, out: Path, reporter: Reporter) -> EvaluationFile:
    arguments = ticket.arguments
    suite = Suite.of(arguments["specs"], Path(arguments["directory"]), arguments["suite"])
    plan = plan_evaluation(state, suite, EvaluateSettings.of(**ticket.given))
    return evaluate_model(plan, out, reporter, replace=True)  # a step's own: of a training that was done anew
