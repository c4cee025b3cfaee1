"""A model → its scores on the evaluations of a suite.

Reads: the suite's data, and, once all of that is checked, the model's weights (base and patches).
Writes: `evaluation.json`, `samples/NAME.jsonl`, and `finished/NAME.json` for each evaluation when it is finished: one
that is found there, of the same model, data and settings, is not run again.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trace_transfer.errors import ArtefactError, NumericalError, RulesError, UserError, listing
from trace_transfer.evaluation.backends import Backend, Engine, ModelInMemory, backend_problems, spread
from trace_transfer.evaluation.harness import missing_harness, prepare_harness
from trace_transfer.evaluation.outcome import EvaluationError, Prepared, Reading
from trace_transfer.evaluation.own_data import prepare_choices, prepare_exact_match, prepare_loss
from trace_transfer.evaluation.paper_tasks import prepare_humaneval
from trace_transfer.evaluation.records import EvaluationFile, Score
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import EvaluationSpec, Suite
from trace_transfer.families.application import anatomy_of
from trace_transfer.families.model_handle import identity_of, load_tokenizer
from trace_transfer.families.registry import load_families
from trace_transfer.files import held, prepare_directory, remove_leftovers, sha256_text, write_text
from trace_transfer.models.checkpoints import SafetensorsCheckpoint, local_directory
from trace_transfer.models.content import config_sha256, difference, tokenizer_sha256
from trace_transfer.models.running import attend, on_device, require_attention, resolve_device, resolve_dtype
from trace_transfer.models.sources import ModelSource
from trace_transfer.models.tensors import dtype_name
from trace_transfer.patch.model_state import ModelState, PatchedModel, write_model
from trace_transfer.progress import Reporter
from trace_transfer.records import ModelIdentity, library_versions, read_artefact, to_json

SAMPLES, FINISHED, FILE = "samples", "finished", "evaluation.json"
WRITTEN = "model-for-engine"  # removed when the suite is finished

KINDS: dict[str, Callable[[EvaluationSpec, Reading], Prepared]] = {
    "loss": prepare_loss,
    "exact-match": prepare_exact_match,
    "multiple-choice": prepare_choices,
    "harness": prepare_harness,
    "humaneval": prepare_humaneval,
}
NEED_HARNESS = ("harness", "humaneval")


def prepare_suite(suite: Suite, settings: EvaluateSettings, tokenizer: Any, config: Any) -> tuple[Prepared, ...]:
    """Read the data of all evaluations for the model of a tokenizer and a config; raises as `plan_evaluation`."""
    reading = Reading(suite.directory, tokenizer, config, settings)
    prepared, problems = [], backend_problems(settings)
    lacking = [one for one in suite.specs if one.kind in NEED_HARNESS] if find_spec("lm_eval") is None else []
    if lacking:
        problems.append(missing_harness([spec.name for spec in lacking]))
    for spec in (one for one in suite.specs if one not in lacking):
        try:
            prepared.append(KINDS[spec.kind](spec, reading))
        except UserError as problem:
            problems.append(str(problem))
    if problems:
        raise UserError(f"{suite.label}: cannot be run:\n" + listing(problems))
    return tuple(prepared)


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything of an evaluation but the weights: data are read, and whatever can be refused has been."""

    state: ModelState
    suite: Suite
    settings: EvaluateSettings
    prepared: tuple[Prepared, ...]
    tokenizer: Any
    device: str

    @property
    def dtype(self) -> str:
        return dtype_name(resolve_dtype(self.settings.dtype, self.device))

    @cached_property
    def identity(self) -> ModelIdentity:
        """A model of a family that no rules know is of the family of its `model_type`."""
        inventory, source = self.state.base.inventory, self.state.source
        try:
            anatomy = anatomy_of(inventory, load_families())
            return identity_of(source, inventory, anatomy.family, anatomy.num_layers)
        except RulesError:
            layers = self.state.config.get_text_config().num_hidden_layers
            return identity_of(source, inventory, inventory.model_type, layers)

    def address(self, prepared: Prepared) -> str:
        """Changes with weights, config and tokenizer, the records, and every setting that decides a score."""
        spec = prepared.spec.model_dump(mode="json", exclude={"data", "shots_data"})
        decided = self.settings.deciding() | {"dtype": self.dtype}
        weights = self.state.base.weights  # of a GGUF file the tokenizer lies within it
        words = tokenizer_sha256(weights.directory) if isinstance(weights, SafetensorsCheckpoint) else ""
        told = [self.state.fingerprint, spec, dict(prepared.settings), prepared.metric, prepared.data_sha256, decided]
        told += [config_sha256(self.state.config.to_dict()), words]
        return sha256_text(json.dumps(told, sort_keys=True, default=str))

    def finished(self, prepared: Prepared, out: Path) -> Score | None:
        """Its score, if it lies in the directory; what cannot be read, or is of something else, is made anew."""
        name = prepared.spec.name
        found = _read(out / FINISHED / f"{name}.json")
        if found is None or (self.settings.save_samples and not (out / SAMPLES / f"{name}.jsonl").is_file()):
            return None
        return found.scores[0] if found.settings.get("address") == self.address(prepared) and found.scores else None


def _read(file: Path) -> EvaluationFile | None:
    """None if it is not there, damaged, or of an earlier version: it is made anew."""
    try:
        return read_artefact(file, EvaluationFile)  # type: ignore[no-any-return]
    except ArtefactError:
        return None


def plan_evaluation(model: ModelState | str | Path, suite: Suite, settings: EvaluateSettings) -> EvaluationPlan:
    """Read config, tokenizer and data, no weights; one UserError with all that would stop any of the evaluations."""
    state = model if isinstance(model, ModelState) else ModelState(ModelSource.parse(model))
    config, tokenizer = state.config, load_tokenizer(state.source)
    device = resolve_device(settings.device) if settings.backend == "hf" else "cuda"
    require_attention(config, settings.attention)
    return EvaluationPlan(state, suite, settings, prepare_suite(suite, settings, tokenizer, config), tokenizer, device)


def require_same_weights(plan: EvaluationPlan, out: Path) -> None:
    """Refuse a directory with scores of other weights; another suite, other data and other settings may go into it."""
    for file in (*out.glob(FILE), *sorted((out / FINISHED).glob("*.json"))):
        found = _read(file)
        if found is not None and found.fingerprint != plan.state.fingerprint:
            why = difference("weights, with their patches,", found.fingerprint, plan.state.fingerprint)
            raise UserError(
                f"{out}: holds the scores of {found.model.id}, and {plan.state.source.name} is to be scored now; {why};"
                " name another --out, or remove it"
            )


def evaluate(plan: EvaluationPlan, out: Path, reporter: Reporter, *, replace: bool = False) -> EvaluationFile:
    """Run what is not finished, and write `evaluation.json`; with `replace` scores of other weights may go.

    An EvaluationError if an evaluation failed; those before it stay."""
    if not replace:
        require_same_weights(plan, out)
    with held(out) as directory:
        samples = prepare_directory(directory / SAMPLES) if plan.settings.save_samples else None
        for folder in (directory, prepare_directory(directory / FINISHED), directory / SAMPLES):
            remove_leftovers(folder)
        backend, scores = None, []
        for prepared in plan.prepared:
            score = plan.finished(prepared, directory)
            if score is None:
                backend = backend or open_backend(plan, directory, reporter)
                score = score_one(backend, prepared, samples, reporter)
                alone = _file(plan, (score,), {"address": plan.address(prepared)})
                write_text(directory / FINISHED / f"{prepared.spec.name}.json", to_json(alone))
            scores.append(score)
        shutil.rmtree(directory / WRITTEN, ignore_errors=True)
        result = _file(plan, tuple(scores), plan.settings.recorded() | {"dtype": plan.dtype})
        write_text(directory / FILE, to_json(result))
        return result


def open_backend(plan: EvaluationPlan, directory: Path, reporter: Reporter) -> Backend:
    """Load the weights, patches included; raises as `evaluate`."""
    state, settings = plan.state, plan.settings
    if settings.backend == "hf":
        state.check(reporter)
        model = attend(PatchedModel(state).load(resolve_dtype(settings.dtype, plan.device)), settings.attention)
        is_spread = settings.backend_arguments.get("parallelize")
        model = spread(model, settings) if is_spread else on_device(model, plan.device)
        return ModelInMemory(model.eval(), plan.tokenizer, settings)
    if state.patches or state.source.gguf is not None:
        write_model(state, directory / WRITTEN, reporter, replace=True)
        return Engine(directory / WRITTEN, plan.dtype, plan.tokenizer, settings)
    return Engine(local_directory(state.source), plan.dtype, plan.tokenizer, settings)


def score_one(backend: Backend, prepared: Prepared, samples: Path | None, reporter: Reporter) -> Score:
    """One evaluation of a model that is loaded; its samples are written before the score is given."""
    begun = time.perf_counter()
    with reporter.task(f"evaluating {prepared.spec.name}", prepared.num_steps) as advance:
        try:
            outcome = prepared.run(backend, advance)
        except NumericalError as error:
            raise EvaluationError(f"{prepared.spec.label}: {error}") from error
    if not math.isfinite(outcome.value):
        raise EvaluationError(f"{prepared.spec.label}: its {prepared.metric} is {outcome.value}, which is no score")
    told = {name: value for name, value in prepared.settings.items() if value is not None}
    score = Score(
        name=prepared.spec.name, kind=prepared.spec.kind, metric=prepared.metric, value=outcome.value,
        higher_is_better=prepared.higher_is_better, stderr=outcome.stderr, num_examples=prepared.num_examples,
        num_errors=outcome.num_errors, seconds=time.perf_counter() - begun, data_sha256=prepared.data_sha256,
        settings={**told, "seed": backend.settings.seed}, members=outcome.members,
    )  # fmt: skip
    if samples is not None:
        write_text(samples / f"{prepared.spec.name}.jsonl", "".join(sample.line() + "\n" for sample in outcome.samples))
    return score


def _file(plan: EvaluationPlan, scores: tuple[Score, ...], settings: dict[str, Any]) -> EvaluationFile:
    engine = () if plan.settings.backend == "hf" else ("lm_eval", plan.settings.backend)
    return EvaluationFile(
        model=plan.identity, fingerprint=plan.state.fingerprint, suite=plan.suite.name, scores=scores,
        settings=settings, libraries=library_versions() | {name: version(name) for name in engine},
    )  # fmt: skip
