"""The jobs as Python functions, with the names and defaults of the command line.

import trace_transfer as tt
found = tt.map_models("meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-32B", core=["math.core.json"], out="runs/l3-q3")

Each does what the command of its name does, through the same functions, and returns what it found as a typed, frozen
object instead of printing it. Everywhere: a model is a directory, a GGUF file or a hub name (`owner/name`,
`owner/name@revision`); where several files are taken, one may be given by itself; `out` is the directory for the
results, `rules` are your own rules, and `reporter` shows progress, which is silent by default. Settings and files that
cannot be used are told at once, in a `UserError`, before anything is done.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from trace_transfer.keywords import EvaluateKeywords, IdentifyKeywords, MapKeywords, StreamKeywords
from trace_transfer.progress import Reporter, Silent
from trace_transfer.stopping import StopSignal

if TYPE_CHECKING:
    from trace_transfer.core_sets.core_file import CoreFile
    from trace_transfer.evaluation.records import EvaluationFile
    from trace_transfer.identification.identifying import Identified
    from trace_transfer.patch.records import Verification
    from trace_transfer.records import Strict
    from trace_transfer.reporting.records import RunFile
    from trace_transfer.reporting.report import Reported
    from trace_transfer.training.streaming import Streamed
    from trace_transfer.transfer.mapping import MapResult

    Artefact = TypeVar("Artefact", bound=Strict)

AnyPath = str | Path
Paths = AnyPath | Iterable[AnyPath]  # one, or several
Named = Mapping[str, AnyPath]
Function = TypeVar("Function", bound=Callable[..., Any])


def listed(values: Paths) -> list[str]:
    """One path or several, as texts."""
    return [os.fspath(values)] if isinstance(values, (str, os.PathLike)) else [os.fspath(one) for one in values]


def with_settings(function: Function) -> Function:
    """Spell the settings out in a signature, for notebooks and `help`, and say what an unknown name was meant to be.

    An ellipsis stands for the default of the profile."""
    signature = inspect.signature(function)
    *own, last = signature.parameters.values()
    (of,) = last.annotation.__args__
    known = of.__annotations__
    more = [last.replace(name=name, kind=last.KEYWORD_ONLY, default=..., annotation=known[name]) for name in known]
    whole = signature.replace(parameters=[*own, *more])

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        from trace_transfer.settings import SettingsError, unknown_problems

        if problems := unknown_problems(kwargs, whole.parameters):
            raise SettingsError(problems)
        return function(*args, **kwargs)

    call.__signature__ = whole  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


@with_settings
def identify(
    base: AnyPath, tasks: AnyPath, *, tuned: Named | None = None, out: AnyPath = "runs/identify",
    profile: Literal["default", "paper", "authors-code"] = "default", rules: Paths = (),
    reporter: Reporter | None = None, **settings: Unpack[IdentifyKeywords],
) -> "Identified | None":  # fmt: skip
    """Find the tensors of a model that each task needs: warm-start, score and select (paper, section 3.2, step 1).

    None is returned in all processes but the first of several.

    Args:
        tuned: task → a model fine-tuned from `base` on it, which then needs no warm start.
        settings: fields of `TrainSettings`, `WarmStartSettings`, `ScoreSettings` and `Compute`.

    Examples:
        >>> found = tt.identify("HuggingFaceTB/SmolLM2-135M", "tasks.yaml", out="runs/smollm2", ratio=0.05)
        >>> found.cores[0].core[0].name
    """
    from trace_transfer.identification.identifying import plan_identify, run_identify
    from trace_transfer.identification.settings import IdentifySettings

    chosen = IdentifySettings.of(profile, **settings)
    plan = plan_identify(base, tasks, tuned=tuned or {}, settings=chosen, rules=listed(rules), out=out)
    return run_identify(plan, reporter or Silent())


@with_settings
def score(
    base: AnyPath, tuned: Named | None = None, *, tasks: AnyPath | None = None, out: AnyPath = "runs/identify",
    profile: Literal["default", "paper", "authors-code"] = "default", rules: Paths = (),
    reporter: Reporter | None = None, **settings: Unpack[IdentifyKeywords],
) -> "Identified":  # fmt: skip
    """Score the tensors of a model by how models fine-tuned from it, or its warm starts in `out`, differ from it.

    Args:
        tuned: task → a model fine-tuned from `base` on it; None for the warm starts in `out`.
        tasks: `tasks.yaml`, for methods with Fisher information.
        settings: fields of `ScoreSettings` and `Compute`, and of `WarmStartSettings` for how tasks are read.

    Examples:
        >>> tt.score("meta-llama/Meta-Llama-3-8B", {"math": "out/math", "law": "out/law"}, method="cs")
    """
    from trace_transfer.identification.identifying import run_score
    from trace_transfer.identification.settings import IdentifySettings

    chosen = IdentifySettings.of(profile, **settings)
    return run_score(
        base, tuned=tuned or {}, tasks=tasks, settings=chosen, rules=listed(rules), out=out,
        reporter=reporter or Silent(),
    )  # fmt: skip


def select(
    *files: Paths, ratio: float | None = None, unit: Literal["tensors", "elements", "rows"] | None = None,
    out: AnyPath | None = None,
) -> "tuple[CoreFile, ...]":  # fmt: skip
    """Select the top `ratio` anew from the scores in core files; no weights are read.

    Args:
        files: core files, of a task each: one after the other, or in a list.
        ratio: the new core share, in (0, 1]; None for the one before.
        unit: what it counts, `tensors`, `elements` or `rows`; None for what it counted before.
        out: directory for the new files; None writes none.

    Examples:
        >>> (wider,) = tt.select("runs/smollm2/math.core.json", ratio=0.1)
        >>> wider.ratio_of_elements
    """
    from trace_transfer.core_sets.selection import reselect_all

    return reselect_all([Path(file) for one in files for file in listed(one)], ratio, unit, out)


@with_settings
def map_models(
    src: AnyPath, dst: AnyPath, *, core: Paths = (), out: AnyPath = "runs/map",
    profile: Literal["default", "paper"] = "default", reporter: Reporter | None = None,
    **settings: Unpack[MapKeywords],
) -> "MapResult":  # fmt: skip
    """Match the layers of two models and carry core sets from the one to the other.

    Args:
        core: core files of the source model; `owner/name:FILE` is one on the hub.
        profile: `default`, or `paper` for the choices of the paper (section 5.5).
        settings: fields of `MapSettings`, over those of the profile.

    Examples:
        >>> found = tt.map_models("meta-llama/Meta-Llama-3-8B", "Qwen/Qwen3-32B", core=["math.core.json"])
        >>> found.match.pairs[0], found.carried[0].core.ratio_of_tensors
    """
    from trace_transfer.publish.hub import local_file
    from trace_transfer.transfer.mapping import plan_map, run_map
    from trace_transfer.transfer.settings import MapSettings

    chosen = MapSettings.of(profile, **settings)
    return run_map(plan_map(src, dst, [*map(local_file, listed(core))], chosen), out, chosen, reporter or Silent())


@with_settings
def train(
    base: AnyPath, stream: AnyPath, *, out: AnyPath = "runs/train", rules: Paths = (),
    reporter: Reporter | None = None, **settings: Unpack[StreamKeywords],
) -> "Streamed | None":  # fmt: skip
    """Fine-tune a model on a stream of tasks, of each only its core set (paper, section 3.2, step 2), or by a baseline.

    Args:
        stream: `stream.yaml`: the tasks in order, with their data and core files.
        settings: fields of `StreamSettings` and `TrainSettings`; the defaults are the paper's (A.4).

    Raises:
        FrozenMovedError: something outside the core sets moved.

    Examples:
        >>> done = tt.train("Qwen/Qwen2.5-14B", "stream.yaml", out="runs/qwen-14b", epochs=1)
        >>> done.verification.counts["frozen MOVED"].elements
    """
    from trace_transfer.training.settings import StreamSettings
    from trace_transfer.training.streaming import plan_stream, run_stream

    plan = plan_stream(base, stream, settings=StreamSettings.of(**settings), rules=listed(rules), out=out)
    return run_stream(plan, reporter or Silent(), StopSignal())


@with_settings
def evaluate(
    model: AnyPath, *, suite: AnyPath = "paper", only: str | Iterable[str] = (), data: Named | None = None,
    patch: Paths = (), out: AnyPath = "runs/evaluate", reporter: Reporter | None = None,
    **settings: Unpack[EvaluateKeywords],
) -> "EvaluationFile":  # fmt: skip
    """Score a model on the paper's benchmarks, or on your own data.

    Args:
        suite: `paper`, `paper-authors`, or a file of your own evaluations.
        only: names of evaluations; all of the suite by default.
        data: name of an evaluation → a local file for it; `NAME.shots` for the examples that it shows.
        patch: patches that are put into the model first, in the order of the stream.

    Raises:
        EvaluationError: an evaluation failed; those before it stay.

    Examples:
        >>> scores = tt.evaluate("models/small", suite="mine.yaml", patch=["runs/math.patch.safetensors"])
        >>> {score.name: score.value for score in scores.scores}
    """
    from trace_transfer.evaluation import evaluating
    from trace_transfer.evaluation.settings import EvaluateSettings
    from trace_transfer.evaluation.suite_file import load_suite
    from trace_transfer.models.sources import ModelSource
    from trace_transfer.patch.model_state import ModelState
    from trace_transfer.patch.patches import Patch

    chosen = EvaluateSettings.of(**settings)
    of_suite = load_suite(suite).with_data(data or {}).only(listed(only))
    state = ModelState(ModelSource.parse(model), Patch.open_all(listed(patch)))
    return evaluating.evaluate(evaluating.plan_evaluation(state, of_suite, chosen), Path(out), reporter or Silent())


def verify(
    base: AnyPath, tuned: AnyPath, *, core: Paths = (), patch: Paths = (), reporter: Reporter | None = None,
) -> "Verification":  # fmt: skip
    """Compare two models bit for bit, and prove that nothing moved but what core files or patches say.

    Args:
        core: core files of what was to be trained.
        patch: patches whose tensors were to be trained.

    Raises:
        FrozenMovedError: a frozen tensor, or a frozen row of a trained one, moved; all are named.

    Examples:
        >>> moved = tt.verify("Qwen/Qwen2.5-14B", "runs/qwen-14b/model", core=["math.core.json"])
        >>> moved.counts["core moved"].parameters
    """
    from trace_transfer.patch.patching import require_frozen, verify_models

    cores, patches = [*map(Path, listed(core))], [*map(Path, listed(patch))]
    found = verify_models(str(base), str(tuned), cores=cores, patches=patches, reporter=reporter or Silent())
    require_frozen(found)
    return found


def run(
    file: AnyPath, *, out: AnyPath | None = None, jobs: int | None = None,
    executor: Literal["local", "slurm"] = "local", rebuild: bool = False,
) -> "RunFile":  # fmt: skip
    """Run everything that a run file says and that is not up to date, and make the report.

    Args:
        out: directory for the results, in place of the file's.
        jobs: steps at a time, in place of the file's.
        executor: who does the steps: this machine, or a cluster's SLURM, with a job for each.
        rebuild: run steps again whose files were changed by hand, instead of refusing.

    Raises:
        TraceTransferError: a step failed; those that were finished stay.

    Examples:
        >>> record = tt.run("examples/quickstart/run.yaml")
        >>> [cell.method for cell in record.cells]
    """
    from dataclasses import replace

    from trace_transfer.study.cluster import SCHEDULERS
    from trace_transfer.study.graph import build_graph
    from trace_transfer.study.run_file import load_run
    from trace_transfer.study.running import run_to_the_end
    from trace_transfer.study.show import Display
    from trace_transfer.study.status import read_status

    read = load_run(file, None if out is None else Path(out))
    graph = build_graph(replace(read, jobs=jobs or read.jobs))
    status = read_status(graph, graph.run.out, rebuild=rebuild)
    return run_to_the_end(graph, status, Display(), StopSignal(), SCHEDULERS[executor]).record


def report(run: AnyPath, *, out: AnyPath | None = None) -> "Reported":
    """Write what a run found so far as one self-contained page, report.html, and as report.md.

    Args:
        out: directory for the report; the run's by default, which is not to be had while the run is at work there.

    Returns the files, and the steps that are not finished and so not in them.

    Examples:
        >>> tt.report("runs/study").files
    """
    from trace_transfer.reporting.report import write_report

    return write_report(run, out)


@overload
def read(file: AnyPath) -> Any: ...
@overload
def read(file: AnyPath, kind: "type[Artefact]") -> "Artefact": ...
def read(file: AnyPath, kind: "type[Any] | None" = None) -> Any:
    """Read a JSON file that this package wrote: a core file, a layer match, scores, a run; all of it is checked.

    Args:
        file: any JSON file with a `format` of ours.
        kind: a class of `trace_transfer.formats`, such as `CoreFile`, for which the file must be.

    Examples:
        >>> core = tt.read("runs/smollm2/math.core.json")
        >>> core.ratio_of_tensors, [tensor.name for tensor in core.core]
    """
    from trace_transfer.formats import read_any

    return read_any(file, kind)
