"""`identify`: from a base model and task data to one core file per task; `warm-start` and `score` are its two halves.

Writes into one directory: `warm_start/TASK/` (the deltas), `deltas.json`, `fisher/TASK/`, `TASK.core.json`,
`importance.html`, `importance.png` and, with replicates, `stability.json`. Each is written whole, and what is there
already is not made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile, write_core
from trace_transfer.core_sets.selection import core_path
from trace_transfer.data.encoding import read_tasks
from trace_transfer.data.examples import TaskData
from trace_transfer.errors import UserError, listing
from trace_transfer.families.anatomy import Split, splits_of, transposed_names
from trace_transfer.families.model_handle import OpenModel, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.figures import write_figure
from trace_transfer.files import held, refuse_inputs, remove_leftovers, write_text
from trace_transfer.identification import scoring, warm_starting
from trace_transfer.identification.at_base import at_base
from trace_transfer.identification.deltas import DELTAS, DeltaPlan, DeltaStore, deltas_of, plan_deltas
from trace_transfer.identification.draw import figure
from trace_transfer.identification.fisher import fisher_file, fisher_of
from trace_transfer.identification.records import StabilityFile, beside
from trace_transfer.identification.scores import ScoreSettings
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.launching import is_first_rank
from trace_transfer.models.running import resolve_device
from trace_transfer.models.sources import build_meta_model
from trace_transfer.progress import Reporter
from trace_transfer.records import to_json

STABILITY = "stability.json"


@dataclass(frozen=True)
class Identified:
    cores: tuple[CoreFile, ...]
    stability: StabilityFile | None
    warnings: tuple[str, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class IdentifyPlan:
    """All that can be known, and refused, before anything is trained."""

    base: OpenModel
    tasks: tuple[TaskData, ...]
    tuned: Mapping[str, OpenModel]
    warm_starts: warm_starting.WarmStartPlan
    settings: IdentifySettings
    out: Path
    with_scores: bool


def plan_identify(
    base: str | Path, tasks: str | Path, *, tuned: Mapping[str, str | Path], settings: IdentifySettings,
    rules: Sequence[str], out: str | Path, with_scores: bool = True,
) -> IdentifyPlan:  # fmt: skip
    """Open the models, read and encode all tasks, look what is finished; trains nothing and writes nothing.
    Tasks in `tuned` need no warm start; `warm-start` alone (not `with_scores`) needs no more than the training."""
    opened, models = _open(base, tuned, rules, out)
    start, score = settings.warm_start, settings.score
    data = read_tasks(opened, tasks, start.max_length, start.too_long, start.train.seed)
    names = [task.task for task in data]
    if unknown := [task for task in tuned if task not in names]:
        raise UserError(f"{tasks}: lacks tasks that --tuned names: {', '.join(unknown)} (it has {', '.join(names)})")
    at_base = with_scores and score.at_base
    if at_base and tuned:
        raise UserError(f"{score.method} is taken at the base: leave --tuned out ({', '.join(tuned)})")
    if with_scores:
        _check(settings, names, 1 if models else start.replicates)
        scoring.Known.of(score, names, opened.identity)  # refuses what does not fit
    if models:
        plan_deltas(opened, models)  # refuses what does not fit before anything is trained
    untrained = [] if at_base else [task for task in data if task.task not in tuned]
    starts = warm_starting.plan_warm_starts(opened, untrained, start, Path(out))
    return IdentifyPlan(opened, data, models, starts, settings, Path(out), with_scores)


def _open(
    base: str | Path, tuned: Mapping[str, str | Path], rules: Sequence[str], out: str | Path
) -> tuple[OpenModel, dict[str, OpenModel]]:
    refuse_inputs([Path(out)], [base, *tuned.values()])
    registry = load_families([Path(path) for path in rules])
    return open_model(base, registry), {task: open_model(name, registry) for task, name in tuned.items()}


def _check(settings: IdentifySettings, tasks: Sequence[str], num_replicates: int) -> None:
    scoring.check_settings(settings.score, tasks, num_replicates)
    if settings.score.needs_fisher or settings.score.at_base:
        resolve_device(settings.compute.device)


def run_warm_starts_of(plan: IdentifyPlan, reporter: Reporter) -> tuple[DeltaStore, ...]:
    with held(plan.out, shared=True):
        return warm_starting.run_warm_starts(plan.warm_starts, reporter)


def run_identify(plan: IdentifyPlan, reporter: Reporter) -> Identified | None:
    """Carry the plan out. Under a launcher all processes take part in the warm starts, and the first goes on alone: the
    others get None. After an error what was finished stays, and the same command goes on."""
    settings, seed = plan.settings, plan.settings.warm_start.train.seed
    with held(plan.out, shared=True):
        stores = warm_starting.run_warm_starts(plan.warm_starts, reporter)  # of scores at the base there are none
        if not is_first_rank():
            return None
        if settings.score.at_base:
            inputs = at_base(plan.base, plan.tasks, settings, _splits(plan.base, settings.score) or {}, reporter)
        else:
            data = {start.label: start.data for start in plan.warm_starts.starts}
            data |= {task.task: task for task in plan.tasks if task.task in plan.tuned}
            deltas = plan_deltas(plan.base, plan.tuned, stores)
            inputs = score_inputs(deltas, data, settings, seed, plan.out, reporter)
        return write_core_sets(inputs, settings.score, plan.out)


def run_score(
    base: str | Path, *, tuned: Mapping[str, str | Path], tasks: str | Path | None, settings: IdentifySettings,
    rules: Sequence[str], out: str | Path, reporter: Reporter,
) -> Identified:  # fmt: skip
    """The second half: score the warm starts in `out`, or tuned models. Methods with Fisher information need `tasks`,
    which are read for tuned models as the settings' warm start says; warm starts have recorded how theirs were."""
    method, start, seed = settings.score.method, settings.warm_start, settings.warm_start.train.seed
    if tasks is None and (settings.score.at_base or settings.score.needs_fisher):
        other = ", or --method l2 or cs" if method == "lf" else ""
        raise UserError(f"{method} needs each task's examples: give --tasks tasks.yaml{other}")
    if settings.score.at_base:
        assert tasks is not None
        found = run_identify(plan_identify(base, tasks, tuned=tuned, settings=settings, rules=rules, out=out), reporter)
        assert found is not None  # `score` has one process
        return found
    opened, models = _open(base, tuned, rules, out)
    stores = () if models else warm_starting.finished_stores(Path(out))
    plan = plan_deltas(opened, models, stores)
    names = list(dict.fromkeys(source.tuned.task for source in plan.sources))
    _check(settings, names, max(source.tuned.replicate or 1 for source in plan.sources))
    data: Mapping[str, TaskData] = {}
    if settings.score.needs_fisher:
        assert tasks is not None
        if stores:
            data = warm_starting.data_of_stores(opened, stores, tasks)
        else:
            data = {one.task: one for one in read_tasks(opened, tasks, start.max_length, start.too_long, seed)}
        if missing := [source.tuned.label for source in plan.sources if source.tuned.label not in data]:
            raise UserError(f"{tasks}: lacks tasks to be scored:\n" + listing(missing))
    seed = int(stores[0].record.settings.get("seed", seed)) if stores else seed
    with held(out) as directory:
        return write_core_sets(score_inputs(plan, data, settings, seed, directory, reporter), settings.score, directory)


def score_inputs(
    plan: DeltaPlan, data: Mapping[str, TaskData], settings: IdentifySettings, seed: int, out: Path, reporter: Reporter
) -> scoring.ScoreInputs:
    """Read deltas and, if the method needs it, Fisher information of their `data` (by label: `math`, `math/1`); what
    lies in `out` already is taken as it is."""
    fisher, splits = None, _splits(plan.base, settings.score)
    deltas = deltas_of(plan, splits, out, reporter)
    files = [out / DELTAS, *([beside(out / DELTAS)] if splits is not None else [])]
    if settings.score.needs_fisher:
        fisher = [
            fisher_of(plan, one, data[one.tuned.label], settings, seed, splits, out, reporter) for one in plan.sources
        ]
        files += [fisher_file(out, source) for source in plan.sources]
    epochs = {
        source.weights.record.settings.get("epochs") if isinstance(source.weights, DeltaStore) else None
        for source in plan.sources
    }  # None of models that were tuned elsewhere
    made_with = {"epochs": epochs.pop() if len(epochs) == 1 else None, "seed": seed}
    return scoring.gather(plan.base, deltas, fisher, splits, made_with, files)


def _splits(base: OpenModel, score: ScoreSettings) -> dict[str, Split] | None:
    if score.unit != "rows":
        return None
    return splits_of(base.anatomy, base.config, transposed_names(build_meta_model(base.config)).__contains__)


def write_core_sets(inputs: scoring.ScoreInputs, settings: ScoreSettings, out: Path) -> Identified:
    remove_leftovers(out)
    files, cores, report = list(inputs.files), scoring.core_files(inputs, settings), None
    for core in cores:
        files += write_core(core_path(out, core), core)
    if inputs.num_replicates == 2:
        report = scoring.stability(inputs, settings)
        files.append(out / STABILITY)
        write_text(files[-1], to_json(report))
    files += write_figure(out / "importance", figure(cores))
    return Identified(cores, report, tuple(scoring.warnings_of(inputs, cores, settings)), tuple(files))
