"""What `identify` and `score` print at the end: the core sets, their stability, warnings, and where the files are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trace_transfer.core_sets.show import render_core_sets
from trace_transfer.identification.show_stability import render_stability

if TYPE_CHECKING:
    from trace_transfer.identification.identifying import Identified


def render_identified(found: Identified) -> str:
    """The result as text of at most 100 columns."""
    parts = [render_core_sets(found.cores, found.warnings, found.files)]
    if found.stability is not None:
        parts.insert(0, render_stability(found.stability))
    return "\n".join(parts)
