"""The jobs as Python functions, with the names and defaults of the command line.

from trace_transfer import map_models
result = map_models("meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-32B", core=["math.core.json"], out="runs/l3-q3")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.settings import MapSettings

if TYPE_CHECKING:
    from trace_transfer.progress import Reporter
    from trace_transfer.stages.mapping import MapResult


def map_models(
    src: str | Path,
    dst: str | Path,
    *,
    core: Sequence[str | Path] = (),
    out: str | Path = "runs/map",
    profile: str = "default",
    reporter: Reporter | None = None,
    **settings: Any,
) -> MapResult:
    """Match the layers of two models and carry core sets from the one to the other.

    Args:
        src, dst: a directory, a GGUF file or a hub name (`owner/name`, `owner/name@revision`).
        core: core files of the source model.
        out: directory for the results.
        profile: `default`, or `paper` for the choices of the paper (section 5.5).
        reporter: shows progress; nothing is shown by default.
        settings: fields of `MapSettings`, over those of the profile.

    Raises:
        UserError: something given cannot be used; nothing half-written is left.
    """
    from trace_transfer.progress import Silent
    from trace_transfer.stages.mapping import plan_map, run_map

    chosen = MapSettings.of(profile, **settings)
    return run_map(plan_map(src, dst, core, chosen), out, chosen, reporter or Silent())
