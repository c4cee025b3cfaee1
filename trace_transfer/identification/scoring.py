"""From deltas, gradients and Fisher information to core sets: what scores are made of, the top r, what to be warned of.

An entry is a tensor, or with `unit: rows` a head or neuron of it. Shapes: P entries, N deltas (tasks times replicates),
K tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trace_transfer.core_sets.core_file import CoreFile, CoreTensor
from trace_transfer.core_sets.masks import Chosen, Mask, Slice
from trace_transfer.core_sets.overlap import jaccard_by_chance, reproducibility
from trace_transfer.core_sets.selection import entries_of, select
from trace_transfer.errors import ArtefactError, UserError, few, listing
from trace_transfer.families.anatomy import Split
from trace_transfer.families.language import LAYER_COMPONENTS, OUTSIDE_COMPONENTS
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.identification.deltas import Deltas, grams_of
from trace_transfer.identification.fisher import Fisher
from trace_transfer.identification.records import DeltaFile, MethodStability, StabilityFile, TaskStability
from trace_transfer.identification.scores import METHODS, Scores, ScoreSettings, Statistics, all_scores, cosines_of
from trace_transfer.models.sources import numel
from trace_transfer.records import ModelIdentity, library_versions, read_artefact

Array = NDArray[np.float64]
BIAS = "bias"
MANY_UNCHANGED = 0.25
SMALL_SHARE = 0.1  # of the ratio, in elements: below it the core set is small tensors only
NOISY_ELEMENTS = 1000  # a cosine of fewer elements is mostly noise (its standard deviation is 1/√n)


# ---- inputs


@dataclass(frozen=True)
class ScoreInputs:
    """Arrays over entries and deltas."""

    model: ModelIdentity
    tasks: tuple[str, ...]
    made_with: Mapping[str, Any]  # what else decided the scores: epochs, seed
    deltas_of_K: tuple[tuple[int, ...], ...]  # the indices of each task's deltas among the N
    entries: tuple[CoreTensor, ...]
    gram_PNN: Array
    base_norms_P: Array
    fisher_PN: Array | None
    text_P: Array | None = None  # Fisher information on generic text
    deltas: DeltaFile | None = None  # None of methods at the base, whose `gram_PNN` is that of gradients
    chosen: Sequence[Mapping[str, Chosen]] = ()  # of each task its single parameters, where they are chosen one by one
    fallback: tuple[str, ...] = ()  # tensors whose Fisher information was taken one example at a time
    files: tuple[Path, ...] = ()

    @property
    def num_replicates(self) -> int:
        return min(map(len, self.deltas_of_K))

    def statistics(self, replicate: int | None = None) -> Statistics:
        """Of each task's mean delta over its replicates and its mean Fisher information; or of one replicate alone."""
        groups = self.deltas_of_K if replicate is None else [(group[replicate],) for group in self.deltas_of_K]
        gram_PKK, reliability_PK, fisher_PK = averaged(self.gram_PNN, groups), None, None
        if min(map(len, groups)) > 1:
            # How much of the squared mean delta two replicates agree on: <first, second> / |mean|². With it
            # cos(k, j) / √(rel_k rel_j) is <k, j> / √(<k1, k2> <j1, j2>), in which noise has no expectation.
            agreed_PK = np.stack([self.gram_PNN[:, group[0], group[1]] for group in groups], axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                reliability_PK = agreed_PK / np.diagonal(gram_PKK, axis1=1, axis2=2)
        if self.fisher_PN is not None:
            fisher_PK = np.stack([self.fisher_PN[:, list(group)].mean(axis=1) for group in groups], axis=1)
        return Statistics(
            gram_PKK=gram_PKK, numel_P=np.array([entry.num_elements for entry in self.entries]),
            base_norms_P=self.base_norms_P, kinds_P=np.array([entry.component for entry in self.entries]),
            tasks_K=self.tasks, fisher_PK=fisher_PK, text_P=self.text_P, reliability_PK=reliability_PK,
        )  # fmt: skip

    def replicate_cosines(self) -> dict[str, float]:
        """Of each task, the median over entries."""
        cosines_PNN = cosines_of(self.gram_PNN)
        pairs = {task: group for task, group in zip(self.tasks, self.deltas_of_K, strict=True) if len(group) == 2}
        return {task: float(np.nanmedian(cosines_PNN[:, one, other])) for task, (one, other) in pairs.items()}


def averaged(gram_PNN: Array, groups: Sequence[Sequence[int]]) -> Array:
    """Gram matrices of the mean delta of each group, [P, groups, groups]: of mean_i a_i and mean_j b_j it is
    mean_ij <a_i, b_j>, so that the mean of replicates needs no second reading."""
    blocks = [[gram_PNN[:, list(one)][:, :, list(other)].mean(axis=(1, 2)) for other in groups] for one in groups]
    return np.array(blocks).transpose(2, 0, 1)


def gather(
    base: OpenModel, deltas: Deltas, fisher: Sequence[Fisher] | None, splits: Mapping[str, Split] | None,
    made_with: Mapping[str, Any], files: Sequence[Path],
) -> ScoreInputs:  # fmt: skip
    tuned = deltas.file.tuned
    tasks = tuple(dict.fromkeys(one.task for one in tuned))
    whole_PNN = grams_of(deltas.file)
    whole_fisher = [{p.name: p.value for p in one.file.parameters} for one in fisher or ()]
    entries: list[CoreTensor] = []
    grams, base_norms, values = [], [], []
    for index, tensor in enumerate(deltas.file.parameters):
        name, split = tensor.name, (splits or {}).get(tensor.name)
        entries += entries_of(base.anatomy, name, tensor.shape, split)
        if split is None:
            grams.append(whole_PNN[index][None])
            base_norms.append([tensor.base_norm])
            values.append(np.array([[one[name] for one in whole_fisher]]))
        else:
            grams_UNN = deltas.units[name].numpy()
            grams.append(grams_UNN[:, :-1, :-1])
            base_norms.append(np.sqrt(grams_UNN[:, -1, -1]))
            values.append(np.array([one.units[name].numpy() for one in fisher or ()]).T)
    return ScoreInputs(
        model=base.identity, tasks=tasks, made_with=made_with,
        deltas_of_K=tuple(tuple(index for index, one in enumerate(tuned) if one.task == task) for task in tasks),
        entries=tuple(entries), gram_PNN=np.concatenate(grams), base_norms_P=np.concatenate(base_norms),
        fisher_PN=np.concatenate(values) if fisher is not None else None, deltas=deltas.file,
        fallback=tuple(sorted({name for one in fisher or () for name in one.file.fallback})), files=tuple(files),
    )  # fmt: skip


# ---- core sets


def check_settings(settings: ScoreSettings, tasks: Sequence[str], num_replicates: int) -> None:
    """Refuse what cannot be computed from so many tasks and replicates, before anything is read."""
    needed = METHODS[settings.method].num_tasks
    if len(tasks) < needed:
        raise UserError(
            f"{settings.method} compares tasks and needs at least {needed}, found {len(tasks)}: {', '.join(tasks)}"
        )
    if settings.against == "tasks" and "against" not in METHODS[settings.method].ignores and len(tasks) < 2:
        raise UserError(f"{settings.method} against the other tasks: there is only {tasks[0]}; take --against text")
    if settings.unit == "parameters" and (num_replicates > 1 or not settings.at_base):
        able = ", ".join(name for name, one in METHODS.items() if one.of_parameters is not None)
        raise UserError(f"--unit parameters: single parameters are scored by {able}, with one replicate of each task")
    if settings.unit == "parameters" and settings.prior is not None:
        raise UserError("--prior: has a score for each tensor, which tells rows and tensors apart, not parameters")
    if settings.cosine == "corrected" and num_replicates < 2:
        raise UserError("cosine 'corrected' needs the reliability of two replicates of every task: --replicates 2")
    components = (*LAYER_COMPONENTS, *OUTSIDE_COMPONENTS)
    known = {*components, *(name.partition(".")[0] for name in components), BIAS}
    if unknown := [name for name in settings.exclude if name not in known]:
        raise UserError("exclude: no such components:\n" + listing(unknown) + f"\nthere are {', '.join(sorted(known))}")


@dataclass(frozen=True)
class Known:
    """What core files of the same model say of each task beforehand, such as those that were carried over."""

    masks: Mapping[str, Mask]  # the core sets that are chosen from; empty without `within`
    priors: Mapping[str, tuple[CoreTensor, ...]]  # the scored tensors that scores are multiplied by; empty without

    @classmethod
    def of(cls, settings: ScoreSettings, tasks: Sequence[str], model: ModelIdentity) -> Known:
        """Read them; an ArtefactError for those of another model, or for priors below zero."""
        masks, priors = dict[str, Mask](), dict[str, tuple[CoreTensor, ...]]()
        for directory, task in [(one, task) for one in (settings.within, settings.prior) if one for task in tasks]:
            file = directory / f"{task}.core.json"
            core: CoreFile = read_artefact(file, CoreFile)
            if core.model.names_sha256 != model.names_sha256:
                raise ArtefactError(f"{file}: is of {core.model.id}, not of {model.id}; carry it over with map")
            if directory == settings.within:
                masks[task] = Mask.of_core(core, {one.name: one.shape for one in core.parameters}, {}, str(file))
            if directory == settings.prior:
                priors[task] = tuple(one for one in core.parameters if one.score is not None)
                if not any(one.score for one in priors[task]) or any((one.score or 0.0) < 0 for one in priors[task]):
                    raise ArtefactError(f"{file}: a prior needs scores, none below zero; lf with min-max gives such")
        return cls(masks, priors)

    def prior_P(self, task: str, entries: Sequence[CoreTensor]) -> Array:
        """What each entry's score is multiplied by: the score of its tensor, of the highest part of one that is fused;
        the mean of the others where there is none."""
        parts: dict[str, list[CoreTensor]] = {}
        for one in self.priors[task]:
            parts.setdefault(one.name, []).append(one)
        found = [[one.score or 0.0 for one in parts.get(entry.name, ()) if _overlap(one, entry)] for entry in entries]
        prior_P: Array = np.array([max(scores, default=np.nan) for scores in found])
        prior_P[np.isnan(prior_P)] = np.nanmean(prior_P)
        return prior_P


def _overlap(one: CoreTensor, other: CoreTensor) -> bool:
    return all(
        mine is None or theirs is None or any(a < d and c < b for a, b in mine for c, d in theirs)
        for mine, theirs in zip(one.place[1:], other.place[1:], strict=True)
    )


def core_files(inputs: ScoreInputs, settings: ScoreSettings) -> tuple[CoreFile, ...]:
    """One core file per task; entries that cannot be scored are listed without a score."""
    recorded = settings.deciding() if settings.at_base else settings.recorded()
    made_with = {"tasks": list(inputs.tasks), "replicates": inputs.num_replicates, **inputs.made_with}
    method = {"name": recorded.pop("method"), **recorded, **made_with}
    if settings.unit == "parameters":
        method["unit"] = "tensors"  # until they are chosen
    found = _core_sets(inputs, inputs.statistics(), settings, Known.of(settings, inputs.tasks, inputs.model))
    cores = tuple(
        CoreFile(task=task, model=inputs.model, method=method, parameters=tensors, libraries=library_versions())
        for task, tensors in zip(inputs.tasks, found, strict=True)
    )
    if not inputs.chosen:
        return cores
    return tuple(core.of_parameters(chosen) for core, chosen in zip(cores, inputs.chosen, strict=True))


def _core_sets(
    inputs: ScoreInputs, statistics: Statistics, settings: ScoreSettings, known: Known
) -> list[tuple[CoreTensor, ...]]:
    unit = "tensors" if settings.unit == "parameters" else settings.unit  # those are chosen afterwards
    every = all_scores(statistics, settings, takes_part(inputs.entries, settings))
    for number, task in enumerate(inputs.tasks):
        if known.masks:
            part_P = takes_part(inputs.entries, settings, known.masks[task])
            every[number] = all_scores(statistics, settings, part_P)[number]
        if known.priors:
            prior_P = known.prior_P(task, inputs.entries)
            every[number] = Scores(every[number].score_P * prior_P, {**every[number].terms, "prior": prior_P})
    return [
        select([_scored(entry, scores, index) for index, entry in enumerate(inputs.entries)], settings.ratio, unit)
        for scores in every
    ]


def _scored(entry: CoreTensor, scores: Scores, index: int) -> CoreTensor:
    score = float(scores.score_P[index])
    return entry if math.isnan(score) else entry.model_copy(update={"score": score, "terms": scores.terms_of(index)})


def takes_part(entries: Sequence[CoreTensor], settings: ScoreSettings, within: Mask | None = None) -> NDArray[np.bool_]:
    """Which entries are scored; of those only what lies wholly in a mask, if one is given."""

    def excluded(entry: CoreTensor) -> bool:
        parts = [f"{part}." for part in (entry.component or "").split("+")]
        named = all(part.startswith(tuple(f"{name}." for name in settings.exclude)) for part in parts)
        return named or (BIAS in settings.exclude and entry.name.endswith((f".{BIAS}", f"_{BIAS}")))

    part_P = np.array([not excluded(entry) and entry.num_elements >= settings.min_elements for entry in entries])
    return part_P if within is None else part_P & covered(entries, within)


def covered(entries: Sequence[CoreTensor], mask: Mask) -> NDArray[np.bool_]:
    slices = {name: part for name, part in mask.parts.items() if isinstance(part, Slice)}
    inside = {name: frozenset(part.indices) for name, part in slices.items()}

    def lies(entry: CoreTensor) -> bool:
        if entry.name not in slices:
            return mask.trains(entry.name) and mask.parts[entry.name] is None
        dim = slices[entry.name].dim
        ranges = entry.place[1:][dim] or ((0, entry.shape[dim]),)
        return all(inside[entry.name].issuperset(range(start, stop)) for start, stop in ranges)

    return np.array([lies(entry) for entry in entries])


def stability(inputs: ScoreInputs, settings: ScoreSettings) -> StabilityFile:
    """How far core sets of one task agree between its two replicates, each made from that replicate of all tasks alone,
    beside how far those of different tasks do: of the chosen method, and of others that the same inputs allow."""
    possible = {"lf": inputs.fisher_PN is not None, "cs": len(inputs.tasks) > 1, "l2": True}
    others = [] if settings.at_base else [name for name, fits in possible.items() if fits]
    known = Known.of(settings, inputs.tasks, inputs.model)
    methods = tuple(
        _method_stability(inputs, settings.model_copy(update={"method": name, "cosine": "plain"}), known)
        for name in dict.fromkeys([settings.method, *others])
    )
    reliability = inputs.replicate_cosines()
    return StabilityFile(model=inputs.model, methods=methods, reliability=reliability, libraries=library_versions())


def _method_stability(inputs: ScoreInputs, settings: ScoreSettings, known: Known) -> MethodStability:
    first, second = (
        [{p.place: p.num_elements for p in tensors if p.core} for tensors in found]
        for found in (_core_sets(inputs, inputs.statistics(index), settings, known) for index in (0, 1))
    )
    sets = dict(zip(inputs.tasks, zip(first, second, strict=True), strict=True))
    sizes = reproducibility(sets)
    counts = reproducibility({t: (dict.fromkeys(one, 1), dict.fromkeys(other, 1)) for t, (one, other) in sets.items()})
    deciding = counts if settings.unit == "tensors" else sizes
    tasks = tuple(
        TaskStability(
            task=task, within_tensors=counts[task].within, within_elements=sizes[task].within,
            between_tensors=counts[task].between, between_elements=sizes[task].between,
            highest_between=deciding[task].highest_between, clear=deciding[task].clearly_higher,
        )
        for task in inputs.tasks
    )  # fmt: skip
    chance = jaccard_by_chance(settings.ratio)
    return MethodStability(method=settings.method, ratio=settings.ratio, unit=settings.unit, chance=chance, tasks=tasks)


def warnings_of(inputs: ScoreInputs, cores: Sequence[CoreFile], settings: ScoreSettings) -> list[str]:
    found = []
    tuned_models, tensors = (inputs.deltas.tuned, inputs.deltas.parameters) if inputs.deltas else ((), ())
    for index, tuned in enumerate(tuned_models):
        unchanged = sum(one.unchanged[index] for one in tensors) / sum(numel(one.shape) for one in tensors)
        still = [one.name for one in tensors if one.norms[index] == 0]
        if tuned.sixteen_bit and unchanged > MANY_UNCHANGED:
            found.append(
                f"{tuned.label}: saved in 16 bits, and {unchanged:.0%} of the parameters are as in the base: updates "
                "were rounded away, and scores with them. Save fine-tuned models in float32"
            )
        if still:
            found.append(f"{tuned.label}: did not move at all: {few(still)}")
    small = [core for core in cores if core.core and core.ratio_of_elements < SMALL_SHARE * settings.ratio]
    if small:
        shown = ", ".join(f"{core.task} {core.ratio_of_elements:.2%}" for core in small)
        found.append(
            f"core sets of very few parameters ({shown}): small tensors, norms or biases, are core, and training them "
            "alone changes little. --unit elements counts parameters; --exclude norm --exclude bias leaves them out"
        )
    if settings.method == "cs" and len(inputs.tasks) == 2:
        found.append("cs with two tasks gives both the same core set: the cosine of two deltas has no side")
    noisy = sum(entry.num_elements < NOISY_ELEMENTS for entry in inputs.entries)
    if settings.method == "cs" and noisy:
        found.append(
            f"cs: {noisy:,} of {len(inputs.entries):,} tensors or rows have fewer than {NOISY_ELEMENTS:,} parameters, "
            f"too few for a cosine to be more than noise; --min-elements {NOISY_ELEMENTS} leaves them out"
        )
    if inputs.fallback:
        found.append(
            f"Fisher information of {len(inputs.fallback)} tensors was taken one example at a time, for want of a "
            f"batched form: {few(inputs.fallback)}"
        )
    return found
