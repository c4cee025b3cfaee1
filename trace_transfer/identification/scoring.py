"""From evidence to core sets: scores by a method of the registry, the top r, and what to be warned of.

Reads: `Evidence`. Gives: one `CoreFile` per task, the stability of core sets over replicates, warnings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from trace_transfer.core_sets.core_file import CoreFile, CoreParameter
from trace_transfer.core_sets.overlap import Reproducibility, counted, jaccard_by_chance, reproducibility
from trace_transfer.core_sets.selection import select, ties_at_the_cut
from trace_transfer.errors import UserError, listing
from trace_transfer.families.language import LAYER_COMPONENTS, OUTSIDE_COMPONENTS
from trace_transfer.identification.records import DeltaFile, MethodStability, StabilityFile, TaskStability
from trace_transfer.identification.saliency import METHODS, Options, Scores, Statistics
from trace_transfer.identification.score_inputs import Entry, Evidence
from trace_transfer.identification.scoring_settings import ScoreSettings
from trace_transfer.records import ModelIdentity, library_versions

BIAS = "bias"
MANY_UNCHANGED = 0.25
SMALL_SHARE = 0.1  # of the ratio, in elements: below it the core set is small tensors only
NOISY_ELEMENTS = 1000  # a cosine of fewer elements is mostly noise (its standard deviation is 1/√n)


def check_settings(settings: ScoreSettings, tasks: Sequence[str], num_replicates: int) -> None:
    """Refuse what cannot be computed from so many tasks and replicates, before anything is read.

    Raises:
        UserError: a single task with `cs`, corrected cosines without replicates, or an unknown component to exclude.
    """
    if settings.method == "cs" and len(tasks) < 2:
        raise UserError(f"cs compares tasks and needs at least two, found {len(tasks)}: {', '.join(tasks) or 'none'}")
    if settings.cosine == "corrected" and num_replicates < 2:
        raise UserError("cosine 'corrected' needs the reliability of two replicates of every task: --replicates 2")
    components = (*LAYER_COMPONENTS, *OUTSIDE_COMPONENTS)
    known = {*components, *(name.partition(".")[0] for name in components), BIAS}
    if unknown := [name for name in settings.exclude if name not in known]:
        raise UserError("exclude: no such components:\n" + listing(unknown) + f"\nthere are {', '.join(sorted(known))}")


def core_files(
    evidence: Evidence, settings: ScoreSettings, model: ModelIdentity, made_with: Mapping[str, Any]
) -> tuple[CoreFile, ...]:
    """One core file per task; entries that cannot be scored are listed without a score.

    Args:
        made_with: what else decided the scores, for the file: epochs, replicates, examples.
    """
    statistics = evidence.statistics()
    chosen = settings.recorded()
    method = {"name": chosen.pop("method"), **chosen, "tasks": list(evidence.tasks), **made_with}
    return tuple(
        CoreFile(
            task=task,
            model=model,
            method=method,
            parameters=_selected(evidence.entries, scores, settings),
            libraries=library_versions(),
        )
        for task, scores in zip(evidence.tasks, _all_scores(evidence, statistics, settings), strict=True)
    )


def _all_scores(evidence: Evidence, statistics: Statistics, settings: ScoreSettings) -> list[Scores]:
    """The scores of each task."""
    options = Options(**{f.name: getattr(settings, f.name) for f in fields(Options)})
    eligible_P = np.array([_takes_part(entry, settings) for entry in evidence.entries])
    method = METHODS[settings.method]
    return [method(statistics, index, options, eligible_P) for index in range(statistics.num_tasks)]


def _takes_part(entry: Entry, settings: ScoreSettings) -> bool:
    named = [
        any(part == name or part.startswith(f"{name}.") for name in settings.exclude)
        for part in entry.component.split("+")
    ]
    excluded = all(named) or (BIAS in settings.exclude and entry.name.endswith((f".{BIAS}", f"_{BIAS}")))
    return not excluded and entry.num_elements >= settings.min_elements


def _selected(entries: Sequence[Entry], scores: Scores, settings: ScoreSettings) -> tuple[CoreParameter, ...]:
    parameters = [
        CoreParameter.model_construct(  # not validated: rows make many, of what is checked already
            name=entry.name,
            shape=entry.shape,
            rows=entry.rows,
            columns=entry.columns,
            component=entry.component,
            layer=entry.layer,
            score=None if np.isnan(score) else float(score),
            terms=None if np.isnan(score) else scores.terms_of(index),
        )
        for index, (entry, score) in enumerate(zip(entries, scores.score_P, strict=True))
    ]
    return select(parameters, settings.ratio, settings.unit)


def stability(evidence: Evidence, settings: Sequence[ScoreSettings], model: ModelIdentity) -> StabilityFile:
    """How far core sets of one task agree between its two replicates, beside how far those of different tasks do.

    Each replicate's sets are made from that replicate of every task alone.
    """
    return StabilityFile(
        model=model,
        methods=tuple(_method_stability(evidence, chosen) for chosen in settings),
        reliability=dict(evidence.replicate_cosines()),
        libraries=library_versions(),
    )


def _method_stability(evidence: Evidence, settings: ScoreSettings) -> MethodStability:
    first, second = (
        [
            _core_set(_selected(evidence.entries, scores, settings))
            for scores in _all_scores(evidence, evidence.replicate(index), settings)
        ]
        for index in (0, 1)
    )
    sets = dict(zip(evidence.tasks, zip(first, second, strict=True), strict=True))
    sizes = reproducibility(sets)
    counts = reproducibility({task: (counted(one), counted(other)) for task, (one, other) in sets.items()})
    deciding = counts if settings.unit == "tensors" else sizes
    return MethodStability(
        method=settings.method,
        ratio=settings.ratio,
        unit=settings.unit,
        chance=jaccard_by_chance(settings.ratio),
        tasks=tuple(_task_stability(task, counts[task], sizes[task], deciding[task]) for task in evidence.tasks),
    )


def _task_stability(
    task: str, counts: Reproducibility, sizes: Reproducibility, deciding: Reproducibility
) -> TaskStability:
    alone = math.isnan(counts.between)  # no other task to compare with
    return TaskStability(
        task=task,
        within_tensors=counts.within,
        within_elements=sizes.within,
        between_tensors=None if alone else counts.between,
        between_elements=None if alone else sizes.between,
        highest_between=None if alone else deciding.highest_between,
        clear=None if alone else deciding.clearly_higher,
    )


def _core_set(parameters: Sequence[CoreParameter]) -> dict[tuple[Any, ...], int]:
    return {p.place: p.num_elements for p in parameters if p.core}


def warnings_of(deltas: DeltaFile, evidence: Evidence, cores: Sequence[CoreFile], settings: ScoreSettings) -> list[str]:
    """What a user should know before trusting the core sets."""
    found = []
    total = deltas.model.num_elements
    for index, tuned in enumerate(deltas.tuned):
        unchanged = sum(parameter.unchanged[index] for parameter in deltas.parameters) / total
        still = [parameter.name for parameter in deltas.parameters if parameter.norms[index] == 0]
        if tuned.sixteen_bit and unchanged > MANY_UNCHANGED:
            found.append(
                f"{tuned.label}: saved in 16 bits, and {unchanged:.0%} of the elements are as in the base: updates "
                "were rounded away, and scores with them. Save fine-tuned models in float32"
            )
        if still:
            shown = ", ".join(still[:3]) + (f", … ({len(still)})" if len(still) > 3 else "")
            found.append(f"{tuned.label}: did not move at all: {shown}")
    small = [core for core in cores if core.core and core.ratio_of_elements < SMALL_SHARE * settings.ratio]
    if small:
        shown = ", ".join(f"{core.task} {core.ratio_of_elements:.2%}" for core in small)
        found.append(
            f"core sets of very few elements ({shown}): what is core is small tensors, norms or biases, and training "
            "them alone changes little. --unit elements counts elements; --exclude norm --exclude bias leaves them out"
        )
    for core in cores:
        if ties_at_the_cut(core.parameters):
            found.append(
                f"{core.task}: the last core parameter and the next one have the same score; model order decided"
            )
    if settings.method == "cs":
        found += _warnings_of_cosines(evidence)
    return found


def _warnings_of_cosines(evidence: Evidence) -> list[str]:
    found = []
    if len(evidence.tasks) == 2:
        found.append("cs with two tasks gives both the same core set: the cosine of two deltas has no side")
    small = sum(entry.num_elements < NOISY_ELEMENTS for entry in evidence.entries)
    if small:
        found.append(
            f"cs: {small:,} of {len(evidence.entries):,} entries have fewer than {NOISY_ELEMENTS:,} elements, too few "
            f"for a cosine to be more than noise; --min-elements {NOISY_ELEMENTS} leaves them out"
        )
    return found
