"""What `map` prints: the plan of `--dry-run`, and at the end a short table, the warnings, and where the files are."""

from __future__ import annotations

from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING

from trace_transfer.families.anatomy import folded_name, layer_ranges
from trace_transfer.files import size
from trace_transfer.terminal import Page, Shown, as_text

if TYPE_CHECKING:
    from trace_transfer.transfer.mapping import MapEstimate, MapPlan, MapResult
    from trace_transfer.transfer.records import LayerMatch
    from trace_transfer.transfer.translation import Carried


@as_text
def render_summary(page: Page, result: MapResult) -> None:
    """The result of `map`."""
    match = result.layer_match
    layers = [one.num_layers for one in (match.source, match.target)]
    title = f"{result.source.name} ({layers[0]} layers) → {result.target.name} ({layers[1]} layers)"
    draw_match(page, match, title)
    if result.carried:
        page.line()
        _draw_cores(page, result.carried)
        for carried in result.carried:
            _draw_dropped(page, carried)
    page.lines(f"! {warning}" for warning in match.warnings)
    page.written(result.files)
    page.line()
    page.line(match.verdict, "bold")


def draw_match(page: Page, match: LayerMatch, title: str) -> None:
    """A layer match in short."""
    layers = match.source.num_layers, match.target.num_layers
    known = [(pair.similarity, pair) for pair in match.pairs if pair.similarity is not None]
    margins = sorted(pair.margin for pair in match.pairs if pair.margin is not None)
    used = layers[0] - len(match.unmatched_sources), layers[1] - len(match.unmatched_targets)
    rows = [("pairs", f"{len(match.pairs)}, of {used[0]} source and {used[1]} target layers")]
    if known:
        ends = ("strongest", max(known, key=itemgetter(0))), ("weakest", min(known, key=itemgetter(0)))
        rows += [(name, f"{pair.source} → {pair.target}  CKA {cka:.3f}") for name, (cka, pair) in ends]
    if margins:
        middle = margins[len(margins) // 2]
        rows.append(("margin to the runner-up", f"median {middle:+.4f}, least {margins[0]:+.4f}"))
    for name, unused in (
        ("unused target layers", match.unmatched_targets), ("unused source layers", match.unmatched_sources),
        ("target layers without a value", match.degenerate_targets),
        ("source layers without a value", match.degenerate_sources),
    ):  # fmt: skip
        if unused or name == "unused target layers":
            rows.append((name, f"{len(unused)}: {layer_ranges(unused)}" if unused else "none"))
    if match.stability:
        share = f"{match.stability.same:.0%} of the layers, {match.stability.within_one:.0%} to within one"
        rows.append(("same choice on other texts", share))
    if match.policy_agreement:
        agreement = ", ".join(f"{name} {share:.0%}" for name, share in match.policy_agreement.items())
        rows.append(("pairs in common with", agreement))
    if match.depth:
        depth = f"{match.depth.agreement:.0%}, {match.depth.within_one:.0%} to within one layer"
        rows.append(("same as relative depth", depth))
    page.table(("layer match", f"{match.policy}, {match.similarity}, {match.representation}"), rows, title)


def _draw_cores(page: Page, carried: tuple[Carried, ...]) -> None:
    rows = []
    for one in carried:
        assert one.core.transferred_from is not None  # it was carried
        sides = []
        for core in (one.source, one.core):
            sides.append(f"{len(core.core)} of {len(core.parameters)} = {core.ratio_of_tensors:.2%}")
            sides.append(f"{core.ratio_of_elements:.2%}")
        rows.append((one.core.task, one.core.transferred_from.carry, *sides))
    page.table(("task", "carried", "source: tensors", "elements", "target: tensors", "elements"), rows, "core sets")


def _draw_dropped(page: Page, carried: Carried) -> None:
    if not carried.dropped:
        return
    page.line(f"{carried.core.task}: {len(carried.dropped)} core tensors have no counterpart:")
    for reason, count in Counter(carried.dropped.values()).most_common():
        names = [name for name, why in carried.dropped.items() if why == reason]
        page.line(f"  {', '.join(names[:3])}{', …' if count > 3 else ''}: {reason}")


@as_text
def render_estimate(page: Page, plan: MapPlan, estimate: MapEstimate) -> None:
    """What a planned run takes, and the tensors of both models."""
    models, readings = (plan.source, plan.target), (plan.rows.source, plan.rows.target)
    rows: list[tuple[Shown, ...]] = [
        ("family", *(model.anatomy.family for model in models)),
        ("layers", *(model.anatomy.num_layers for model in models)),
        ("tensors", *(len(model.anatomy.inventory.shapes) for model in models)),
        ("elements", *(model.anatomy.inventory.num_elements for model in models)),
        ("probe tokens", *(reading.num_tokens for reading in readings)),
        ("memory: largest layer", *(size(one.layer_bytes) for one in estimate.models)),
        ("memory: hidden states", *(size(one.hidden_bytes) for one in estimate.models)),
        ("memory: Gram matrices", *(size(one.gram_bytes) for one in estimate.models)),
        ("time of arithmetic", *(_duration(one.seconds) for one in estimate.models)),
    ]
    page.table(("", *(model.name for model in models)), rows, "nothing is read or written (--dry-run)")
    page.line(
        f"{sum(plan.rows.sizes):,} rows in {len(plan.rows.sizes)} minibatches from {len(plan.probe.texts)} texts; peak "
        f"about {size(estimate.peak_bytes)} beside the libraries; on {', '.join(dict.fromkeys(plan.devices))} in "
        f"{str(plan.dtype).removeprefix('torch.')} at {estimate.flops_per_second / 1e9:,.0f} GFLOP/s."
    )
    for model in models:
        anatomy = model.anatomy
        kinds = Counter(
            (folded_name(name), " × ".join(map(str, shape)),
             ", ".join(dict.fromkeys(unit.component for unit in anatomy.units_of(name))) or "excluded")
            for name, shape in anatomy.inventory.shapes.items()
        )  # fmt: skip
        page.line()
        folded = [(name, shape, count, component) for (name, shape, component), count in kinds.items()]
        page.table(("name", "shape", "count", "component"), folded, f"tensors of {model.name}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
