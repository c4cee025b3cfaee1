"""The jobs as Python functions, with the names and defaults of the command line.

from trace_transfer import map_models
result = map_models("meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-32B", core=["math.core.json"], out="runs/l3-q3")
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.settings.identify import IdentifySettings
from trace_transfer.settings.mapping import MapSettings
from trace_transfer.settings.stream import StreamSettings

if TYPE_CHECKING:
    from trace_transfer.artefacts.run import RunFile
    from trace_transfer.progress import Reporter
    from trace_transfer.stages.identifying import Identified
    from trace_transfer.stages.mapping import MapResult
    from trace_transfer.stages.streaming import Streamed


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


def identify(
    base: str | Path,
    tasks: str | Path,
    *,
    tuned: Mapping[str, str | Path] | None = None,
    out: str | Path = "runs/identify",
    profile: str = "default",
    rules: Sequence[str | Path] = (),
    reporter: Reporter | None = None,
    **settings: Any,
) -> Identified | None:
    """Find the parameters of a model that each task needs: warm-start, score and select (paper, section 3.2, step 1).

    Args:
        tasks: `tasks.yaml`.
        tuned: task → a model fine-tuned from `base` on it, which then needs no warm start.
        profile: `default`, `paper` or `authors-code`.
        settings: fields of `TrainSettings`, `WarmStartSettings`, `ScoreSettings` and `Compute`.

    Returns:
        The core sets; None in all processes but the first of several.

    Raises:
        UserError: something given cannot be used, a loss is not finite, the disk is full; what was finished stays.
    """
    from trace_transfer.progress import Silent
    from trace_transfer.stages.identifying import plan_identify, run_identify

    chosen = IdentifySettings.of(profile, **settings)
    plan = plan_identify(base, tasks, tuned=tuned or {}, settings=chosen, rules=tuple(map(str, rules)), out=out)
    return run_identify(plan, reporter or Silent())


def score_models(
    base: str | Path,
    tuned: Mapping[str, str | Path] | None = None,
    *,
    tasks: str | Path | None = None,
    out: str | Path = "runs/identify",
    profile: str = "default",
    rules: Sequence[str | Path] = (),
    reporter: Reporter | None = None,
    **settings: Any,
) -> Identified:
    """Score the parameters of a model by how models fine-tuned from it, or its warm starts in `out`, differ from it.

    Args:
        tuned: task → a model fine-tuned from `base` on it; None for the warm starts in `out`.
        tasks: `tasks.yaml`, for methods with Fisher information.
        settings: fields of `ScoreSettings` and `Compute`, and of `WarmStartSettings` for how tasks are read.

    Raises:
        UserError: models that do not fit together, a single task with `cs`, an output that cannot be written.
    """
    from trace_transfer.progress import Silent
    from trace_transfer.stages.identifying import run_score

    chosen = IdentifySettings.of(profile, **settings)
    return run_score(
        base, tuned=tuned or {}, tasks=tasks, settings=chosen, rules=tuple(map(str, rules)), out=out,
        reporter=reporter or Silent(),
    )  # fmt: skip


def train(
    base: str | Path,
    stream: str | Path,
    *,
    out: str | Path = "runs/train",
    rules: Sequence[str | Path] = (),
    reporter: Reporter | None = None,
    **settings: Any,
) -> Streamed | None:
    """Fine-tune a model on a stream of tasks, of each only its core set (paper, section 3.2, step 2), or by a baseline.

    Args:
        stream: `stream.yaml`: the tasks in order, with their data and core files.
        settings: fields of `StreamSettings` and `TrainSettings`; the defaults are the paper's (A.4).

    Returns:
        What was trained, the proof that nothing else moved, and the files; None in all processes but the first.

    Raises:
        UserError: something given cannot be used, a loss is not finite, the disk is full; what was finished stays.
        FrozenMovedError: something outside the core sets moved.
    """
    from trace_transfer.progress import Silent
    from trace_transfer.stages.stream_plan import plan_stream, require_space
    from trace_transfer.stages.streaming import run_stream
    from trace_transfer.stopping import StopSignal

    plan = plan_stream(
        base, stream, settings=StreamSettings.of(**settings), rules=tuple(map(str, rules)), out=out,
        num_ranks=int(os.environ.get("WORLD_SIZE", "1")),
    )  # fmt: skip
    require_space(plan)
    return run_stream(plan, reporter or Silent(), StopSignal())


def run(file: str | Path, *, out: str | Path | None = None, jobs: int | None = None, rebuild: bool = False) -> RunFile:
    """Run everything that a run file says and that is not up to date, and make the report.

    Args:
        file: `run.yaml`.
        out: directory for the results, in place of the file's.
        jobs: steps at a time, in place of the file's.
        rebuild: run steps again whose files were changed by hand, instead of refusing.

    Returns:
        What `run.json` says: the cells with the directories of their steps.

    Raises:
        UserError: everything that is wrong with the file, its data and models; files changed by hand.
        TraceTransferError: a step failed; those that were finished stay.
    """
    from dataclasses import replace

    from trace_transfer.pipeline.finishing import run_to_the_end
    from trace_transfer.pipeline.graph import build_graph
    from trace_transfer.pipeline.reading import load_run
    from trace_transfer.pipeline.status import read_status
    from trace_transfer.stopping import StopSignal
    from trace_transfer.views.running import Display

    read = load_run(file, None if out is None else Path(out))
    graph = build_graph(replace(read, jobs=jobs or read.jobs))
    status = read_status(graph, graph.run.out, rebuild=rebuild)
    return run_to_the_end(graph, status, Display(), StopSignal()).record
