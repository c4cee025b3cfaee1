"""The jobs as Python functions, with the names and defaults of the command line.

from trace_transfer import map_models
result = map_models("meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-32B", core=["math.core.json"], out="runs/l3-q3")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.settings import MapSettings

if TYPE_CHECKING:
    from trace_transfer.progress import Reporter
    from trace_transfer.stages.mapping import MapResult
    from trace_transfer.stages.scoring import Scored


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


def score_models(
    base: str | Path,
    tuned: Mapping[str, str | Path],
    *,
    method: str = "l2-rms",
    ratio: float = 0.05,
    unit: str = "tensors",
    out: str | Path = "runs/score",
    rules: Sequence[str | Path] = (),
    reporter: Reporter | None = None,
) -> Scored:
    """Score the parameters of a model by how models fine-tuned from it differ from it; one core file per task.

    Args:
        tuned: task → a model fine-tuned from `base` on it.
        method: a name in `trace_transfer.maths.saliency.METHODS`.
        ratio, unit: the core share, of `tensors` or of `elements`.

    Raises:
        UserError: models that do not fit together, a single task with `cs`, an output that cannot be written.
    """
    from trace_transfer.progress import Silent
    from trace_transfer.stages.scoring import run_score

    return run_score(
        base, tuned, method=method, ratio=ratio, unit=unit, out=out, rules=tuple(map(str, rules)),
        reporter=reporter or Silent(),
    )  # fmt: skip
