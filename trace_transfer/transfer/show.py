"""What `map` prints: the plan of `--dry-run`, and at the end a short table, the warnings, and where the files are."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING

from trace_transfer.families.anatomy import folded_name
from trace_transfer.files import size
from trace_transfer.terminal import Page, drawn

if TYPE_CHECKING:
    from trace_transfer.core_sets.core_file import CoreFile
    from trace_transfer.families.anatomy import Anatomy
    from trace_transfer.transfer.mapping import MapEstimate, MapPlan, MapResult
    from trace_transfer.transfer.translation import Carried


def render_summary(result: MapResult) -> str:
    """The result of `map` as text as wide as the terminal."""
    return drawn(lambda page: _draw(result, page))


def _draw(result: MapResult, page: Page) -> None:
    _draw_match(result, page)
    if result.carried:
        page.line()
        _draw_cores(result.carried, page)
        for carried in result.carried:
            _draw_dropped(carried, page)
    for warning in result.layer_match.warnings:
        page.line(f"! {warning}")
    page.written(result.files)
    page.line()
    page.line(result.layer_match.verdict, "bold")


def _draw_match(result: MapResult, page: Page) -> None:
    match, layers = result.match, result.match.similarity.shape
    known = [(pair.similarity, pair) for pair in match.pairs if pair.similarity is not None]
    margins = sorted(pair.margin for _, pair in known if pair.margin is not None)
    (_, weakest), (_, strongest) = min(known, key=itemgetter(0)), max(known, key=itemgetter(0))
    used = layers[1] - len(match.unmatched_targets)
    rows = [
        ("pairs", f"{len(match.pairs)}, of {layers[0] - len(match.unmatched_sources)} source and {used} target layers"),
        ("strongest", f"{strongest.source} → {strongest.target}  CKA {strongest.similarity:.3f}"),
        ("weakest", f"{weakest.source} → {weakest.target}  CKA {weakest.similarity:.3f}"),
    ]
    if margins:
        middle = margins[len(margins) // 2]
        rows.append(("margin to the runner-up", f"median {middle:+.4f}, least {margins[0]:+.4f}"))
    rows.append(("unused target layers", _numbers(match.unmatched_targets)))
    if match.unmatched_sources:
        rows.append(("unused source layers", _numbers(match.unmatched_sources)))
    if match.stability:
        share = f"{match.stability.same:.0%} of the layers, {match.stability.within_one:.0%} to within one"
        rows.append(("same choice on other texts", share))
    agreement = ", ".join(f"{name} {share:.0%}" for name, share in match.policy_agreement.items())
    rows.append(("pairs in common with", agreement))
    depth = f"{match.depth.agreement:.0%}, {match.depth.within_one:.0%} to within one layer"
    rows.append(("same as relative depth", depth))
    page.line(f"{result.source.name} ({layers[0]} layers) → {result.target.name} ({layers[1]} layers)", "bold")
    how = f"{match.policy}, {result.layer_match.similarity}, {result.layer_match.representation}"
    page.table([("layer match", "left"), (how, "left")], rows)


def _draw_cores(carried: tuple[Carried, ...], page: Page) -> None:
    rows = []
    for one in carried:
        before, after = one.source, one.core
        assert after.transferred_from is not None  # it was carried
        shares = (f"{one.ratio_of_elements:.2%}" for one in (before, after))
        tensors = (_tensors(one) for one in (before, after))
        sides = [cell for side in zip(tensors, shares, strict=True) for cell in side]
        rows.append((after.task, after.transferred_from.carry, *sides))
    page.line("core sets", "bold")
    headings = ("task", "carried", "source: tensors", "elements", "target: tensors", "elements")
    page.table([(one, "left" if one in ("task", "carried") else "right") for one in headings], rows)


def _tensors(core: CoreFile) -> str:
    return f"{len(core.core)} of {len(core.parameters)} = {core.ratio_of_tensors:.2%}"


def _draw_dropped(carried: Carried, page: Page) -> None:
    if not carried.dropped:
        return
    page.line(f"{carried.core.task}: {len(carried.dropped)} core tensors have no counterpart:")
    for reason, count in Counter(carried.dropped.values()).most_common():
        names = [name for name, why in carried.dropped.items() if why == reason]
        shown = ", ".join(names[:3]) + (", …" if count > 3 else "")
        page.line(f"  {shown}: {reason}")


def _numbers(layers: tuple[int, ...]) -> str:
    if not layers:
        return "none"
    shown = ", ".join(map(str, layers[:16])) + (", …" if len(layers) > 16 else "")
    return f"{len(layers)}: {shown}"


def render_estimate(plan: MapPlan, estimate: MapEstimate) -> str:
    """What a planned run takes, and the tensors of both models, as text as wide as the terminal."""
    return drawn(lambda page: _draw_estimate(plan, estimate, page))


def _draw_estimate(plan: MapPlan, estimate: MapEstimate, page: Page) -> None:
    models, readings = (plan.source, plan.target), (plan.rows.source, plan.rows.target)
    shapes = [model.anatomy.inventory.shapes for model in models]
    rows = [
        ("family", *(model.anatomy.family for model in models)),
        ("layers", *(str(model.anatomy.num_layers) for model in models)),
        ("tensors", *(f"{len(one):,}" for one in shapes)),
        ("elements", *(f"{model.anatomy.inventory.num_elements:,}" for model in models)),
        ("probe tokens", *(f"{reading.num_tokens:,}" for reading in readings)),
        ("memory: largest layer", *(size(one.layer_bytes) for one in estimate.models)),
        ("memory: hidden states", *(size(one.hidden_bytes) for one in estimate.models)),
        ("memory: Gram matrices", *(size(one.gram_bytes) for one in estimate.models)),
        ("time of arithmetic", *(_duration(one.seconds) for one in estimate.models)),
    ]
    page.line("nothing is read or written (--dry-run)", "bold")
    page.table([("", "left"), *((model.name, "right") for model in models)], rows)
    page.line(
        f"{sum(plan.rows.sizes):,} rows in {len(plan.rows.sizes)} minibatches from {len(plan.probe.texts)} texts; peak "
        f"about {size(estimate.peak_bytes)} beside the libraries; on {plan.device} in "
        f"{str(plan.dtype).removeprefix('torch.')} at {estimate.flops_per_second / 1e9:,.0f} GFLOP/s."
    )
    headings = ("name", "shape", "count", "component")
    for model in models:
        page.line()
        page.line(f"tensors of {model.name}", "bold")
        page.table([(one, "right" if one == "count" else "left") for one in headings], _folded(model.anatomy))


def _folded(anatomy: Anatomy) -> list[tuple[str, str, str, str]]:
    """Name, shape, count and component of the tensors, those of all layers as one."""
    kinds = Counter(
        (
            folded_name(name),
            " × ".join(map(str, shape)),
            ", ".join(dict.fromkeys(unit.component for unit in anatomy.units_of(name))) or "excluded",
        )
        for name, shape in anatomy.inventory.shapes.items()
    )
    return [(name, shape, str(count), component) for (name, shape, component), count in kinds.items()]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
