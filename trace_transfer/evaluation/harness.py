"""Tasks of lm-evaluation-harness, which is imported inside functions alone.

A stock task keeps its prompts, filters and metrics; what changes is where its data come from, how many examples are
shown and how long answers may be. Prompts are read by the harness' own model class, as a call by hand reads them.
"""

from __future__ import annotations

import importlib.util
import logging
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_transfer.data.encoding import template_of
from trace_transfer.data.reading import read_rows
from trace_transfer.data.records import Message
from trace_transfer.data.rendering import ChatTemplate, RenderingError
from trace_transfer.data.tasks_file import TaskError, locate, suggestion
from trace_transfer.errors import NumericalError, UserError, first_line
from trace_transfer.evaluation.backends import Backend
from trace_transfer.evaluation.outcome import EvaluationError, Outcome, Prepared, Sample, records_sha256
from trace_transfer.evaluation.reading import Reading, require_room
from trace_transfer.evaluation.records import Member
from trace_transfer.evaluation.settings import EvaluateSettings
from trace_transfer.evaluation.suite_file import SHOTS, EvaluationSpec
from trace_transfer.models.sources import hub_silence

if TYPE_CHECKING:
    from datasets import Dataset

PACKAGE = "lm-eval>=0.4.9,<0.5"  # as in pyproject.toml
BOOTSTRAP = 1000  # draws, for metrics that are no mean
_NAME = re.compile(r"^(?:task|group):[ \t]*([\"']?)([^\s\"'#\[]+)\1[ \t]*(?:#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class HarnessEvaluation(Prepared):
    """A task of the harness, or a group of tasks, with its data read.

    Attributes:
        tasks: the harness' own objects by their names; their requests are built anew by each run.
        groups: the group first, then those within it; empty for a single task.
        filter: whose results count.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    filter: str

    def run(self, backend: Backend, advance: Callable[[], None]) -> Outcome:
        """What `lm_eval.simple_evaluate` does with a task, without its look at the machine, which takes seconds.

        Raises:
            EvaluationError: the harness failed, or gave no such metric.
        """
        try:
            found = self._evaluate(backend, advance)
        except (UserError, NumericalError):
            raise
        except Exception as error:  # the harness and its metrics raise many kinds
            raise EvaluationError(f"{self.spec.label}: lm-evaluation-harness failed: {first_line(error)}") from error
        (first, *smaller), results = [*self.groups, *self.tasks], {**found["results"], **found.get("groups", {})}
        value, stderr = self._score(results[first])
        samples = tuple(
            self._sample(name, one)
            for name in self.tasks
            for one in found["samples"][name]
            if one["filter"] == self.filter
        )
        members = [Member(name=one, value=score[0], stderr=score[1], num_examples=results[one]["sample_len"])
                   for one in smaller if self.groups and (score := self._score(results[one]))]  # fmt: skip
        killed = sum(bool(sample.more.get("killed")) for sample in samples)
        return Outcome(value, stderr, samples, killed, tuple(members) or None)

    def _score(self, results: Mapping[str, Any]) -> tuple[float, float | None]:
        key = f"{self.metric},{self.filter}"
        if key not in results:
            known = [one.partition(",")[0] for one in results if "," in one and "_stderr," not in one]
            raise EvaluationError(f"{self.spec.label}: no metric '{self.metric}', {suggestion(self.metric, known)}")
        stderr = results.get(f"{self.metric}_stderr,{self.filter}")
        return float(results[key]), float(stderr) if isinstance(stderr, (int, float)) else None

    def _evaluate(self, backend: Backend, advance: Callable[[], None]) -> Any:
        from lm_eval.evaluator import evaluate

        told, settings = _Progress(advance, self.num_steps), backend.settings
        chat = self.spec.template == "chat"
        with _quiet(), _seeded(settings.seed), backend.harness(chat=chat) as lm:
            for task in self.tasks.values():
                task.set_fewshot_seed(seed=settings.seed)
            lm.set_cache_hook(told)
            found = evaluate(
                lm, {"tasks": self.tasks, "groups": self.groups}, limit=self.settings["limit"],
                bootstrap_iters=BOOTSTRAP, log_samples=True, system_instruction=self.spec.system,
                apply_chat_template=chat, fewshot_as_multiturn=True,
                confirm_run_unsafe_code=settings.allow_code_execution,
            )  # fmt: skip
        told.finish()
        return found

    def _sample(self, name: str, logged: Mapping[str, Any]) -> Sample:
        """A document as the harness logged it; of likelihoods the requests and what came out of them."""
        value = logged.get(self.metric)
        number = float(value) if isinstance(value, (int, float)) else float("nan")
        arguments = list(logged["arguments"])
        writes = self.tasks[name].OUTPUT_TYPE == "generate_until"
        more: dict[str, Any] = {"task": name} if self.groups else {}
        more["filtered"] = logged["filtered_resps"][0 if writes else slice(None)]
        if not writes:
            more["continuations"] = [one[1] for one in arguments if len(one) > 1]
        more |= {key: logged[key] for key in ("killed", "outcome", "error") if key in logged}
        right = bool(number) if number in (0.0, 1.0) else None
        output = str(logged["resps"][0][0]) if writes else None
        return Sample(logged["doc_id"], str(arguments[0][0]), output, str(logged["target"]), number, right, more)


class _Progress:
    """What the harness tells of each answer is meant for a cache; a bar can live on it."""

    def __init__(self, advance: Callable[[], None], num_steps: int) -> None:
        self.advance, self.left = advance, num_steps

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        if kind == "generate_until" and self.left:
            self.left -= 1
            self.advance()

    def finish(self) -> None:
        """The rest: documents whose choices were scored, several to each."""
        for _ in range(self.left):
            self.advance()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers as `simple_evaluate` seeds them, but for what `seed` is for; the caller's go on as they were."""
    import numpy as np
    import torch

    before, before_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(before_numpy)


def is_installed() -> bool:
    """Whether there is a harness; nothing of it is imported."""
    return importlib.util.find_spec("lm_eval") is not None


def missing_harness(names: Sequence[str]) -> str:
    """What to say to evaluations that need the harness where there is none."""
    return (
        f"{', '.join(names)}: {'need' if len(names) > 1 else 'needs'} lm-evaluation-harness, which is not installed: "
        f"pip install '{PACKAGE}' (in a copy of the repository: pip install '.[evaluation]'). Evaluations of your own "
        "data do not, in a file given with --suite FILE"
    )


def prepare_harness(spec: EvaluationSpec, reading: Reading, settings: EvaluateSettings) -> HarnessEvaluation:
    """A stock task or group, or one described by a YAML file of the harness' kind, with its data.

    Raises:
        UserError: no harness, no such task or metric or filter, data that are not there, or that would have to come
            from the hub and do not, code of the model that would be run unguarded.
    """
    if not is_installed():
        raise UserError(missing_harness([spec.name]))
    path, bare = task_file(spec, reading.directory)
    if "group" in bare:
        return _prepare_group(spec, path, str(bare["group"]), reading, settings)
    return prepare_config(spec, task_config(spec, path, bare), reading, settings)


def prepare_config(
    spec: EvaluationSpec, config: Mapping[str, Any], reading: Reading, settings: EvaluateSettings, *,
    guarded: bool = False, has_data: bool = False,
) -> HarnessEvaluation:  # fmt: skip
    """From the harness' configuration of a task.

    Args:
        guarded: code of the model is run, but walled in.
        has_data: the configuration says where the data are; `data:` of the evaluation is known to it.
    """
    from lm_eval.api.task import ConfigurableTask

    if config.get("unsafe_code") and not guarded:
        raise TaskError(_unguarded(spec, config.get("task")))
    changed = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
    if spec.shots is not None:
        changed["num_fewshot"] = spec.shots
    if not has_data:
        _set_data(changed, spec, reading)
    elif spec.data is None:
        _require_hub(spec, changed)
    if changed.get("output_type", "generate_until") == "generate_until":
        changed["generation_kwargs"] = _generation(spec, changed.get("generation_kwargs"), reading, settings)
    try:
        with _quiet():
            task = ConfigurableTask(config=changed)
            len(task.eval_docs)
    except UserError:
        raise
    except Exception as error:  # datasets, the hub's client and the task's own functions raise many kinds
        raise TaskError(_unusable(spec, changed, error)) from error
    # The first that the task lists; kind humaneval lists a function whose results have other names.
    metrics = [spec.first_metric] if spec.kind == "humaneval" else list(task.aggregation())
    filters = [one["name"] for one in changed.get("filter_list") or ()] or ["none"]
    return _prepared(spec, {changed["task"]: task}, {}, metrics, filters, settings)


def _prepare_group(
    spec: EvaluationSpec, path: Path, name: str, reading: Reading, settings: EvaluateSettings
) -> HarnessEvaluation:
    """All tasks of a group, as the harness builds them from their own data."""
    from lm_eval.tasks import TaskManager

    if spec.data or spec.shots_data:
        raise TaskError(
            f"{spec.label}: '{name}' is a group, whose tasks have data sets of their own; leave data: out "
            "(HF_HUB_OFFLINE=1 reads the hub's cache), or list its tasks"
        )
    try:
        with _quiet():
            found = TaskManager(include_path=path.parent if _is_file(spec.task or "") else None).load(name)
            tasks, group = found["tasks"], found["groups"][name]
            unsafe = [one for one, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)]
            if unsafe:
                raise TaskError(_unguarded(spec, ", ".join(unsafe)))
            for task in tasks.values():
                if spec.shots is not None:
                    task.set_config(key="num_fewshot", value=spec.shots)
                if task.OUTPUT_TYPE == "generate_until":
                    given = _generation(spec, task.config.generation_kwargs, reading, settings)
                    task.set_config(key="generation_kwargs", value=given)
    except UserError:
        raise
    except Exception as error:  # as in `prepare_config`
        raise TaskError(f"{spec.label}: the group '{name}' cannot be made of its data: {first_line(error)}") from error
    if not group.aggregate_metric_list:
        raise TaskError(f"{spec.label}: the group '{name}' has no score of its own; list its tasks: {', '.join(tasks)}")
    metrics = [one.metric for one in group.aggregate_metric_list]
    own = [name for one in group.aggregate_metric_list for name in one.filter_list or ()]
    some = [one["name"] for task in tasks.values() for one in task.config.filter_list or ()]
    return _prepared(spec, tasks, {name: group, **found["groups"]}, metrics, own or some or ["none"], settings)


def _prepared(
    spec: EvaluationSpec, tasks: Mapping[str, Any], groups: Mapping[str, Any], metrics: Sequence[str],
    filters: Sequence[str], settings: EvaluateSettings,
) -> HarnessEvaluation:  # fmt: skip
    """With the metric and the filter that are asked for, or the first of each.

    Raises:
        TaskError: there is no such metric or filter.
    """
    filters = list(dict.fromkeys(filters))
    problems = [
        f"{key}: unknown '{asked}', {suggestion(asked, known, 'the task has')}"
        for key, asked, known in (("metric", spec.metric, metrics), ("filter", spec.filter, filters))
        if asked is not None and asked not in known
    ]
    if problems:
        raise TaskError(f"{spec.label}: " + "; ".join(problems))
    metric, own_filter = spec.metric or metrics[0], spec.filter or filters[0]
    limit, rows, num_examples = settings.limit_of(spec.limit), [], 0
    for task in tasks.values():
        if task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=0)
        count = min(len(task.eval_docs), limit or len(task.eval_docs))
        num_examples += count
        rows += [*islice(task.eval_docs, count), *(task.fewshot_docs() or () if task.config.num_fewshot else ())]
    first, *others = tasks.values()
    same = {one.config.num_fewshot for one in others} <= {first.config.num_fewshot}
    writes = first.OUTPUT_TYPE == "generate_until" and not groups
    told = {
        "protocol": "lm-evaluation-harness", "lm_eval": version("lm_eval"), "task": next(iter({**groups, **tasks})),
        "shots": first.config.num_fewshot if same else None, "limit": limit, "filter": own_filter,
        "template": "chat" if spec.template == "chat" else "none",
        "max_new_tokens": first.config.generation_kwargs.get("max_gen_toks", 256) if writes else None,
    }  # fmt: skip
    higher = bool(first.higher_is_better().get(metric, True))
    sha256 = records_sha256(rows)
    return HarnessEvaluation(spec, metric, higher, num_examples, sha256, told, tasks, groups, own_filter)


def _generation(spec: EvaluationSpec, given: Any, reading: Reading, settings: EvaluateSettings) -> dict[str, Any]:
    """How a task's answers are written: its own settings, the end of the template's turn, the longest answer."""
    found = dict(given or {"until": ["\n\n"], "do_sample": False})
    if spec.template == "chat":
        found = _ended(found, _turn_end(spec, reading.tokenizer))
    if most := spec.max_new_tokens or settings.max_new_tokens:
        found["max_gen_toks"] = most
    require_room(spec, reading.longest(settings), found.get("max_gen_toks", 256))
    return found


def _unguarded(spec: EvaluationSpec, name: Any) -> str:
    return (
        f"{spec.label}: the task '{name}' runs programs that the model writes, with nothing around them; only kind: "
        "humaneval runs them walled in"
    )


def _set_data(config: dict[str, Any], spec: EvaluationSpec, reading: Reading) -> None:
    """Local files in place of the task's data set: one split to be scored, and one that examples are drawn from.

    Raises:
        TaskError: examples are to be shown and there is nothing to draw them from; a file cannot be read; there is no
            file, and the hub cannot be reached.
    """
    if spec.data is None:
        if spec.shots_data is not None:
            raise TaskError(f"{spec.label}: shots_data: without data: the task's own data set has its own examples")
        _require_hub(spec, config)
        return
    scored = config.get("test_split") or config.get("validation_split") or "test"
    splits = {scored: _table(spec, reading)}
    own = config.get("fewshot_config") or {}
    config.update(
        training_split=None, validation_split=None, test_split=scored, fewshot_split=None, dataset_kwargs=None
    )
    config["fewshot_config"] = {key: value for key, value in own.items() if key != "split"} or None
    if spec.shots_data is not None:
        shots = spec.model_copy(update={"data": spec.shots_data})
        name = "train" if scored != "train" else "shots"
        splits[name] = _table(shots, reading)
        config.update(training_split=name, fewshot_split=name)
        config["fewshot_config"] = {key: value for key, value in own.items() if key not in ("split", "samples")} or None
    elif config.get("num_fewshot") and not own.get("samples"):
        raise TaskError(
            f"{spec.label}: {config['num_fewshot']} examples are to be shown, and its data file has only what is "
            f"scored; give a file of examples with shots_data: (--data {spec.name}{SHOTS}=FILE), or shots: 0"
        )
    config["custom_dataset"] = lambda **_: splits


def _table(spec: EvaluationSpec, reading: Reading) -> Dataset:
    """The records as the harness wants them: each column of one kind."""
    rows = read_rows(spec, reading.directory)
    try:
        return rows.dataset()
    except Exception as error:  # pyarrow raises many kinds
        raise TaskError(
            f"{spec.label}: a column has values of several kinds, which the harness cannot use: {first_line(error)}"
        ) from error


def _require_hub(spec: EvaluationSpec, config: Mapping[str, Any]) -> None:
    """Ask the hub once: its client would try a dead connection for half a minute, for each data set.

    Raises:
        TaskError: it does not answer.
    """
    if silence := hub_silence(str(config.get("dataset_path")), dataset=True):
        raise TaskError(_from_hub(spec, config, f"{silence}; HF_HUB_OFFLINE=1 reads its cache"))


def _from_hub(spec: EvaluationSpec, config: Mapping[str, Any], why: str) -> str:
    source = "/".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
    return (
        f"{spec.label}: its data set {source} could not be had from the hub ({why}). Check your connection, or give a "
        f"local file with the same columns: --data {spec.name}=FILE"
    )


def _unusable(spec: EvaluationSpec, config: Mapping[str, Any], error: Exception) -> str:
    """What to say when a task cannot be made of its data."""
    if spec.data is None:
        return _from_hub(spec, config, first_line(error))
    missing = f": its records lack the column {error}" if isinstance(error, KeyError) else f": {first_line(error)}"
    return (
        f"{spec.label}: the task '{config.get('task')}' cannot use these records{missing}. Expected are the columns of "
        f"{config.get('dataset_path')}"
    )


def _turn_end(spec: EvaluationSpec, tokenizer: Any) -> str:
    """The text with which the chat template ends an answer.

    Raises:
        TaskError: there is no template, or it does not take a question, or not the system message that is asked for
            (which the harness would leave out).
    """
    template_of(spec, tokenizer)
    system = () if spec.system is None else (Message("system", spec.system),)
    try:
        return ChatTemplate(tokenizer, {}).prompt([*system, Message("user", "?")]).end
    except RenderingError as error:
        raise TaskError(f"{spec.label}: template: chat: {error}") from error


def _ended(given: Mapping[str, Any], end: str) -> dict[str, Any]:
    """Generation that stops at one more text: the harness itself stops at the end of text alone."""
    until = given.get("until") or []
    until = [until] if isinstance(until, str) else list(until)
    return {**given, "until": until if end in ("", *until) else [*until, end]}


def task_file(spec: EvaluationSpec, directory: Path) -> tuple[Path, dict[str, Any]]:
    """The file of a task or group by its name, or of the user's own, and what it says with all that it includes.

    Raises:
        TaskError: unknown, not to be read, or a task that is a program.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    name = spec.task or spec.name
    path = locate(name, directory) if _is_file(name) else stock_file(name)
    if path is None:
        raise TaskError(
            f"{spec.label}: no task '{name}' in lm-evaluation-harness; {suggestion(name, _near(name), 'near')}"
        )
    try:
        bare = load_yaml(path, resolve_func=False)  # imports nothing: some tasks fetch things when they are imported
    except Exception as error:  # yaml's, and what includes lead to
        raise TaskError(f"{spec.label}: the task '{name}' cannot be read: {first_line(error)}") from error
    if "class" in bare:
        raise TaskError(f"{spec.label}: '{name}' is a program of the harness, not a description; not supported")
    return path, bare


def task_config(spec: EvaluationSpec, path: Path, bare: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the file of a task, its functions imported.

    Raises:
        TaskError: they cannot be.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    name = spec.task or spec.name
    try:
        return bare if bare.get("unsafe_code") else {"task": name, **load_yaml(path, resolve_func=True)}
    except Exception as error:  # what the functions of a task raise when they are imported
        raise TaskError(f"{spec.label}: the task '{name}' cannot be read: {first_line(error)}") from error


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def stock_file(name: str) -> Path | None:
    """The file of a task or group that comes with the harness."""
    if (found := _named_files().get(name)) is not None:
        return found
    from lm_eval.tasks import TaskManager  # names that come from an included file: ten seconds

    with _quiet():
        entry = TaskManager().task_index.get(name)
    return None if entry is None else entry.yaml_path


@lru_cache(maxsize=1)
def _named_files() -> Mapping[str, Path]:
    """Name → file of all tasks and groups that name themselves in their own file: two seconds, once."""
    import lm_eval

    root = Path(lm_eval.__file__).parent / "tasks"
    found: dict[str, Path] = {}
    for file in sorted(root.rglob("*.yaml")):
        for match in _NAME.finditer(file.read_text("utf-8")):
            found.setdefault(match[2], file)
    return found


def _near(name: str) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(name, list(_named_files()), 5, cutoff=0.5) or ["(nothing)"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness' log, warnings and bars; what goes wrong is raised."""
    import lm_eval.api.task
    import lm_eval.models.huggingface

    logger, modules = logging.getLogger("lm_eval"), (lm_eval.api.task, lm_eval.models.huggingface)
    level, bars = logger.level, [module.tqdm for module in modules]
    logger.setLevel(logging.CRITICAL)
    for module, bar in zip(modules, bars, strict=True):
        module.tqdm = lambda *given, _bar=bar, **options: _bar(*given, **{**options, "disable": True})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar
