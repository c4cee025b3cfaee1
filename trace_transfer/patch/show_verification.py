"""What `verify` prints: how much moved, and what moved although it was frozen."""

from __future__ import annotations

from trace_transfer.errors import MAX_LISTED
from trace_transfer.patch.verification import Verification, VerifiedParameter
from trace_transfer.terminal import Page, drawn


def render_verification(verification: Verification) -> str:
    """The result as text as wide as the terminal."""
    return drawn(lambda page: draw_verification(verification, page))


def draw_verification(verification: Verification, page: Page) -> None:
    """Draw the result within a page's width."""
    page.line("Compared bit for bit:", "bold")
    page.line(f"  base   {verification.base}")
    page.line(f"  tuned  {verification.tuned}")
    page.line()
    page.table(
        [("", "left"), ("parameters", "right"), ("elements", "right")],
        ((kind, f"{count.parameters:,}", f"{count.elements:,}") for kind, count in verification.counts.items()),
    )
    page.line()
    changed = [p for p in verification.parameters if p.base_dtype != p.tuned_dtype]
    if changed:
        page.line(f"{len(changed)} parameters are of another type in both and were compared by value")
    _names(f"! {len(verification.unmoved)} core parameters did not move:", verification.unmoved, page)
    if verification.ok:
        page.line("no frozen parameter moved")
    else:
        _names(f"! {len(verification.broken)} frozen parameters MOVED:", verification.broken, page)


def _names(heading: str, parameters: tuple[VerifiedParameter, ...], page: Page) -> None:
    if not parameters:
        return
    page.line(heading, "yellow")
    for parameter in parameters[:MAX_LISTED]:
        page.line(f"  {parameter.name}")
    if len(parameters) > MAX_LISTED:
        page.line(f"  … and {len(parameters) - MAX_LISTED} more (--json lists all)")
