"""What `map` prints at the end: a short table, the warnings, and where the files are."""

from __future__ import annotations

import io
from collections import Counter
from operator import itemgetter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from trace_transfer.artefacts import CoreFile
    from trace_transfer.stages.mapping import MapResult
    from trace_transfer.stages.translation import Carried

WIDTH = 100


def render_summary(result: MapResult) -> str:
    """The result of `map` as text of at most 100 columns."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=WIDTH, color_system=None)
    console.print(_match_table(result))
    if result.carried:
        console.print(_core_table(result.carried))
        for carried in result.carried:
            _print_dropped(console, carried)
    for warning in result.layer_match.warnings:
        console.print(f"! {warning}", markup=False, highlight=False)
    console.print("\nwritten:", highlight=False)
    for file in result.files:
        console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _match_table(result: MapResult) -> Table:
    match, layers = result.match, result.match.similarity.shape
    known = [(pair.similarity, pair) for pair in match.pairs if pair.similarity is not None]
    margins = sorted(pair.margin for _, pair in known if pair.margin is not None)
    (_, weakest), (_, strongest) = min(known, key=itemgetter(0)), max(known, key=itemgetter(0))
    table = Table(title=f"{result.source.name} ({layers[0]} layers) → {result.target.name} ({layers[1]} layers)")
    table.add_column("layer match")
    table.add_column(f"{match.policy}, {result.layer_match.similarity}, {result.layer_match.representation}")
    used = layers[1] - len(match.unmatched_targets)
    table.add_row(
        "pairs", f"{len(match.pairs)}, of {layers[0] - len(match.unmatched_sources)} source and {used} target layers"
    )
    table.add_row("strongest", f"{strongest.source} → {strongest.target}  CKA {strongest.similarity:.3f}")
    table.add_row("weakest", f"{weakest.source} → {weakest.target}  CKA {weakest.similarity:.3f}")
    if margins:
        middle = margins[len(margins) // 2]
        table.add_row("margin to the runner-up", f"median {middle:+.4f}, least {margins[0]:+.4f}")
    table.add_row("unused target layers", _numbers(match.unmatched_targets))
    if match.unmatched_sources:
        table.add_row("unused source layers", _numbers(match.unmatched_sources))
    if match.stability:
        table.add_row(
            "same choice on other texts",
            f"{match.stability.same:.0%} of the layers, {match.stability.within_one:.0%} to within one",
        )
    agreement = ", ".join(f"{name} {share:.0%}" for name, share in match.policy_agreement.items())
    table.add_row("pairs in common with", agreement)
    table.add_row(
        "same as relative depth", f"{match.depth.agreement:.0%}, {match.depth.within_one:.0%} to within one layer"
    )
    return table


def _core_table(carried: tuple[Carried, ...]) -> Table:
    table = Table(title="core sets")
    for heading in ("task", "carried", "source: tensors", "elements", "target: tensors", "elements"):
        table.add_column(heading, justify="left" if heading in ("task", "carried") else "right")
    for one in carried:
        before, after = one.source, one.core
        assert after.transferred_from is not None  # it was carried
        table.add_row(
            after.task,
            after.transferred_from.carry,
            _tensors(before),
            f"{before.ratio_of_elements:.2%}",
            _tensors(after),
            f"{after.ratio_of_elements:.2%}",
        )
    return table


def _tensors(core: CoreFile) -> str:
    return f"{len(core.core)} of {len(core.parameters)} = {core.ratio_of_tensors:.2%}"


def _print_dropped(console: Console, carried: Carried) -> None:
    if not carried.dropped:
        return
    console.print(f"{carried.core.task}: {len(carried.dropped)} core parameters have no counterpart:", highlight=False)
    for reason, count in Counter(carried.dropped.values()).most_common():
        names = [name for name, why in carried.dropped.items() if why == reason]
        shown = ", ".join(names[:3]) + (", …" if count > 3 else "")
        console.print(f"  {shown}: {reason}", markup=False, highlight=False)


def _numbers(layers: tuple[int, ...]) -> str:
    if not layers:
        return "none"
    shown = ", ".join(map(str, layers[:16])) + (", …" if len(layers) > 16 else "")
    return f"{len(layers)}: {shown}"
