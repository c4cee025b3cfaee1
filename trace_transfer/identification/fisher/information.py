"""Fisher information of tensors: the mean over examples of the squared norm of the gradient of their loss.

`fisher_information` reads a model and supervised examples; it gives a number per tensor, and per unit of those that are
split. Equation 4 of arXiv 2605.31025 per named tensor; as a sum over parameters, by whose number callers divide if they
want the mean that the authors' code takes.

`fisher_of` does so for a task, at the tuned model or at the base, and writes `fisher.json` and, where heads and neurons
are wanted, `fisher.units.safetensors` beside it; an earlier one of the same is taken as it is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trace_transfer.data.examples import Example, TaskData
from trace_transfer.engine.loading import load_model
from trace_transfer.errors import NumericalError, listing
from trace_transfer.families.anatomy import Split
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import prepare_directory, remove_leftovers, sha256_text
from trace_transfer.identification.deltas import DeltaPlan, DeltaSource, DeltaStore
from trace_transfer.identification.fisher.passes import (
    BackwardPass,
    Group,
    at_rest,
    group_examples,
    loop_over_groups,
    loss_of,
    micro_batches,
    prepare,
    streamed_pass,
    whole_pass,
)
from trace_transfer.identification.fisher.sites import Pass, Site, Totals, captured, find_sites, observed
from trace_transfer.identification.records import FisherFile, FisherTensor, keep_result, kept_result
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.models.running import attend, layers_of, on_device, resolve_device
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIAL_TOKENS = 32  # of each of the two texts on which the forms are tried
# Relative difference between form and loop on the trial texts. Norms compute in float32 whatever the model's dtype.
TRIAL_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
COARSE_TOLERANCE = 0.5  # 16-bit models: a loop differs from itself by much with another padding
NOISE = {torch.float64: 1e-14, torch.float32: 1e-11}  # of the largest tensor's value: what is below is rounding
COARSE_NOISE = 1e-5


@dataclass(frozen=True)
class FisherResult:
    """Fisher information of a model's tensors.

    Attributes:
        values: tensor → mean over examples (or batches) of its gradient's squared norm, the sum over its parameters; in
            model order, a tied tensor once, under its owner's name.
        units: tensor with a `Split` → the same by unit, float64 [units]; sums to its value.
        num: examples (or batches) averaged.
        fallback: tensors that the one-example loop had to do, in model order.
    """

    values: dict[str, float]
    units: dict[str, Tensor]
    num: int
    fallback: tuple[str, ...]


def fisher_information(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    layer_path: str,
    batch_of: int = 1,
    tokens_at_once: int = 4096,
    streamed: bool = False,
    splits: Mapping[str, Split] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> FisherResult:
    """The mean squared gradient norm of every tensor of a causal language model.

    The loss of an example is the mean cross-entropy of its supervised tokens. The model is run in evaluation mode and
    left as it was; no tensor's gradient is stored. Before anything else the forms are tried on two short texts against
    the one-example loop: a tensor for which they differ is left to that loop, and named in the result.

    Args:
        layer_path: module path of the list of layers.
        batch_of: more than 1 squares the gradient of the mean loss over all supervised tokens of that many consecutive
            examples; the authors' code takes 2.
        tokens_at_once: tokens of a micro-batch, padding included; the result does not depend on it.
        streamed: backward layer by layer: a third of the memory for one more forward pass.
        splits: tensors whose squares are wanted by unit; each a whole number of units.
        advance: called for every example (or batch) done; not again where tensors are left to the loop.

    Raises:
        NumericalError: a loss or a result is NaN or Inf.
    """
    splits = dict(splits or {})
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    groups = group_examples(examples, batch_of)
    layers = layers_of(model, layer_path)
    through = streamed_pass if streamed else whole_pass
    totals = Totals(shapes, splits)
    with at_rest(model):
        sites = _trusted_sites(model, layers, examples, through)
        run = Pass(totals)
        with captured(model, sites, run):
            for batch in micro_batches(groups, tokens_at_once):
                through(model, layers, prepare(batch, next(model.parameters()).device), run)
                for _ in batch:
                    advance()
        sites = _without(sites, _miscounted(sites, run, len(groups)))
        done = {name for site in sites for name in _names(site)}
        fallback = tuple(name for name in shapes if name not in done)
        for name in fallback:
            totals.drop(name)
        if fallback:
            loop_over_groups(model, groups, fallback, totals)
    return _result(totals, splits, len(groups), fallback)


def _trusted_sites(
    model: nn.Module, layers: Sequence[nn.Module], examples: Sequence[Example], through: BackwardPass
) -> list[Site]:
    """The forms that agree with the one-example loop on two short texts of different length, padded to one."""
    groups = _trial_groups(examples)
    batch = prepare(groups, next(model.parameters()).device)
    with torch.no_grad(), observed(model) as seen:
        loss_of(model, batch)
    sites = find_sites(model, seen)
    seen.clear()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    by_form, by_loop = Totals(shapes, {}), Totals(shapes, {})
    run = Pass(by_form)
    with captured(model, sites, run):
        through(model, layers, batch, run)
    loop_over_groups(model, groups, list(shapes), by_loop)
    _require_finite({name: float(by_loop.of(name)) for name in shapes})
    dtype = next(model.parameters()).dtype
    noise = NOISE.get(dtype, COARSE_NOISE) * max(float(by_loop.of(name)) for name in shapes)
    tolerance = TRIAL_TOLERANCE.get(dtype, COARSE_TOLERANCE)

    def agrees(name: str) -> bool:
        form, loop = float(by_form.of(name)), float(by_loop.of(name))
        return abs(form - loop) <= tolerance * loop + noise

    untrusted = {name for name in shapes if not agrees(name)}
    return _without(sites, untrusted | _miscounted(sites, run, len(groups)))


def _miscounted(sites: Sequence[Site], run: Pass, num_groups: int) -> set[str]:
    """Tensors of modules that did not get one gradient for each group: called twice, or not with all examples."""
    return {name for site in sites if run.num_taken[site.path] != num_groups for name in _names(site)}


def _without(sites: Sequence[Site], names: set[str]) -> list[Site]:
    """Sites of other tensors only: a tied tensor has two, and is right only if both are."""
    left = [site for site in sites if not names & set(_names(site))]
    more = {name for site in sites if site not in left for name in _names(site)}
    return left if more <= names else _without(left, names | more)


def _trial_groups(examples: Sequence[Example]) -> list[Group]:
    """Two short texts, every token of them supervised."""
    first = min(examples, key=lambda example: abs(len(example.input_ids) - TRIAL_TOKENS))
    ids = first.input_ids[:TRIAL_TOKENS]
    shorter = ids[: max(2, 2 * len(ids) // 3)]
    return [(replace(first, input_ids=cut, labels=cut),) for cut in (ids, shorter)]


def _names(site: Site) -> tuple[str, ...]:
    bias = getattr(site, "bias", None)
    return (site.weight,) if bias is None else (site.weight, bias)


def _result(totals: Totals, splits: Mapping[str, Split], num: int, fallback: tuple[str, ...]) -> FisherResult:
    means = {name: totals.of(name) / num for name in totals.shapes}
    values = {name: float(mean.sum()) for name, mean in means.items()}
    _require_finite(values)
    return FisherResult(values, {name: means[name] for name in splits}, num, fallback)


def _require_finite(values: Mapping[str, float]) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NumericalError(
            f"Fisher information is NaN or Inf for {len(bad)} of {len(values)} tensors, though every loss is "
            "finite; try float32:\n" + listing(bad)
        )


# ---- of tasks

FOLDER, FILE = "fisher", "fisher.json"
EXAMPLES_OF_A_BATCH = 2  # the authors' code


@dataclass(frozen=True)
class Fisher:
    """Fisher information of one task or replicate; `units` has that of the units of each tensor that has any."""

    file: FisherFile
    units: Mapping[str, Tensor]


def draw(data: TaskData, count: int, seed: int) -> tuple[Example, ...]:
    """`count` examples in a drawn order, or all of them if there are fewer."""
    return tuple(random.Random(seed).sample(data.examples, min(count, len(data.examples))))


def fisher_file(out: Path, source: DeltaSource) -> Path:
    """Where the Fisher information of a delta's task lies."""
    return out / FOLDER / source.tuned.label / FILE


def fisher_of(
    plan: DeltaPlan, source: DeltaSource, data: TaskData, settings: IdentifySettings, seed: int,
    splits: Mapping[str, Split] | None, out: Path, reporter: Reporter,
) -> Fisher:  # fmt: skip
    """Take it, or what an earlier run left of the same.

    Args:
        data: the examples that the delta was made with, or the task's.

    Raises:
        NumericalError: a loss that is not finite, with the examples' ids.
    """
    score, compute, tuned, file = settings.score, settings.compute, source.tuned, fisher_file(out, source)
    examples = draw(data, score.fisher_examples, seed)
    remove_leftovers(file.parent)
    expected = FisherFile(
        task=tuned.task,
        replicate=tuned.replicate,
        model=plan.base.identity,
        at=score.fisher_at,
        fingerprint=plan.base_weights.fingerprint if score.fisher_at == "base" else tuned.fingerprint,
        per=score.fisher,
        num=0,
        data_sha256=sha256_text(repr([(e.input_ids, e.labels) for e in examples])),
        parameters=(),
        units=splits is not None,
        libraries=library_versions(),
    )
    known = kept_result(file, FisherFile, splits is not None)
    if known is not None and _same(known[0], expected) and (known[1] or splits is None):
        reporter.note(f"{tuned.label}: Fisher information read before, {file}")
        return Fisher(*known)
    model = attend(_model(plan.base, source, score.fisher_at, compute.device), settings.warm_start.train.attention)
    of_a_batch = EXAMPLES_OF_A_BATCH if score.fisher == "batch" else 1
    with reporter.task(f"Fisher of {tuned.label}", -(-len(examples) // of_a_batch)) as advance:
        found = fisher_information(
            model,
            examples,
            layer_path=plan.base.anatomy.layer_path,
            batch_of=of_a_batch,
            tokens_at_once=compute.tokens_at_once,
            streamed=compute.layer_streamed,
            splits=splits,
            advance=advance,
        )
    tensors = tuple(FisherTensor(name=name, value=value) for name, value in found.values.items())
    record = expected.model_copy(update={"num": found.num, "parameters": tensors, "fallback": found.fallback})
    prepare_directory(file.parent)
    keep_result(file, record, None if splits is None else found.units)
    return Fisher(record, found.units)


def _same(known: FisherFile, expected: FisherFile) -> bool:
    found = {"num", "parameters", "fallback", "libraries", "units"}
    return known.model_dump(exclude=found) == expected.model_dump(exclude=found)


def _model(base: OpenModel, source: DeltaSource, at: str, device: str) -> PreTrainedModel:
    """The model at which the gradients are taken, in float32."""
    opened = source.opened if at == "tuned" and source.opened is not None else base
    model = load_model(opened.source, opened.anatomy.inventory, torch.float32)
    if at == "tuned" and isinstance(source.weights, DeltaStore):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(source.weights.tensor(name))
    return on_device(model, resolve_device(device))
