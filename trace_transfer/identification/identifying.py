"""`identify`: from a base model and task data to one core file per task; `warm-start` and `score` are its two halves.

Reads: a base model, `tasks.yaml` and its data, or fine-tuned models. Writes into one directory: `warm_start/TASK/` (the
deltas), `deltas.json`, `fisher/TASK/`, `TASK.core.json`, `importance.html`, `importance.png` and, with replicates,
`stability.json`. Each is written whole, and what is there already is not made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trace_transfer.core_sets.core_file import CoreFile
from trace_transfer.data.examples import TaskData
from trace_transfer.errors import ArtefactError, UserError, listing
from trace_transfer.families.anatomy import Split, splits_of, transposed_names
from trace_transfer.families.model_handle import OpenModel, open_model
from trace_transfer.families.registry import load_families
from trace_transfer.files import refuse_inputs, remove_leftovers, write_tensors, write_text
from trace_transfer.identification.delta_store import DeltaStore
from trace_transfer.identification.differencing import DeltaPlan, Deltas, plan_deltas, read_deltas
from trace_transfer.identification.draw import importance_of, write_importance_html, write_importance_png
from trace_transfer.identification.records import DeltaFile, StabilityFile
from trace_transfer.identification.score_inputs import Evidence, Fisher, gather
from trace_transfer.identification.scoring import check_settings, core_files, stability, warnings_of
from trace_transfer.identification.scoring_settings import ScoreSettings
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.identification.task_data import data_of_stores, read_tasks
from trace_transfer.identification.task_fisher import plan_readings, read_fisher
from trace_transfer.identification.warm_starting import (
    WarmStartPlan,
    finished_stores,
    plan_warm_starts,
    run_warm_starts,
)
from trace_transfer.launching import is_first_rank
from trace_transfer.locking import held
from trace_transfer.models.running import resolve_device
from trace_transfer.models.sources import build_meta_model
from trace_transfer.progress import Reporter
from trace_transfer.records import read_artefact, to_json

DELTAS = "deltas.json"
DELTA_UNITS = "deltas.units.safetensors"
STABILITY = "stability.json"


@dataclass(frozen=True)
class Identified:
    """Core files of all tasks, their stability where it is known, what to be warned of, and the files written."""

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
    warm_starts: WarmStartPlan
    settings: IdentifySettings
    out: Path
    with_scores: bool


def plan_identify(
    base: str | Path,
    tasks: str | Path,
    *,
    tuned: Mapping[str, str | Path],
    settings: IdentifySettings,
    rules: Sequence[str],
    out: str | Path,
    with_scores: bool = True,
) -> IdentifyPlan:
    """Open the models, read and encode all tasks, look what is finished; trains nothing and writes nothing.

    Args:
        tuned: tasks that have been fine-tuned already, and so need no warm start.
        with_scores: False for `warm-start` alone, which needs no more than the training.

    Raises:
        UserError: whatever is wrong with them, or with the device; `out` is one of the models.
    """
    refuse_inputs([Path(out)], [base, *tuned.values()])
    registry = load_families([Path(path) for path in rules])
    opened = open_model(base, registry)
    models = {task: open_model(name, registry) for task, name in tuned.items()}
    warm_start = settings.warm_start
    data = read_tasks(opened, tasks, warm_start.max_length, warm_start.too_long, warm_start.train.seed)
    names = [task.task for task in data]
    if unknown := [task for task in tuned if task not in names]:
        raise UserError(f"{tasks}: lacks tasks that --tuned names: {', '.join(unknown)} (it has {', '.join(names)})")
    if with_scores:
        check_settings(settings.score, names, 1 if models else warm_start.replicates)
        _require_device(settings)
    if models:
        plan_deltas(opened, models)  # refuses what does not fit before anything is trained
    out = Path(out)
    to_start = [task for task in data if task.task not in tuned]
    return IdentifyPlan(
        opened, data, models, plan_warm_starts(opened, to_start, warm_start, out), settings, out, with_scores
    )


def _require_device(settings: IdentifySettings) -> None:
    """Hours before Fisher information is read there."""
    if settings.score.needs_fisher:
        resolve_device(settings.compute.device)


def require_space(plan: WarmStartPlan, out: Path) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UserError: less room than the deltas that are still to be written need.
    """
    width = 4 if plan.settings.delta_dtype == "float32" else 2
    missing = len(plan.starts) - len(plan.finished)
    needed = missing * width * plan.base.identity.num_elements
    free = shutil.disk_usage(out).free
    if free < needed:
        raise UserError(
            f"{out}: {free:,} bytes are free, but the deltas of {missing} warm starts need {needed:,}; make room, or "
            "name another --out" + (" (--delta-dtype bfloat16 needs half)" if width == 4 else "")
        )


def run_warm_starts_of(plan: IdentifyPlan, reporter: Reporter) -> tuple[DeltaStore, ...]:
    """The first half: `warm-start`."""
    with held(plan.out, shared=True):
        return _warm_starts(plan, reporter)


def _warm_starts(plan: IdentifyPlan, reporter: Reporter) -> tuple[DeltaStore, ...]:
    if plan.warm_starts.starts:
        require_space(plan.warm_starts, plan.out)
    return run_warm_starts(plan.warm_starts, reporter)


def run_identify(plan: IdentifyPlan, reporter: Reporter) -> Identified | None:
    """Carry the plan out. Under a launcher of several processes all take part in the warm starts, and the first goes
    on alone: the others get None.

    Raises:
        UserError: another process is at work there, a loss that is not finite, a full disk; what was finished stays,
            and the same command goes on.
    """
    with held(plan.out, shared=True):
        stores = _warm_starts(plan, reporter)
        if not is_first_rank():
            return None
        data = {start.label: start.data for start in plan.warm_starts.starts}
        data |= {task.task: task for task in plan.tasks if task.task in plan.tuned}
        deltas = plan_deltas(plan.base, plan.tuned, stores)
        return _score(deltas, data, plan.settings, plan.settings.warm_start.train.seed, plan.out, reporter)


def run_score(
    base: str | Path,
    *,
    tuned: Mapping[str, str | Path],
    tasks: str | Path | None,
    settings: IdentifySettings,
    rules: Sequence[str],
    out: str | Path,
    reporter: Reporter,
) -> Identified:
    """The second half: score the warm starts in `out`, or fine-tuned models.

    Args:
        tasks: `tasks.yaml`, needed by methods with Fisher information.
        settings: those of its warm start say how fine-tuned models' tasks are read; warm starts know it of themselves.

    Raises:
        UserError: models that do not fit together, tasks missing, a single task with `cs`, an output that cannot be
            written or is one of the models, a device that is not to be had.
    """
    refuse_inputs([Path(out)], [base, *tuned.values()])
    registry = load_families([Path(path) for path in rules])
    opened = open_model(base, registry)
    models = {task: open_model(name, registry) for task, name in tuned.items()}
    out = Path(out)
    stores = () if models else finished_stores(out)
    plan = plan_deltas(opened, models, stores)
    names = list(dict.fromkeys(source.tuned.task for source in plan.sources))
    num_replicates = max((source.tuned.replicate or 1 for source in plan.sources), default=1)
    score, reading = settings.score, settings.warm_start
    check_settings(score, names, num_replicates)
    _require_device(settings)
    data, seed = None, reading.train.seed
    if score.needs_fisher:
        if tasks is None:
            raise UserError(
                f"{score.method} needs each task's examples for its Fisher information: give --tasks tasks.yaml"
                + (", or --method l2 or cs" if score.method == "lf" else "")
            )
        data = (
            data_of_stores(opened, stores, tasks)
            if stores
            else {task.task: task for task in read_tasks(opened, tasks, reading.max_length, reading.too_long, seed)}
        )
        if missing := [label for label in (s.tuned.label for s in plan.sources) if label not in data]:
            raise UserError(f"{tasks}: lacks tasks to be scored:\n" + listing(missing))
    seed = int(stores[0].record.settings.get("seed", seed)) if stores else seed
    with held(out):
        return _score(plan, data, settings, seed, out, reporter)


def _score(
    plan: DeltaPlan,
    data: Mapping[str, TaskData] | None,
    all_settings: IdentifySettings,
    seed: int,
    out: Path,
    reporter: Reporter,
) -> Identified:
    """From opened deltas to core files, all written."""
    remove_leftovers(out)
    found = collect(plan, data, all_settings, seed, out, reporter)
    return score_collected(plan, found, all_settings.score, seed, out)


@dataclass(frozen=True)
class Collected:
    """What scores are made of: deltas, Fisher information where it is needed, and the files in which they lie."""

    deltas: Deltas
    fisher: tuple[Fisher, ...] | None
    splits: Mapping[str, Split] | None
    files: tuple[Path, ...]


def collect(
    plan: DeltaPlan, data: Mapping[str, TaskData] | None, settings: IdentifySettings, seed: int, out: Path,
    reporter: Reporter,
) -> Collected:  # fmt: skip
    """Read deltas and, if the method needs it, Fisher information; what lies in `out` already is taken as it is."""
    score, fisher = settings.score, None
    splits = _splits(plan.base) if score.unit == "rows" else None
    deltas, files = _deltas(plan, splits, out, reporter)
    if score.needs_fisher:
        readings = plan_readings(plan, data or {}, score, seed, out)
        fisher = tuple(read_fisher(plan, one, score, splits, settings.compute, reporter) for one in readings)
        files += [reading.file for reading in readings]
    return Collected(deltas, fisher, splits, tuple(files))


def score_collected(plan: DeltaPlan, found: Collected, settings: ScoreSettings, seed: int, out: Path) -> Identified:
    """From what was collected to core files, stability and importance heatmaps, all written into `out`."""
    deltas, fisher, files = found.deltas, found.fisher, list(found.files)
    evidence = gather(plan.base.anatomy, deltas, fisher, found.splits)
    made_with = {"replicates": evidence.num_replicates, "epochs": _epochs(plan), "seed": seed}
    cores = core_files(evidence, settings, plan.base.identity, made_with)
    for core in cores:
        files.append(out / f"{core.task}.core.json")
        write_text(files[-1], to_json(core))
    report = None
    if evidence.num_replicates == 2:
        report = stability(evidence, _comparable(settings, evidence), plan.base.identity)
        files.append(out / STABILITY)
        write_text(files[-1], to_json(report))
    importance = importance_of(cores)
    for name, write in (("importance.html", write_importance_html), ("importance.png", write_importance_png)):
        files.append(out / name)
        write(files[-1], importance)
    warnings = warnings_of(deltas.file, evidence, cores, settings)
    fallen_back = sorted({name for one in fisher or () for name in one.file.fallback})
    if fallen_back:
        warnings.append(
            f"Fisher information of {len(fallen_back)} parameters was taken one example at a time, for want of a "
            f"batched form: {', '.join(fallen_back[:3])}{', …' if len(fallen_back) > 3 else ''}"
        )
    return Identified(cores, report, tuple(warnings), tuple(files))


def _splits(base: OpenModel) -> dict[str, Split]:
    return splits_of(base.anatomy, base.config, transposed_names(build_meta_model(base.config)).__contains__)


def _deltas(
    plan: DeltaPlan, splits: Mapping[str, Split] | None, out: Path, reporter: Reporter
) -> tuple[Deltas, list[Path]]:
    """Read the deltas, or take what an earlier run on the same weights found."""
    files = [out / DELTAS, *([out / DELTA_UNITS] if splits is not None else [])]
    known = _earlier_deltas(plan, splits is not None, out)
    if known is not None:
        reporter.note(f"{files[0]}: these deltas were compared before")
        return known, files
    deltas = read_deltas(plan, reporter, splits)
    if splits is not None:
        write_tensors(files[1], deltas.units, {"format": "trace-transfer/delta-units", "version": "1"})
    write_text(files[0], to_json(deltas.file))
    return deltas, files


def _earlier_deltas(plan: DeltaPlan, with_units: bool, out: Path) -> Deltas | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (out / DELTAS).is_file():
        return None
    try:
        found: DeltaFile = read_artefact(out / DELTAS, DeltaFile)
        units = load_file(out / DELTA_UNITS) if with_units else {}
    except (ArtefactError, OSError, SafetensorError):
        return None  # damaged, of an earlier version, or without units: read again
    theirs = (("", found.base_fingerprint), *((one.label, one.fingerprint) for one in found.tuned))
    return Deltas(found, units) if theirs == plan.fingerprints and (found.units or not with_units) else None


def _epochs(plan: DeltaPlan) -> int | None:
    """Length of the warm starts; None where any model was fine-tuned elsewhere."""
    found = {
        source.weights.record.settings.get("epochs") if isinstance(source.weights, DeltaStore) else None
        for source in plan.sources
    }
    return found.pop() if len(found) == 1 else None


def _comparable(settings: ScoreSettings, evidence: Evidence) -> list[ScoreSettings]:
    """The chosen method, and what other methods the same evidence allows: LF and CS beside each other tell most."""
    possible = [settings]
    if settings.method != "lf" and evidence.fisher_PN is not None:
        possible.append(settings.model_copy(update={"method": "lf"}))
    if settings.method != "cs" and len(evidence.tasks) > 1:
        possible.append(settings.model_copy(update={"method": "cs"}))
    if settings.method != "l2":
        possible.append(settings.model_copy(update={"method": "l2"}))
    return [one.model_copy(update={"cosine": "plain"}) for one in possible]
