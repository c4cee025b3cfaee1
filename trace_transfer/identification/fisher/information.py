"""Fisher information per parameter: the mean over examples of the squared norm of the gradient of their loss.

Reads a model and supervised examples; gives a number per parameter, and per unit of those that are split. Equation 4
of the TRACE paper per named parameter; as a sum over elements, by whose number callers divide if they want the mean
that the authors' code takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from trace_transfer.data.examples import Example
from trace_transfer.errors import NumericalError, UserError, listing
from trace_transfer.families.anatomy import Split
from trace_transfer.identification.fisher.batches import Group, group_examples, loss_of, micro_batches, prepare
from trace_transfer.identification.fisher.capture import at_rest, captured, observed
from trace_transfer.identification.fisher.fallback import loop_over_groups
from trace_transfer.identification.fisher.finding import find_sites
from trace_transfer.identification.fisher.passes import BackwardPass, streamed_pass, whole_pass
from trace_transfer.identification.fisher.sites import Pass, Site
from trace_transfer.identification.fisher.totals import Totals
from trace_transfer.models.running import layers_of

TRIAL_TOKENS = 32  # of each of the two texts on which the forms are tried
# Relative difference between form and loop on the trial texts. Norms compute in float32 whatever the model's dtype.
TRIAL_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
COARSE_TOLERANCE = 0.5  # 16-bit models: a loop differs from itself by much with another padding
NOISE = {torch.float64: 1e-14, torch.float32: 1e-11}  # of the largest parameter's value: what is below is rounding
COARSE_NOISE = 1e-5


@dataclass(frozen=True)
class FisherResult:
    """Fisher information of a model's parameters.

    Attributes:
        values: parameter → mean over examples (or batches) of its gradient's squared norm, the sum over its elements;
            in model order, a tied parameter once, under its owner's name.
        units: parameter with a `Split` → the same by unit, float64 [units]; sums to its value.
        num: examples (or batches) averaged.
        fallback: parameters that the one-example loop had to do, in model order.
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
    per: Literal["example", "batch"] = "example",
    batch_of: int = 2,
    tokens_at_once: int = 4096,
    streamed: bool = False,
    splits: Mapping[str, Split] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> FisherResult:
    """The mean squared gradient norm of every parameter of a causal language model.

    The loss of an example is the mean cross-entropy of its supervised tokens. The model is run in evaluation mode and
    left as it was; no parameter's gradient is stored. Before anything else the forms are tried on two short texts
    against the one-example loop: a parameter for which they differ is left to that loop, and named in the result.

    Args:
        layer_path: module path of the list of layers.
        per: `batch` squares the gradient of the mean loss over all supervised tokens of `batch_of` consecutive
            examples, as the authors' code does.
        tokens_at_once: tokens of a micro-batch, padding included; the result does not depend on it.
        streamed: backward layer by layer: a third of the memory for one more forward pass.
        splits: parameters whose squares are wanted by unit.
        advance: called for every example (or batch) done; not again where parameters are left to the loop.

    Raises:
        UserError: no examples, examples without a supervised token, or splits that do not fit.
        NumericalError: a loss or a result is NaN or Inf.
    """
    splits = dict(splits or {})
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check(examples, splits, shapes)
    groups = group_examples(examples, batch_of if per == "batch" else 1)
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
        fallback = _left_over(shapes, sites)
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
    """Parameters of modules that did not get one gradient for each group: called twice, or not with all examples."""
    return {name for site in sites if run.num_taken[site.path] != num_groups for name in _names(site)}


def _without(sites: Sequence[Site], names: set[str]) -> list[Site]:
    """Sites of other parameters only: a tied parameter has two, and is right only if both are."""
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


def _left_over(names: Iterable[str], sites: Sequence[Site]) -> tuple[str, ...]:
    done = {name for site in sites for name in _names(site)}
    return tuple(name for name in names if name not in done)


def _result(totals: Totals, splits: Mapping[str, Split], num: int, fallback: tuple[str, ...]) -> FisherResult:
    means = {name: totals.of(name) / num for name in totals.shapes}
    values = {name: float(mean.sum()) for name, mean in means.items()}
    _require_finite(values)
    return FisherResult(values, {name: means[name] for name in splits}, num, fallback)


def _require_finite(values: Mapping[str, float]) -> None:
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NumericalError(
            f"Fisher information is NaN or Inf for {len(bad)} of {len(values)} parameters, though every loss is "
            "finite; try float32:\n" + listing(bad)
        )


def _check(examples: Sequence[Example], splits: Mapping[str, Split], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if not examples:
        raise UserError("Fisher information needs at least one example")
    empty = [example.id for example in examples if not example.num_supervised]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(examples)} examples have no supervised token, so no loss:\n" + listing(empty)
        )
    problems = []
    for name, split in splits.items():
        shape = shapes.get(name)
        if shape is None:
            problems.append(f"{name}: the model has no such parameter")
        elif not 0 <= split.dim < len(shape) or split.size < 1 or shape[split.dim] % split.size:
            problems.append(f"{name}: shape {list(shape)} is not a whole number of units of {split}")
    if problems:
        raise UserError("parameters cannot be split into units as asked:\n" + listing(problems))
