"""One regular expression, for whatever takes one: the names that match as a whole are the core set."""

from __future__ import annotations

from trace_transfer.core_sets.exports.core_set import WHOLE_ONLY, CoreSet, require_whole
from trace_transfer.core_sets.exports.patterns import exact_pattern


def write_regex(core: CoreSet) -> str:
    """A line with the expression and nothing else.

    Raises:
        ExportError: parts of parameters are core.
    """
    require_whole(core, "a regular expression", f"it names whole tensors only; {WHOLE_ONLY}")
    return exact_pattern(core.names, core.shapes) + "\n"
