"""Fisher information of tensors: the mean over examples of the squared norm of the gradient of their loss.

Equation 4 of arXiv 2605.31025 per named tensor, and per unit of those that are split, as a sum over parameters. Exact,
from batched backward passes that store no gradient of a tensor. `fisher_of` does so for a task; it writes `fisher.json`
and, of heads and neurons, `fisher.units.safetensors`.

Shapes: k groups of n examples each, b = k n examples, t tokens of the longest, s positions that are supervised in any
of them, v vocabulary, d width.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trace_transfer.data.examples import IGNORED, Example, TaskData, collate, losses
from trace_transfer.engine.loading import load_model
from trace_transfer.errors import NumericalError, listing
from trace_transfer.families.anatomy import Split
from trace_transfer.families.model_handle import OpenModel
from trace_transfer.files import remove_leftovers, sha256_text
from trace_transfer.identification.deltas import DeltaPlan, DeltaSource, DeltaStore
from trace_transfer.identification.fisher_forms import Pass, Site, Totals, captured, find_sites, without
from trace_transfer.identification.records import FisherFile, FisherTensor, Kept, made_once
from trace_transfer.identification.settings import IdentifySettings
from trace_transfer.models.running import attend, layers_of, on_device, replaced_forwards, resolve_device
from trace_transfer.progress import Reporter
from trace_transfer.records import library_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRIAL_TOKENS = 32  # of each of the two texts on which the forms are tried
TRIAL_TOLERANCE = 1e-3  # relative difference there between form and loop
NOISE = 1e-11  # of the largest tensor's value: what is below is rounding

# ---- examples as micro-batches, and their loss

Group = tuple[Example, ...]


@dataclass(frozen=True)
class MicroBatch:
    """Groups of equally many examples, padded to one length, on the model's device. Only at `positions_s`, where any
    example is supervised, logits are needed."""

    ids: tuple[str, ...]
    num_groups: int
    input_ids_bt: Tensor
    targets_bs: Tensor
    positions_s: Tensor


def micro_batches(groups: Sequence[Group], tokens_at_once: int) -> list[list[Group]]:
    """Groups of one size and like length together, longest first: what does not fit in memory fails at once. None has
    more tokens, padding included, unless one group alone has."""
    batches: list[list[Group]] = []
    for group in sorted(groups, key=lambda group: (len(group), _longest(group)), reverse=True):
        last = batches[-1] if batches and len(batches[-1][0]) == len(group) else None
        if last and (len(last) + 1) * len(group) * _longest(last[0]) <= tokens_at_once:
            last.append(group)
        else:
            batches.append([group])
    return batches


def _longest(group: Group) -> int:
    return max(len(example.input_ids) for example in group)


def prepare(groups: Sequence[Group], device: torch.device) -> MicroBatch:
    batch = collate([example for group in groups for example in group])
    positions_s = (batch.targets_bt != IGNORED).any(dim=0).nonzero().flatten()
    return MicroBatch(
        batch.ids, len(groups), batch.input_ids_bt.to(device), batch.targets_bt[:, positions_s].to(device),
        positions_s.to(device),
    )  # fmt: skip


def run_model(model: nn.Module, batch: MicroBatch, **arguments: Any) -> Any:
    """The model's forward pass, with a mask that hides nothing: padding is on the right, so that no token of a text
    sees it in a causal model. Were it masked, a padded position might see nothing at all (behind a sliding window), and
    then is NaN with eager attention in float64; and attention has a faster way without a mask."""
    everything_bt = torch.ones_like(batch.input_ids_bt)
    return model(input_ids=batch.input_ids_bt, attention_mask=everything_bt, use_cache=False, **arguments)


def loss_of(model: nn.Module, batch: MicroBatch) -> Tensor:
    """The sum over groups of each group's mean loss over its supervised tokens."""
    keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    logits_bsv = run_model(model, batch, **({"logits_to_keep": batch.positions_s} if keep else {})).logits
    if logits_bsv.shape[1] != len(batch.positions_s):
        logits_bsv = logits_bsv[:, batch.positions_s]
    summed_k = losses(logits_bsv, batch.targets_bs).view(batch.num_groups, -1).sum(dim=1)
    losses_k = summed_k / (batch.targets_bs != IGNORED).view(batch.num_groups, -1).sum(dim=1)
    if bad := (~torch.isfinite(losses_k)).nonzero().flatten().tolist():
        size = len(batch.ids) // batch.num_groups
        raise NumericalError(
            f"Fisher information: the loss is NaN or Inf for {len(bad)} of {batch.num_groups} examples or batches:\n"
            + listing([", ".join(batch.ids[index * size : (index + 1) * size]) for index in bad])
        )
    return losses_k.sum()


# ---- of a model


@dataclass(frozen=True)
class FisherResult:
    """Fisher information of a model's tensors, in model order, a tied one once, under its owner's name."""

    # tensor → mean over `num` examples (or batches) of its gradient's squared norm, the sum over parameters
    values: dict[str, float]
    units: dict[str, Tensor]  # tensor with a `Split` → the same by unit, float64 [units]; sums to its value
    num: int
    fallback: tuple[str, ...]  # tensors that the one-example loop had to do


def fisher_information(
    model: nn.Module, examples: Sequence[Example], *, layer_path: str, batch_of: int = 1, tokens_at_once: int = 4096,
    streamed: bool = False, splits: Mapping[str, Split] | None = None, advance: Callable[[], None] = lambda: None,
) -> FisherResult:  # fmt: skip
    """The mean squared gradient norm of every tensor of a causal language model.

    The loss of an example is the mean cross-entropy of its supervised tokens. Before anything else the forms are tried
    on two short texts against the one-example loop: a tensor for which they differ is left to that loop.

    Args:
        batch_of: more than 1 squares the gradient of the mean loss over all supervised tokens of that many consecutive
            examples; the authors' code takes 2.
        tokens_at_once: tokens of a micro-batch, padding included; the result does not depend on it.
        streamed: run each layer a second time in the backward pass, so that the graph of one is in memory.
        advance: called for every example (or batch) done; not again where tensors are left to the loop.
    """
    model.eval().requires_grad_(False)
    layers = layers_of(model, layer_path)
    groups = [tuple(examples[start : start + batch_of]) for start in range(0, len(examples), batch_of)]
    totals = Totals(model, splits or {})
    sites, run = _trusted_sites(model, layers, examples, streamed), Pass(totals)
    with captured(sites, run):
        for batch in micro_batches(groups, tokens_at_once):
            backward(model, layers, prepare(batch, _device(model)), run, streamed)
            for _ in batch:
                advance()
    done = {name for site in without(sites, _miscounted(sites, run, len(groups))) for name in site.names}
    fallback = tuple(name for name in totals.shapes if name not in done)
    totals.drop(fallback)
    if fallback:
        _loop(model, groups, fallback, totals)
    means = {name: totals.of(name) / len(groups) for name in totals.shapes}
    values = {name: float(mean.sum()) for name, mean in means.items()}
    _require_finite(values)
    return FisherResult(values, {name: means[name] for name in totals.splits}, len(groups), fallback)


def backward(
    model: nn.Module, layers: Sequence[nn.Module], batch: MicroBatch, run: Pass, streamed: bool = False
) -> None:
    """Forward and backward; what is captured in it adds to the totals of `run`."""

    def begin_graph(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Where no embedding has a form, the graph begins at the first layer."""
        return None if args[0].requires_grad else (args[0].requires_grad_(), *args[1:])

    def twice(forward: Any, hidden_btd: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The other kind of checkpoint would keep what the hooks hold.
        return checkpoint(partial(forward, **kwargs), hidden_btd, *args, use_reentrant=True, preserve_rng_state=False)

    run.batch = batch
    forwards = [partial(twice, layer.forward) if streamed else layer.forward for layer in layers]
    hook = layers[0].register_forward_pre_hook(begin_graph)
    try:
        with torch.enable_grad(), replaced_forwards(layers, forwards):
            loss_of(model, batch).backward()
    finally:
        hook.remove()


def _loop(model: nn.Module, groups: Sequence[Group], names: Collection[str], totals: Totals) -> None:
    def square(name: str, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None  # the hook runs once it is whole
        totals.add_gradient(name, parameter.grad)
        parameter.grad = None

    parameters = {name: parameter for name, parameter in model.named_parameters() if name in names}
    with ExitStack() as stack:
        for name, parameter in parameters.items():
            stack.callback(parameter.requires_grad_(True).requires_grad_, False)
            stack.callback(parameter.register_post_accumulate_grad_hook(partial(square, name)).remove)
        for group in groups:
            with torch.enable_grad():
                loss = loss_of(model, prepare([group], _device(model)))
            if loss.requires_grad:
                loss.backward()


def _trusted_sites(
    model: nn.Module, layers: Sequence[nn.Module], examples: Sequence[Example], streamed: bool
) -> list[Site]:
    """The forms that agree with the one-example loop on two short texts of different length, padded to one."""
    first = min(examples, key=lambda example: abs(len(example.input_ids) - TRIAL_TOKENS))
    ids = first.input_ids[:TRIAL_TOKENS]
    groups = [(replace(first, input_ids=some, labels=some),) for some in (ids, ids[: max(2, 2 * len(ids) // 3)])]
    sites, run, by_loop = find_sites(model), Pass(Totals(model, {})), Totals(model, {})
    with captured(sites, run):
        backward(model, layers, prepare(groups, _device(model)), run, streamed)
    _loop(model, groups, by_loop.shapes, by_loop)
    loops = {name: float(by_loop.of(name)) for name in by_loop.shapes}
    _require_finite(loops)
    noise = NOISE * max(loops.values())
    untrusted = {
        name
        for name, loop in loops.items()
        if not abs(float(run.totals.of(name)) - loop) <= TRIAL_TOLERANCE * loop + noise  # NaN is not
    }
    return without(sites, untrusted | _miscounted(sites, run, len(groups)))


def _miscounted(sites: Sequence[Site], run: Pass, num_groups: int) -> set[str]:
    """Tensors of modules that did not get one gradient for each group: called twice, or not with all examples."""
    return {name for site in sites if run.num_taken[site.path] != num_groups for name in site.names}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _require_finite(values: Mapping[str, float]) -> None:
    if bad := [name for name, value in values.items() if not math.isfinite(value)]:
        raise NumericalError(f"Fisher information is NaN or Inf, though every loss is finite:\n{listing(bad)}")


# ---- of tasks

Fisher = Kept[FisherFile]
FOLDER, FILE = "fisher", "fisher.json"
EXAMPLES_OF_A_BATCH = 2  # the authors' code


def draw(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    return tuple(random.Random(seed).sample(examples, min(count, len(examples))))


def fisher_file(out: Path, source: DeltaSource) -> Path:
    return out / FOLDER / source.tuned.label / FILE


def fisher_of(
    plan: DeltaPlan, source: DeltaSource, data: TaskData, settings: IdentifySettings, seed: int,
    splits: Mapping[str, Split] | None, out: Path, reporter: Reporter,
) -> Fisher:  # fmt: skip
    score, compute, tuned, file = settings.score, settings.compute, source.tuned, fisher_file(out, source)
    examples = draw(data.examples, score.fisher_examples, seed)
    remove_leftovers(file.parent)
    fingerprint = plan.base_weights.fingerprint if score.fisher_at == "base" else tuned.fingerprint
    expected = FisherFile(
        task=tuned.task, replicate=tuned.replicate, model=plan.base.identity, at=score.fisher_at,
        fingerprint=fingerprint, per=score.fisher, num=0,
        data_sha256=sha256_text(repr([(e.input_ids, e.labels) for e in examples])), parameters=(),
        units=splits is not None, libraries=library_versions(),
    )  # fmt: skip

    def asked(record: FisherFile) -> dict[str, Any]:
        return record.model_dump(exclude={"num", "parameters", "fallback", "libraries", "units"})

    def make() -> Fisher:
        model = attend(_model(plan.base, source, score.fisher_at, compute.device), settings.warm_start.train.attention)
        of_a_batch = EXAMPLES_OF_A_BATCH if score.fisher == "batch" else 1
        with reporter.task(f"Fisher of {tuned.label}", -(-len(examples) // of_a_batch)) as advance:
            found = fisher_information(
                model, examples, layer_path=plan.base.anatomy.layer_path, batch_of=of_a_batch,
                tokens_at_once=compute.tokens_at_once, streamed=compute.layer_streamed, splits=splits, advance=advance,
            )  # fmt: skip
        tensors = tuple(FisherTensor(name=name, value=value) for name, value in found.values.items())
        update = {"num": found.num, "parameters": tensors, "fallback": found.fallback}
        return Fisher(expected.model_copy(update=update), found.units)

    return made_once(file, FisherFile, splits is not None, lambda one: asked(one) == asked(expected), make, reporter)


def _model(base: OpenModel, source: DeltaSource, at: str, device: str) -> PreTrainedModel:
    opened = source.opened if at == "tuned" and source.opened is not None else base
    model = load_model(opened.source, torch.float32)
    if at == "tuned" and isinstance(source.weights, DeltaStore):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(source.weights.tensor(name))
    return on_device(model, resolve_device(device))
